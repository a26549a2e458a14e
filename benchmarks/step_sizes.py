"""Meta-gradients of a step size on a quadratic: plain, and of the logarithm.

    python -m benchmarks.step_sizes --out docs/results

Writes `<out>/step-sizes.md` and `<out>/step-sizes.svg`; it takes seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import torch
from torch import Tensor

CURVATURES = torch.linspace(0.25, 1, 4, dtype=torch.float64)
"""Eigenvalues of the quadratic; gradient descent is stable below a step of 2."""
STEPS = (10, 80, 400)
RATES = (1.5, 2.5)
HEADER = """# Step sizes: many inner steps, and the logarithm of the loss

After this page you know why meta-gradients vanish or explode with the number of inner steps, and
what two options do about it: `inner_lr_rule: per-step` of `maml` and the weighting `log-loss`.

`python -m benchmarks.step_sizes` writes this page. All of it is arithmetic on small quadratics, in
float64; no network is trained.
"""
FENCE = """
```python
import torch

curvatures = torch.linspace(0.25, 1, 4, dtype=torch.float64)


def loss(rate, steps):
    w = (1 - rate * curvatures) ** steps
    return (curvatures * w**2).sum() / 2


for start, vanishes in [(1.5, True), (2.5, False)]:
    rate = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    (plain,) = torch.autograd.grad(loss(rate, 400), rate)
    (of_log,) = torch.autograd.grad(loss(rate, 400).log() / 400, rate)
    assert (abs(plain) < 1e-100) == vanishes
    assert 0.1 < abs(of_log) < 10
```
"""


def plain(rate: float, steps: int) -> float:
    """d/drate of f(w_t), f(w) = w' H w / 2, w_t = (I - rate H)^t w_0 with w_0 = (1, .., 1)."""
    h = CURVATURES
    return (-steps * h.square() * (1 - rate * h) ** (2 * steps - 1)).sum().item()


def log_loss(rate: Tensor, steps: int, curvatures: Tensor = CURVATURES) -> Tensor:
    """(1 / t) log f(w_t), of a unit vector and the logarithm of its length: finite for any t."""
    w, length = torch.ones_like(curvatures), torch.zeros_like(rate)
    for _ in range(steps):
        w = (1 - rate * curvatures) * w
        norm = w.norm()
        w, length = w / norm, length + norm.log()
    return (2 * length + ((curvatures * w.square()).sum() / 2).log()) / steps


def of_log(rate: float, steps: int) -> float:
    """d/drate of `log_loss`."""
    at = torch.tensor(rate, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(log_loss(at, steps), at)[0].item()


def lipschitz(rate: float, steps: int) -> float:
    """Of the meta-gradient by w_0, over curvatures from -1 to 1."""
    h = torch.linspace(-1, 1, 9, dtype=torch.float64)
    return (h * (1 - rate * h) ** (2 * steps)).abs().max().item()


def tuned(items: int, dim: int = 50, steps: int = 80, draws: int = 20) -> dict[str, float]:
    """Excess risk after `steps` steps of the best rate of a grid, by which loss it was chosen.

    Regression y = x' w + normal noise. support: the loss of the items that the steps follow. query:
    that of as many others. best: the risk itself. Medians over draws.
    """
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {"support": [], "query": [], "best": []}
    for _ in range(draws):
        truth = torch.randn(dim, generator=generator, dtype=torch.float64) / dim**0.5
        x, y, held_x, held_y = (
            part for _ in range(2) for part in _regression(items, truth, generator)
        )
        rates = torch.logspace(-3, 0, 60, dtype=torch.float64)[:, None]
        w = torch.zeros(len(rates), dim, dtype=torch.float64)
        for _ in range(steps):
            w = w - rates * (w @ x.T - y) @ x / items
        risk = (w - truth).square().sum(1).nan_to_num(torch.inf)
        losses = {"support": (x, y), "query": (held_x, held_y)}
        for name, (inputs, values) in losses.items():
            loss = (w @ inputs.T - values).square().mean(1).nan_to_num(torch.inf)
            found[name].append(risk[loss.argmin()].item())
        found["best"].append(risk.min().item())
    return {name: torch.tensor(values).median().item() for name, values in found.items()}


def _regression(items: int, truth: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(items, len(truth), generator=generator, dtype=torch.float64)
    return x, x @ truth + torch.randn(items, generator=generator, dtype=torch.float64)


def page() -> str:
    """The Markdown text."""
    rows = "\n".join(
        f"| {rate} | {steps} | {plain(rate, steps):.1e} | {of_log(rate, steps):.2f} |"
        for rate in RATES
        for steps in STEPS
    )
    bounds = "\n".join(
        f"| {n} | {lipschitz(1.0, n):.3g} | {lipschitz(1.0 / n, n):.3g} |"
        for n in (1, 2, 4, 8, 16, 32)
    )
    risks = "\n".join(
        f"| {items} | {risk['support']:.2f} | {risk['query']:.2f} | {risk['best']:.2f} |"
        for items in (25, 500)
        for risk in [tuned(items)]
    )
    return f"""{HEADER}
## A learned step size

t steps of rate a on `f(w) = w' H w / 2` end at `w_t = (I - a H)^t w_0`. The curvatures here are
0.25 to 1, so that steps are stable below a = 2. The table has the derivative by a of `f(w_t)`, and
of `(1 / t) log f(w_t)`:

| a | t | of the loss | of its logarithm over t |
|---|---|---|---|
{rows}

![The plain derivative falls or grows without end; that of the logarithm stays](step-sizes.svg)

Below a = 2 the plain derivative vanishes with t, above it explodes. That of the logarithm over t
keeps its size. This is the published result of Wang, Yuan, Wu and Ge 2021,
[arXiv:2006.16495](https://arxiv.org/abs/2006.16495), with figures of our own. By autograd:
{FENCE}
Over a meta-batch the weighting `log-loss` follows the mean logarithm. A task then weighs in inverse
proportion to its loss, the opposite of `worst-case`. It is meant for regression: of a cross-entropy
near 0 a solved task weighs most.

## A rate by the number of steps

By `w_0`, the derivative of `f(w_t)` has the Lipschitz constant max `|h| (1 - a h)^(2 N)` over the
curvatures h. With curvatures from -1 to 1, as a network may have, N steps of rate 1 and of rate
1 / N:

| N | a = 1 | a = 1 / N |
|---|---|---|
{bounds}

With a rate that is divided by the number of steps the constant stays below e² = 7.39. `adapter:
{{name: maml, inner_lr_rule: per-step}}` does so, after the abstract of Ji, Yang and Liang 2022,
[arXiv:2002.07836](https://arxiv.org/abs/2002.07836). `fsl check` tells of it where the steps of a
recipe times their rate are above 1. That bound is a rule of thumb of this project: curvatures
differ between networks.

Both options have a recipe on pictures, `recipes/glyphs/5w1s-maml-per-step.yaml` and
`5w1s-maml-log-loss.yaml`. [A figure](index.md#glyphs-5-way-1-shot) is there of the second.

## Which loss tunes it

Linear regression with 50 inputs, noise of variance 1 and 80 steps, whose rate is the best of 60
by the loss of the items that the steps follow (`query: support` of `maml`), or by that of as many
others. Excess risk, median of 20 draws; the last column is the best rate of the 60 for the risk
itself:

| items | by the support loss | by the query loss | at best |
|---|---|---|---|
{risks}

With few items the support loss takes the rate that fits their noise. With many the two are near one
another, as in arXiv:2006.16495.
"""


def draw(path: Path) -> None:
    """Both derivatives over the number of steps."""
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "step-sizes"  # the same file for the same figures
    from matplotlib import pyplot as plt

    counts = range(1, 401, 3)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for rate in RATES:
        axes[0].semilogy(counts, [abs(plain(rate, t)) for t in counts], label=f"rate {rate}")
        axes[1].plot(counts, [of_log(rate, t) for t in counts], label=f"rate {rate}")
    for axis, title in zip(axes, ("|d f / d rate|", "d (1/t) log f / d rate"), strict=True):
        axis.set(title=title, xlabel="inner steps t")
        axis.legend()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs") / "results", help="folder")
    given = parser.parse_args(arguments)
    (given.out / "step-sizes.md").write_text(page(), encoding="utf-8")
    draw(given.out / "step-sizes.svg")


if __name__ == "__main__":
    main()
