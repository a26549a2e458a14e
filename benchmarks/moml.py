"""MOML against MAML on 25 sine waves, by the protocol of the authors' code.

    python -m benchmarks.moml --seeds 5 --out docs/results

Trains `recipes/sinusoid/maml-moml.yaml` with the settings of METHODS by `benchmarks.waves`: all
seeds of a method side by side, with the waves and first weights that `fsl run` has. What is trained
is kept under --runs, a file for each method, and gone on from. Writes `<out>/moml.md`.

Protocol and settings: bokun-wang/moml, sinewave/, the code of arXiv:2106.04911.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from scipy import stats  # type: ignore[import-untyped]  # it ships no types

import fsl_core as fsl
from benchmarks.waves import Array, Fit, Method, Trainings, adapt
from fsl_core.assembly.experiment import Experiment, build_experiment
from fsl_core.files.writing import replacing

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "sinusoid" / "maml-moml.yaml"
METHODS = {
    "MAML": Method(rate=0.001),
    "MOML": Method(rate=0.005, beta=0.3),
    "MOML V2": Method(rate=0.005, beta=0.1, drifts=True),
}
"""One point of a wave, K = 1: the authors' README."""

PARTS = 20
"""Parts of a training, with the weights kept after each."""

DECIDES = ("seed", "episodes", "backbone", "adapter", "outer")
"""Sections of the recipe that say what is trained."""

PROTOCOL = 5
"""Test waves of the authors' code."""


def experiments(seeds: int, settings: Sequence[str]) -> list[Experiment]:
    """The recipe's parts, for each seed."""
    return [
        build_experiment(fsl.load_recipe(RECIPE, [f"seed={seed}", *settings]))
        for seed in range(seeds)
    ]


def train(method: Method, of: Sequence[Experiment], path: Path, until: int = PARTS) -> Array:
    """(parts done + 1, seeds, P): weights before training and after each part of it.

    All seeds of a method, with the recipe's waves, schedule and first weights. What is done is
    written to `path` after each part, and gone on from there.

    until: the part to stop after.
    """
    recipe, tasks = of[0].recipe.sections, of[0].source.tasks
    assert tasks is not None  # the recipe has a grid
    theta = np.stack([first_weights(experiment) for experiment in of])
    size, hidden, adapter = recipe.outer.meta_batch_size, hidden_of(of[0]), recipe.adapter
    inner = (adapter.inner_lr, adapter.order)
    rows = Trainings(theta, [method] * len(of), tasks, size, hidden, *inner)
    weights, steps = theta[None], recipe.outer.steps // PARTS
    if path.is_file():
        stored = np.load(path)
        weights = stored["weights"]
        rows.restore({name: stored[name] for name in stored if name != "weights"})
    for part in range(len(weights) - 1, until):
        ids, points = drawn(of, part * steps, steps, size)
        for k in range(steps):
            late = sum(part * steps + k >= m for m in recipe.outer.schedule.milestones)
            rows.step(ids[k], points[k], 0.1**late)
        weights = np.concatenate([weights, rows.theta[None]])
        with replacing(path) as new, new.open("wb") as file:
            np.savez(file, allow_pickle=False, weights=weights, **rows.state())
        print(f"{path.stem}: {(part + 1) * steps} of {steps * PARTS} steps", flush=True)
    return weights[: until + 1]


def first_weights(experiment: Experiment) -> Array:
    return np.concatenate([p.detach().numpy().reshape(-1) for p in experiment.learner.parameters()])


def hidden_of(experiment: Experiment) -> int:
    """The width of both hidden layers."""
    width, again = experiment.recipe.sections.backbone.hidden
    if width != again:
        raise SystemExit(f"{RECIPE}: hidden layers of {width} and {again} units. Equal ones")
    return int(width)


def drawn(of: Sequence[Experiment], first: int, steps: int, size: int) -> tuple[Array, Array]:
    """The tasks of some steps, (steps, seeds, size), and points, (steps, seeds, size, 4, k)."""
    ids, points = [], []
    for experiment in of:
        indices = range(first * size, (first + steps) * size)
        batch = experiment.source.batch("train", indices, experiment.recipe.sections.seed)
        ids.append(batch.id.numpy().reshape(steps, size))
        sets = [part.numpy()[..., 0] for part in (*batch.support, *batch.query)]
        points.append(np.stack(sets, 1).reshape(steps, size, 4, -1))
    return np.stack(ids, 1), np.stack(points, 1)


def on_training_waves(weights: Array, of: Experiment) -> Array:
    """(n, waves) loss at 100 points of each training wave after one step on 100 others."""
    waves, grid = of.source.tasks or 0, of.recipe.sections.episodes.grid.model_dump()
    source = build_experiment(
        fsl.load_recipe(RECIPE, {"episodes.grid": grid, "episodes.order": "in-turn"})
    ).source
    shape = replace(source.task, n_shot=100, n_query=100)
    return losses(weights, source.batch("train", range(waves), 0, shape), of, steps=1)


def on_test_waves(weights: Array, of: Experiment) -> Array:
    """(n, waves) loss of the recipe's test episodes after its test steps."""
    wanted, steps = of.recipe.sections.evaluate, of.recipe.sections.adapter.test_steps
    batch = of.source.batch("test", range(wanted.episodes), wanted.seed, of.test_task)
    return losses(weights, batch, of, steps)


def losses(weights: Array, batch: fsl.Episode, of: Experiment, steps: int) -> Array:
    """(n, episodes) query loss of each network on each episode after adaptation to it."""
    hidden, inner_lr = hidden_of(of), of.recipe.sections.adapter.inner_lr
    x, y, asked_x, asked_y = (p.numpy()[..., 0] for p in (*batch.support, *batch.query))
    found = []
    for row in weights:
        rows = adapt(np.tile(row, (len(x), 1)), x, y, hidden, inner_lr, steps)
        found.append(Fit(rows, asked_x, asked_y, hidden).loss)
    return np.stack(found)


def place(folder: Path, name: str, method: Method, of: Sequence[Experiment]) -> Path:
    """The file of a method's trainings: another one for another recipe."""
    decides = [{key: e.recipe.resolved()[key] for key in DECIDES} for e in of]
    text = json.dumps([asdict(method), decides], default=str)
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return folder / f"{name.lower().replace(' ', '-')}-{digest}.npz"


def over_seeds(values: Array) -> tuple[float, float]:
    """Mean, and half the 95 % interval by Student's t; nan with one seed."""
    half = np.nan
    if len(values) > 1:
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return float(values.mean()), float(half)


def told(values: Array, sign: str = "") -> str:
    mean, half = over_seeds(values)
    return f"{mean:{sign}.3f}" + ("" if np.isnan(half) else f" ± {half:.3f}")


def verdict(differences: Array) -> str:
    """In words, for a loss: below zero is better than MAML."""
    if lost := int((~np.isfinite(differences)).sum()):
        return f"{lost} of {len(differences)} diverged"
    mean, half = over_seeds(differences)
    if np.isnan(half) or abs(mean) <= half:
        return "no difference beyond the interval"
    return "better than MAML" if mean < 0 else "worse than MAML"


HEADER = """# MOML against MAML

After this page you know whether remembering personalised weights helped on the task of the
authors' own code, and by how much.

The protocol is that of bokun-wang/moml, sinewave/, the code of Wang et al. 2021, arXiv:2106.04911:
25 waves y = a sin(x + pi k / 5) with a and k from 1 to 5, x in -5 .. 5; a network 1 - 40 - 40 - 1;
three waves a step, drawn with replacement; one point to adapt to and one to be asked; one inner
step of 0.01; plain SGD whose rate falls to a tenth after three quarters. Rates and beta are those
of the authors' README for one point: MAML 0.001, MOML 0.005 and 0.3, MOML V2 0.005 and 0.1. That
code keeps no graph of the inner gradient, so all its methods are first-order, and so are these. It
prints no figure that could be compared, so this page holds the ordering alone.

What differs: every seed has first weights of its own (there, all have the same); a memory begins
with the support set of a task's first visit; a task drawn twice in a step counts twice in V2
(there, once); test waves are drawn from the same ranges by another generator.

`python -m benchmarks.moml` writes this page. It trains all seeds of a method side by side with
derivatives written out (`benchmarks/waves.py`), because one step of `fsl run` takes longer than all
of these. Tests hold its steps to those of fsl-maml and fsl-moml. Waves, order and first weights are
those of `fsl run recipes/sinusoid/maml-moml.yaml -s seed=N`. ± is 95 % over seeds by Student's t.

"""


def page(weights: dict[str, Array], of: Experiment) -> str:
    """weights: of each method, as `train` gives them."""
    parts, seeds = next(iter(weights.values())).shape[:2]
    every = {name: np.concatenate(w) for name, w in weights.items()}
    ends = {name: np.concatenate([w[0], w[-1]]) for name, w in weights.items()}
    trained = {n: on_training_waves(w, of).mean(1).reshape(parts, -1) for n, w in every.items()}
    tested = {name: on_test_waves(w, of) for name, w in ends.items()}
    first = {name: t[:, :PROTOCOL].mean(1).reshape(2, -1) for name, t in tested.items()}
    whole = {name: t.mean(1).reshape(2, -1) for name, t in tested.items()}
    waves, steps = len(tested["MAML"][0]), of.recipe.sections.outer.steps
    done, plural = (parts - 1) * steps // PARTS, "s" if seeds > 1 else ""
    short = f", of {steps} in the protocol: the rate has not fallen yet" if done < steps else ""
    return HEADER + "\n".join(
        [
            f"{done} steps{short}. {seeds} seed{plural}. All figures are mean squared errors.",
            "",
            *table("The training waves, at 100 points after one step on 100 others", trained),
            *table(f"{PROTOCOL} waves never trained on, after ten steps on ten points", first),
            *table(f"{waves} waves never trained on, in the same way", whole),
            *curve(trained, steps // PARTS),
        ]
    )


def table(title: str, scores: dict[str, Array]) -> Iterator[str]:
    """scores: (parts, seeds) by method; the first part is before training."""
    maml = scores["MAML"][-1]
    seeds = range(len(maml))
    yield from (f"## {title}", "")
    yield "| | mean | minus MAML | | " + " | ".join(f"seed {seed}" for seed in seeds) + " |"
    yield "|" + "---|" * (len(maml) + 4)
    rows = {"untrained": scores["MAML"][0], **{m: s[-1] for m, s in scores.items()}}
    for name, row in rows.items():
        compared = name not in ("MAML", "untrained")
        minus, words = (told(row - maml, "+"), verdict(row - maml)) if compared else ("", "")
        cells = " | ".join(f"{value:.3f}" for value in row)
        yield f"| {name} | {told(row)} | {minus} | {words} | {cells} |"
    yield ""


def curve(scores: dict[str, Array], steps: int) -> Iterator[str]:
    """steps: of one part."""
    yield from ("## The training waves during training", "", "Means over seeds.", "")
    yield "| steps | " + " | ".join(scores) + " |"
    yield "|" + "---|" * (len(scores) + 1)
    for part, _ in enumerate(scores["MAML"]):
        cells = " | ".join(f"{row[part].mean():.3f}" for row in scores.values())
        yield f"| {part * steps} | {cells} |"
    yield ""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each method")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument(
        "--until",
        type=int,
        choices=range(1, PARTS + 1),
        default=PARTS,
        metavar="N",
        help="stop after N of 20 parts",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="of the page")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs") / "moml", help="folder of what is trained"
    )
    parser.add_argument(
        "-s", "--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe"
    )
    given = parser.parse_args(arguments)
    of = experiments(given.seeds, given.set)
    given.runs.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in given.methods:
        path = place(given.runs, name, METHODS[name], of)
        found[name] = train(METHODS[name], of, path, given.until)
    if "MAML" in found:  # what the others are compared with
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "moml.md").write_text(page(found, of[0]), encoding="utf-8")


if __name__ == "__main__":
    main()
