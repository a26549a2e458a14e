"""Time of closed-form inner loops.

Their solver as the support set grows to 20-way 20-shot, and whole adaptations against MAML.

    python benchmarks/solver.py

writes docs/results/solver.md; needs fsl-kernel-closed-form and fsl-maml.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

import fsl_core as fsl
from fsl_core.assembly.experiment import build_experiment
from fsl_core.config.recipe import read_recipe
from fsl_core.hooks.loader import load
from fsl_kernel_closed_form import finite_time, solve

PAGE = Path(__file__).parent.parent / "docs" / "results" / "solver.md"
SHAPES = ((5, 1), (5, 5), (20, 1), (20, 5), (20, 10), (20, 20))
SOLVERS: dict[str, Callable] = {
    "solve": lambda gram, y: solve(gram, y, 0.1, 1e-6),
    "exact": lambda gram, y: finite_time(gram, y, 10.0),
    "pade11": lambda gram, y: finite_time(gram, y, 10.0, "pade11"),
    "pade22": lambda gram, y: finite_time(gram, y, 10.0, "pade22"),
}
ADAPTERS = {
    "maml, 5 steps": "{name: maml, inner_steps: 5}",
    "kernel-closed-form": "{name: kernel-closed-form}",
    "kernel-closed-form, ntk of all": "{name: kernel-closed-form, kernel: ntk}",
    "ridge": "{name: ridge}",
    "meta-rkhs-ii": "{name: meta-rkhs-ii}",
    "meta-rkhs-ii, head and last block": "{name: meta-rkhs-ii, "
    "parameters: [head.*, backbone.blocks.3.*]}",
}
RECIPE = """\
episodes: {{name: glyphs, n_way: {n_way}, n_shot: {n_shot}, n_query: 1}}
backbone: {{name: conv4, channels: 64}}
adapter: {adapter}
outer: {{optimizer: {{name: adam, lr: 0.001}}, meta_batch_size: 1, steps: 1}}
"""


def milliseconds(function: Callable[[], object], repeats: int = 15) -> float:
    """Median over repeats, after two calls that are not counted."""
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - started))
    return median(times[2:])


def solver_rows() -> list[list[str]]:
    rows = []
    for n_way, n_shot in SHAPES:
        n = n_way * n_shot
        z = torch.randn(n, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) / 8
        y = torch.eye(n_way, dtype=torch.float64).repeat_interleave(n_shot, 0) - 1 / n_way
        row = [f"{n_way}-way {n_shot}-shot", str(n)]
        for solver in SOLVERS.values():
            forward = milliseconds(partial(_forward, solver, z, y))
            both = milliseconds(partial(_backward, solver, z, y))
            row.append(f"{forward:.2f} / {both:.2f}")
        rows.append(row)
    return rows


def _forward(solver: Callable, z: torch.Tensor, y: torch.Tensor) -> None:
    solver(z @ z.T, y)


def _backward(solver: Callable, z: torch.Tensor, y: torch.Tensor) -> None:
    z = z.clone().requires_grad_()
    solver(z @ z.T, y).square().sum().backward()


def adaptation_rows(folder: Path) -> list[list[str]]:
    rows = []
    for label, adapter in ADAPTERS.items():
        times = [adaptation(folder, adapter, n_way, n_shot) for n_way, n_shot in ((5, 1), (5, 5))]
        rows.append([label, *(f"{t:.1f}" for t in times)])
    reference = [float(t) for t in rows[0][1:]]
    return [
        [*row, *(f"{float(t) / r:.2f}" for t, r in zip(row[1:], reference, strict=True))]
        for row in rows
    ]


def adaptation(folder: Path, adapter: str, n_way: int, n_shot: int) -> float:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(adapter=adapter, n_way=n_way, n_shot=n_shot))
    experiment = build_experiment(read_recipe(path, load().catalogue))
    learner = experiment.learner.eval()
    episode: fsl.Episode = experiment.source.batch("test", range(1), 0).unbatch()[0]
    with torch.no_grad():
        return milliseconds(lambda: learner.adapt(episode))


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="cores for each operation"
    )
    parser.add_argument(
        "--adaptations",
        action="store_true",
        help="time whole adaptations as well; the full kernels take minutes",
    )
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    text = f"""# Cost of closed-form inner loops

After this page you know what one solution in closed form costs as the support set grows.

`python benchmarks/solver.py` writes this page. Measured with torch {torch.__version__},
{platform.machine()}, {given.threads} thread(s), CPU, median of 15.

## Solver

Milliseconds for one task in float64, with the kernel matrix of 64 features: dual weights alone /
with their gradient. `solve` is the Cholesky solution. The others are the finite time of
`meta-rkhs-ii`.

{table(["support set", "n", *SOLVERS], solver_rows())}
"""
    if given.adaptations:
        with TemporaryDirectory() as folder:
            header = [
                "adapter",
                "5-way 1-shot, ms",
                "5-way 5-shot, ms",
                "share of MAML, 1-shot",
                "5-shot",
            ]
            text += f"""
## Adaptation

Conv4-64 on pictures of 28x28, one task, from support set to predictor without gradients.

{table(header, adaptation_rows(Path(folder)))}
"""
    else:
        text += (
            "\nThe page on [speed](speed.md#adaptation-time) has the times of whole adaptations.\n"
        )
    PAGE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
