"""How estimates of the meta-gradient compare: direction, cost, and the score of trained runs.

    python -m benchmarks.hypergradients cosine --root DATA     cosine with the exact gradient
    python -m benchmarks.hypergradients cost                   seconds and memory of a task
    python -m benchmarks.hypergradients scores SWEEP...        scores of trained runs
    python -m benchmarks.hypergradients page                   the page

The first three write what they measured to `<out>/hypergradients.json`, beside what is there; the
last one reads it, and writes `<out>/hypergradients.md`. A SWEEP is a folder that `fsl sweep` of
`recipes/matrix/hypergradients-omniglot.yaml` or `hypergradients-cifar-fs.yaml` wrote.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from math import isfinite, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

ROOT = Path(__file__).parent.parent
OMNIGLOT = ROOT / "recipes" / "omniglot" / "5w1s-imaml-small.yaml"
GLYPHS = ROOT / "recipes" / "glyphs" / "5w1s-maml-truncated.yaml"
STEPS = (1, 5, 10, 50)
ESTIMATES: dict[str, dict[str, Any]] = {
    "unrolled": {},
    "truncated, K = 1": {"steps": 1},
    "first-order": {},
    "implicit": {"iterations": 5},
    "finite-difference": {},
    "gaussian-smoothing": {"directions": 10},
    "reptile": {},
    "sgld": {"steps": 10, "burn_in": 5, "temperature": 5.0, "noise": 0.01},
}
LEVEL = 0.05
"""Of the paired tests, with Holm's correction."""

HEADER = """# Estimates of the meta-gradient

After this page you know how far each estimate of the meta-gradient points from the exact one, and
what else was measured of it.

`benchmarks/hypergradients.py` writes this page. The options of the estimates are their defaults,
but for those that the first table names. All estimates are of one inner problem, that of
`recipes/omniglot/5w1s-imaml-small.yaml` (MAML with a proximal term), whose unrolled gradient is
exact. It is measured at inner rate 0.2, a proximal weight of 1, and no damping.
"""
TRAINED = """Five-way one-shot, Conv4-8, T = 5 inner steps of 0.2, meta-batches of 4 tasks, the same
outer steps, outer rate and frozen test episodes for every row (`reptile` has plain SGD, because it
is an interpolation). **The budgets are short and nothing has converged**: the figures say what
learns quickly, not what ends highest. No row is tuned. `implicit` has the damping and the offset of
iMAML's code, and it and `sgld` have a proximal term in training. `aggregated step` is the inner
step of BDA, the option `aggregate` of `maml`, under the unrolled derivative.

Accuracy is the mean over seeds and test episodes, ± 95 % over test episodes. A difference is paired
over episodes; **bold** is better than unrolled and *italic* is worse, at the level 0.05 with Holm's
correction. Both are about these trained runs; the column of seeds shows how far trainings differ.
"""


def measure_cosine(
    root: str, steps: Sequence[int], batches: int, warm_up: int, channels: int
) -> dict[str, dict[str, list[float]]]:
    """By inner steps and estimate: the cosine with the exact meta-gradient of each meta-batch."""
    found: dict[str, dict[str, list[float]]] = {}
    for count in steps:
        experiment = _experiment(OMNIGLOT, count, channels, {"episodes.root": root})
        _warm_up(experiment, warm_up)
        columns: dict[str, list[float]] = {}
        for batch in range(batches):
            episodes = experiment.source.batch(
                "train", range(10**6 + 4 * batch, 10**6 + 4 * batch + 4), 0
            )
            exact = None
            for name in ESTIMATES:
                gradient = _gradient(experiment, name, episodes)
                exact = gradient if exact is None else exact
                columns.setdefault(name, []).append(_cosine(gradient, exact))
            print(f"T = {count}, meta-batch {batch + 1} of {batches}", file=sys.stderr, flush=True)
        found[str(count)] = columns
    return found


def _experiment(recipe: Path, inner_steps: int, channels: int, options: dict[str, Any]) -> Any:
    import fsl_core as fsl
    from fsl_core.assembly.experiment import build_experiment

    sizes: dict[str, Any] = {"adapter.inner_steps": inner_steps, "backbone.channels": channels}
    if recipe == OMNIGLOT:
        sizes |= {"adapter.inner_lr": 0.2, "adapter.proximal": 1.0}
    unrolled = {"outer.hypergradient": {"name": "unrolled"}}
    return build_experiment(fsl.load_recipe(recipe, sizes | unrolled | options))


def _estimate(name: str, task: Any) -> Any:
    word = name.split(",")[0]
    factory: Callable[..., Any] = _catalogue().get("hypergradient", word).factory
    wants_task = {"task": task} if word == "sgld" else {}
    return factory(**wants_task, **ESTIMATES[name])


@cache
def _catalogue() -> Any:
    from fsl_core.hooks.loader import load

    return load().catalogue


def _gradient(experiment: Any, name: str, episodes: Any) -> Any:
    import torch

    import fsl_core as fsl
    from fsl_core.builtin.uniform import Uniform
    from fsl_core.engine.meta_gradient import meta_gradient

    task = experiment.source.task
    parts = experiment.learner
    learner = fsl.Learner(parts.backbone, parts.adapter, _estimate(name, task)).train()
    meta_gradient(learner, Uniform(), episodes, task.loss)
    found = ((p, p.grad) for p in learner.parameters() if p.requires_grad)
    return torch.cat([(0 * p.detach() if g is None else g).flatten() for p, g in found])


def _cosine(one: Any, other: Any) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def _warm_up(experiment: Any, steps: int) -> None:
    """Some outer steps by the first-order gradient: at random weights all directions agree more."""
    import torch

    learned = [p for p in experiment.learner.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=0.003)
    for step in range(steps):
        _gradient(
            experiment,
            "first-order",
            experiment.source.batch("train", range(4 * step, 4 * step + 4), 0),
        )
        optimizer.step()


def measure_cost(steps: Sequence[int], channels: int, rounds: int) -> dict[str, dict[str, Any]]:
    """By inner steps and estimate: the best seconds of a task, and bytes above those of no task.

    Each in a process of its own on one thread, on glyphs.
    """
    found: dict[str, dict[str, Any]] = {}
    for count in steps:
        for name in ESTIMATES:
            words = ["one", name, str(count), str(channels), str(rounds)]
            command = [sys.executable, "-m", "benchmarks.hypergradients", *words]
            told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
            found.setdefault(str(count), {})[name] = json.loads(told.stdout.splitlines()[-1])
            print(f"T = {count}, {name}: {told.stdout.splitlines()[-1]}", file=sys.stderr)
    return found


def one(name: str, inner_steps: int, channels: int, rounds: int) -> dict[str, float]:
    """Seconds and bytes of one estimate, in this process."""
    import resource

    import torch

    torch.set_num_threads(1)
    experiment = _experiment(GLYPHS, inner_steps, channels, {"adapter.proximal": 1.0})
    episodes = experiment.source.batch("train", range(1), 0)
    _gradient(experiment, "first-order", episodes)  # what torch and the libraries take
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(rounds):
        started = time.process_time()
        _gradient(experiment, name, episodes)
        seconds.append(time.process_time() - started)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": min(seconds), "bytes": 1024.0 * (after - before)}


def read_scores(sweep: Path) -> dict[str, Any]:
    """The rows of a sweep over estimates, each with the score of every seed and its difference."""
    runs = [_result(file) for file in sorted((sweep / "runs").glob("*/result.json"))]
    by_row: dict[str, list[float]] = {}
    for run in sorted(runs, key=lambda run: run["seed"]):
        words = run["recipe"].split(": ", 1)[1].split(", ")
        label = ", ".join(word for word in words if not word.startswith("seed "))
        by_row.setdefault(label, []).append(run["accuracy"])
    judged = {row["estimate"]: row for row in _rows(sweep / "differences.csv")}
    budget = {key: runs[0][key] for key in ("episodes_name", "steps", "episodes", "episode_set")}
    kept = ("accuracy", "interval")
    rows = {
        row["estimate"]: {
            **{key: float(row[key]) for key in kept},
            "seeds": by_row[row["estimate"]],
            "minus_baseline": _difference(judged.get(row["estimate"])),
        }
        for row in _rows(sweep / "sweep.csv")
    }
    return budget | {"rows": rows}


def _difference(row: dict[str, str] | None) -> list[float] | None:
    return [float(row[key]) for key in ("difference", "interval", "p_holm")] if row else None


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def page(measured: dict[str, Any]) -> str:
    """The Markdown text."""
    sections = [HEADER]
    if "cosine" in measured:
        sections.append("\n".join(_cosines(**measured["cosine"])))
    if "cost" in measured:
        sections.append("\n".join(_costs(measured["cost"])))
    if "scores" in measured:
        sections.append("\n".join(_scores(measured["scores"])))
    return "\n".join(sections)


def _cosines(
    warm_up: int, channels: int, values: dict[str, dict[str, list[float]]]
) -> Iterator[str]:
    yield from ("## Cosine with the exact gradient", "")
    yield (
        f"Omniglot, Conv4-{channels}, meta-batches of 4 tasks, after {warm_up} first-order outer\n"
        "steps. Mean over meta-batches, whose number the head names, ± 1.96 standard\nerrors."
    )
    head = [f"T = {count} ({len(columns['unrolled'])})" for count, columns in values.items()]
    yield from ("", f"| estimate | {' | '.join(head)} |")
    yield "|" + "---|" * (len(values) + 1)
    for name, options in ESTIMATES.items():
        told = ", ".join(f"`{key}: {value}`" for key, value in options.items())
        cells = [_mean(columns[name]) if name in columns else "" for columns in values.values()]
        yield "| " + " | ".join([f"{name.split(',')[0]} {told}".strip(), *cells]) + " |"
    yield ""


def _mean(values: Sequence[float]) -> str:
    finite = [value for value in values if isfinite(value)]
    lost = f" ({len(values) - len(finite)} not finite)" if len(finite) < len(values) else ""
    if not finite:
        return lost.strip(" ()")
    spread = 1.96 * stdev(finite) / sqrt(len(finite)) if len(finite) > 1 else 0.0
    return f"{fmean(finite):.3f} ± {spread:.3f}{lost}"


def _costs(values: dict[str, dict[str, dict[str, float]]]) -> Iterator[str]:
    yield from ("## Cost of a task", "")
    yield (
        "Processor seconds of one task on one thread, the best of several, and the peak of "
        "resident memory above that of a first-order task."
    )
    yield from ("", "| estimate | " + " | ".join(f"T = {count}" for count in values) + " |")
    yield "|" + "---|" * (len(values) + 1)
    for name in ESTIMATES:
        cells = [
            f"{row[name]['seconds']:.3f} s, {row[name]['bytes'] / 2**20:.0f} MiB"
            for row in values.values()
        ]
        yield "| " + " | ".join([name, *cells]) + " |"
    yield ""


def _scores(sweeps: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield from ("## Trained runs", "", TRAINED)
    for name, sweep in sweeps.items():
        yield from (f"### {name}", "")
        yield (
            f"`fsl sweep recipes/matrix/hypergradients-{name}.yaml`: {sweep['steps']} outer steps, "
            f"{sweep['episodes']} test episodes."
        )
        yield from ("", "| estimate | accuracy | of each seed | minus unrolled |")
        yield "|" + "---|" * 4
        for label, row in sweep["rows"].items():
            cells = [
                label,
                f"{row['accuracy']:.3f} ± {row['interval']:.3f}",
                ", ".join(f"{score:.3f}" for score in row["seeds"]),
                _told_difference(row["minus_baseline"]),
            ]
            yield "| " + " | ".join(cells) + " |"
        yield ""


def _told_difference(found: list[float] | None) -> str:
    if found is None:
        return ""
    difference, interval, p = found
    text = f"{difference:+.3f} ± {interval:.3f}"
    if p >= LEVEL:
        return text
    return f"**{text}**" if difference > 0 else f"*{text}*"


def _result(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["cosine", "cost", "scores", "page", "one"])
    parser.add_argument("words", nargs="*", help="of scores: folders of sweeps")
    parser.add_argument("--root", help="folder of Omniglot's archives")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--warm-up", type=int, default=20)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    given = parser.parse_args(arguments)
    if given.part == "one":
        name, *sizes = given.words
        print(json.dumps(one(name, *map(int, sizes))))
        return
    kept = given.out / "hypergradients.json"
    measured = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    if given.part == "page":
        (given.out / "hypergradients.md").write_text(page(measured), encoding="utf-8")
        return
    if given.part == "cosine":
        values = measure_cosine(
            given.root, given.steps, given.batches, given.warm_up, given.channels
        )
        known = measured.get("cosine", {}).get("values", {})
        measured["cosine"] = {
            "warm_up": given.warm_up,
            "channels": given.channels,
            "values": known | values,
        }
    elif given.part == "scores":
        found = [read_scores(Path(word)) for word in given.words]
        measured["scores"] = {sweep["episodes_name"]: sweep for sweep in found}
    else:
        measured["cost"] = measure_cost(given.steps, given.channels, given.rounds)
    kept.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
