"""Wormhole against MAML on conflicting tasks.

The same seeds, paired intervals, and a figure for each experiment.

    python benchmarks/wormhole.py --seeds 5 --log-conflict 10 --out docs/results

Runs `recipes/wormhole/<experiment>-{wormhole,maml}.yaml` once a seed (finished runs of the same
recipe under --runs are read again) and writes `<out>/wormhole.md` and
`<out>/wormhole-<experiment>.svg`. MNIST is read from FSL_DATA, or downloaded.

After the abstract of arXiv 2212.14094. The update rule, defaults and tasks are this project's
interpretation; the paper's text was not available.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from scipy import stats  # type: ignore[import-untyped]  # it ships no types

ROOT = Path(__file__).parent.parent
METHODS = ("wormhole", "maml")
TITLES = {
    "threshold": "Threshold comparison",
    "wavelet": "Wavelet transform",
    "mnist": "MNIST",
}
CONFLICT = {
    "gradient_cosine": "mean pairwise cosine",
    "gradient_conflict": "share of negative pairs",
}
WINDOW = 25
"""Records that a point of a curve is the mean of."""


@dataclass(frozen=True)
class Finished:
    """What a run left behind.

    scores: of the test episodes.
    curves: for each metric of training, (2, n): steps and values.
    """

    result: dict
    scores: np.ndarray
    curves: dict[str, np.ndarray]


@dataclass(frozen=True)
class Paired:
    """Differences between two methods, judged on the same episodes, for each seed.

    episodes: mean and half-width of the 95 % interval over episodes, each averaged over seeds: for
        these trained networks.
    seeds: the same over the seeds' means, with Student's t: for another training run. nan with a
        single seed.
    """

    by_seed: list[tuple[float, float]]
    episodes: tuple[float, float]
    seeds: tuple[float, float]


def paired(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> Paired:
    """first, second: scores by seed, (episodes,) each."""
    differences = np.stack(first) - np.stack(second)
    by_seed = [(row.mean(), 1.96 * stats.sem(row)) for row in differences]
    pooled, means = differences.mean(0), differences.mean(1)
    over_seeds = stats.t.ppf(0.975, len(means) - 1) * stats.sem(means) if len(means) > 1 else np.nan
    return Paired(by_seed, (pooled.mean(), 1.96 * stats.sem(pooled)), (means.mean(), over_seeds))


def run_name(recipe: Path, seed: int, settings: Sequence[str]) -> str:
    """Another folder for another recipe or setting, so that no stale run is read."""
    told = "\n".join([recipe.read_text(encoding="utf-8"), *settings])
    digest = hashlib.blake2b(told.encode(), digest_size=4)
    return f"{recipe.stem}-seed{seed}-{digest.hexdigest()}"


def run_recipe(recipe: Path, seed: int, directory: Path, settings: Sequence[str]) -> Finished:
    """Train and judge with `fsl run`, or go on with a run that was broken off.

    Nothing is done if the directory holds the finished run.
    """
    if not (directory / "result.json").is_file():
        options = [word for setting in (f"seed={seed}", *settings) for word in ("-s", setting)]
        fresh = ["run", str(recipe), "--out", str(directory), *options]
        begun = (directory / "recipe.yaml").is_file()
        arguments = ["resume", str(directory)] if begun else fresh
        command = [sys.executable, "-m", "fsl_core", *arguments, "--device", "cpu"]
        finished = subprocess.run(command, check=False, capture_output=True, text=True)
        if finished.returncode:
            raise SystemExit(
                f"{' '.join(command)}: exit status {finished.returncode}.\n{finished.stderr}"
            )
    return read_run(directory)


def read_run(directory: Path) -> Finished:
    result = json.loads((directory / "result.json").read_text())
    with (directory / "episodes.csv").open() as file:
        scores = np.array([float(row[result["metric"]]) for row in csv.DictReader(file)])
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return Finished(result, scores, {name: _curve(records, name) for name in ("loss", *CONFLICT)})


def _curve(records: list[dict], name: str) -> np.ndarray:
    measured = [r for r in records if name in r and "split" not in r]
    points = [(record["step"], record[name]) for record in measured]
    return np.array(points, dtype=float).reshape(-1, 2).T


def smooth(curve: np.ndarray) -> np.ndarray:
    """Means of WINDOW neighbouring points, or of all points if there are fewer."""
    size = min(WINDOW, curve.shape[1])
    return np.stack([np.convolve(row, np.full(size, 1 / size), "valid") for row in curve])


def draw(runs: dict[str, list[Finished]], title: str, path: Path) -> None:
    """Query loss, and the conflict metrics if the runs hold them, over training.

    Mean and range over seeds.
    """
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "wormhole"  # the same file for the same figures
    from matplotlib import pyplot as plt

    panels = {"loss": "query loss"} | {
        n: label for n, label in CONFLICT.items() if runs["maml"][0].curves[n].size
    }
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5 * len(panels), 3.5), squeeze=False, layout="constrained"
    )
    for axis, (name, label) in zip(axes[0], panels.items(), strict=True):
        for method, finished in runs.items():
            curves = np.stack([smooth(run.curves[name]) for run in finished])
            steps, values = curves[0, 0], curves[:, 1]
            (line,) = axis.plot(steps, values.mean(0), label=method)
            axis.fill_between(
                steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.2, linewidth=0
            )
        axis.set(xlabel="outer step", ylabel=label)
    axes[0, 0].set_yscale("log")
    axes[0, 0].legend()
    figure.suptitle(f"{title}: mean and range of {len(runs['maml'])} seeds")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def section(experiment: str, runs: dict[str, list[Finished]], figure: str) -> str:
    """The table of one experiment, in Markdown."""
    results = {method: [run.result for run in finished] for method, finished in runs.items()}
    if len(sets := {r["episode_set"] for rs in results.values() for r in rs}) != 1:
        raise SystemExit(
            f"{experiment}: runs judged on {len(sets)} sets of episodes. The same `evaluate:` in "
            "both recipes"
        )
    metric, episodes = results["maml"][0]["metric"], results["maml"][0]["episodes"]
    difference = paired(*([run.scores for run in runs[method]] for method in METHODS))
    better = "above zero" if metric == "accuracy" else "below zero"
    rows = [
        f"| {r['seed']} | {r[metric]:.4f} | {m[metric]:.4f} | {mean:+.4f} ± {half:.4f} |"
        for r, m, (mean, half) in zip(
            *(results[method] for method in METHODS), difference.by_seed, strict=True
        )
    ]
    recipes = " and ".join(f"`recipes/wormhole/{experiment}-{method}.yaml`" for method in METHODS)
    return "\n".join(
        [
            f"## {TITLES[experiment]}",
            "",
            f"{recipes}.",
            f"{episodes} test episodes, the same for all. Wormhole is better if the "
            f"difference is {better}.",
            "",
            f"| seed | wormhole, {metric} | MAML, {metric} | difference |",
            "|---|---|---|---|",
            *rows,
            "",
            f"Over episodes, averaged over seeds: {_interval(difference.episodes)}. "
            f"Over {len(rows)} seeds (Student's t): {_interval(difference.seeds)}.",
            "",
            *_conflict_rows(runs),
            f"![Curves of {TITLES[experiment].lower()}]({figure})",
            "",
        ]
    )


def _interval(value: tuple[float, float]) -> str:
    mean, half = value
    if not np.isfinite(half):
        return f"{mean:+.4f}, no interval from one seed"
    return f"{mean:+.4f} ± {half:.4f}"


def _conflict_rows(runs: dict[str, list[Finished]]) -> list[str]:
    """Mean over the last fifth of training, with its range over seeds, if it was measured."""
    every_run = [run for finished in runs.values() for run in finished]
    if not all(run.curves[name].size for run in every_run for name in CONFLICT):
        return ["The conflict of the tasks' meta-gradients was not measured.", ""]
    rows = ["| last fifth of training | " + " | ".join(METHODS) + " |", "|---|---|---|"]
    for name, label in CONFLICT.items():
        cells = []
        for method in METHODS:
            tails = [_mean_of_tail(run.curves[name]) for run in runs[method]]
            cells.append(f"{np.mean(tails):.3f} ({min(tails):.3f} .. {max(tails):.3f})")
        rows.append(f"| {label} | " + " | ".join(cells) + " |")
    return [*rows, ""]


def _mean_of_tail(curve: np.ndarray) -> float:
    """Of the last fifth of its values."""
    return curve[1, -max(1, curve.shape[1] // 5) :].mean()


HEADER = """# Wormhole against MAML

After this page you know whether `wormhole` differed from MAML on three experiments with tasks that
conflict.

After the abstract of arXiv 2212.14094. The update rule, defaults and tasks are this project's
interpretation; the paper's text was not available. No figure here reproduces one of the paper,
because we knew none. Intervals are 95 %. `benchmarks/wormhole.py` writes this page.

"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="runs of each recipe, seeds 0, 1, ...")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "docs" / "results",
        help="folder of the page and its figures",
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs") / "wormhole", help="folder of the run directories"
    )
    parser.add_argument("--experiments", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument(
        "--log-conflict",
        type=int,
        default=0,
        metavar="N",
        help="measure conflict every N outer steps; 0: never",
    )
    parser.add_argument(
        "-s",
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="changes a key of every recipe",
    )
    given = parser.parse_args(arguments)
    settings = [*given.set]
    if given.log_conflict:
        settings.append(f"outer.log_conflict={given.log_conflict}")
    sections = []
    for experiment in given.experiments:
        runs: dict[str, list[Finished]] = {method: [] for method in METHODS}
        for seed in range(given.seeds):
            for method in METHODS:
                recipe = ROOT / "recipes" / "wormhole" / f"{experiment}-{method}.yaml"
                directory = given.runs / run_name(recipe, seed, settings)
                runs[method].append(run_recipe(recipe, seed, directory, settings))
                print(recipe.stem, "seed", seed, runs[method][-1].scores.mean(), flush=True)
        figure = f"wormhole-{experiment}.svg"
        given.out.mkdir(parents=True, exist_ok=True)
        draw(runs, TITLES[experiment], given.out / figure)
        sections.append(section(experiment, runs, figure))
    (given.out / "wormhole.md").write_text(HEADER + "\n".join(sections), encoding="utf-8")


if __name__ == "__main__":
    main()
