"""The plots of speed.md, as SVG."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams |= {
    "svg.hashsalt": "fsl-core",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
from matplotlib import pyplot as plt  # noqa: E402

from benchmarks.settings import name_of  # noqa: E402
from benchmarks.targets import ACCURACIES, RACES, TARGETS  # noqa: E402

COLOURS = {
    "ours": "#1f6feb",
    "others": ["#6e7781", "#bf8700", "#8250df", "#1a7f37", "#cf222e", "#57606a"],
}


def draw(results: dict, out: Path) -> dict[str, str]:
    """Write every plot there are figures for.

    {`ratios`, or a growth axis and where it was measured: file name}.
    """
    names = {}
    if any("ratios" in result for found in results.values() for result in found):
        names["ratios"] = _ratios(results, out)
    for result in results.get("growth", []):
        for key, axis in result.get("axes", {}).items():
            machine = name_of(result["machine"])
            names[f"{key}, {machine}"] = _growth(f"{key} {machine}", axis, out)
    return names


def _ratios(results: dict, out: Path) -> str:
    """A bar a race: how many times as long the target's peer takes, on a logarithmic scale.

    A tick marks the target.
    """

    bars, titles = [], RACES | ACCURACIES
    for target in TARGETS:
        for result in results.get(target.section, []):
            rival = target.rival or result.get("peer")
            if rival in result.get("ratios", {}):
                where = name_of(result["machine"])
                label = f"{titles[target.section]}, {where}\nagainst {rival}"
                bars.append((label, result["ratios"][rival], target.least))
    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.5 * len(bars)), layout="constrained")
    for row, (_, (value, low, high), least) in enumerate(bars):
        axes.barh(row, value, color=COLOURS["ours"], height=0.6)
        axes.plot([low, high], [row, row], color="black", linewidth=1.5)
        axes.plot([least, least], [row - 0.4, row + 0.4], color=COLOURS["others"][4], linewidth=2)
    axes.set_xscale("log")
    axes.set_yticks(range(len(bars)), [label for label, _, _ in bars])
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times as long as ours\n(line: 95 % interval; red: target)")
    return _save(figure, out, "speed-ratios.svg")


def _growth(key: str, axis: dict, out: Path) -> str:
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    others = iter(COLOURS["others"])
    styles = iter(["-", "--", ":"])
    for name, seconds in axis["seconds"].items():
        own = name.startswith("ours")
        label = f"{name} (p = {axis['exponents'][name]:.2f})"
        colour, style = (COLOURS["ours"], next(styles)) if own else (next(others), "-")
        axes.loglog(
            axis["sizes"],
            [1e3 * s for s in seconds],
            style,
            marker="o",
            markersize=4,
            color=colour,
            label=label,
        )
    axes.set_xticks(axis["sizes"], list(map(str, axis["sizes"])))
    axes.minorticks_off()
    axes.set_xlabel(axis["label"])
    axes.set_ylabel("ms on this machine")
    axes.legend(frameon=False)
    named = re.sub("[^a-z0-9]+", "-", key.lower())
    return _save(figure, out, f"speed-growth-{named}.svg")


def _save(figure, out: Path, name: str) -> str:
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / name, metadata={"Date": None})
    plt.close(figure)
    return name
