"""speed.md and its plots, from what the sections measured (speed.json)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import fill

from benchmarks import plots
from benchmarks.settings import name_of
from benchmarks.targets import ACCURACIES, CONV4, RACES, TARGETS, Target

INTRODUCTION = """\
# Speed

After this page you know how fast fsl-core computes a meta-gradient, and how that compares with
other libraries on the same machine.

`make bench` writes this page. It installs the other libraries into an environment of its own and
races them.

- **Same work.** Same network, same initial weights, same episodes, same precision (float32). MAML
  is of second order.
- **Same result.** First, all meta-gradients have to agree, in units of the largest element: to 1e-9
  in float64 and to 1e-3 in float32. In float64 this is checked on four tasks of the meta-batch; the
  tests hold what compiles to it. The tables show the differences that were found.
- **One exception.** In float32, differences on Conv4 are shown and not limited. The number of
  threads alone may choose another of two nearly equal pixels in pooling: that moves a gradient of
  nearest-centroid by 0.001, and one of MAML, with steps of 0.4, by up to 0.4.
- **In turns.** Contenders take turns, one after the other in each round. For meta-gradients, each
  is a process of its own, as its users have it; `ours, processes` is one for each core, as a long
  `fsl run` starts them; races before 2026-11-28 have none. Ours has the memory settings of `fsl
  run`. In all of them, threads that wait for one another soon sleep, as in `fsl run`.
- **Ratios.** A ratio is the median over rounds of the paired ratios, with its 95 % bootstrap
  interval.
- **Times.** Milliseconds are of that machine alone. Compiling and warming up do not count.
- **Machines.** Each machine keeps its own figures, which a later run there replaces. Above each
  table stands where and when it was measured, and what else kept the machine busy.

The other libraries' network has `BatchNorm2d(track_running_stats=False)`, ours has
`norm: transductive`. Both normalise by the current batch and give the same numbers. The characters
of the Omniglot-shaped races are `glyphs`. Drawing and training use Omniglot itself. `torch alone`
and `JAX alone` are what a user writes without a library for few-shot learning; no aim but the one
that names JAX counts them. What ends in `of ours` rounds more than float32 does, `bf16` to 8 bits
and `tf32` to 10: it is shown beside float32 and counts for none.
"""


NOTICED = 0.1
"""Cores that other work keeps busy before the page says so."""


def write_report(results: dict, out: Path) -> Path:
    """Write the page and its plots; returns the page's path."""
    drawn = plots.draw(results, out)
    page = out / "speed.md"
    page.write_text("\n".join(_page(results, drawn)).rstrip() + "\n", encoding="utf-8")
    return page


def _page(results: dict, drawn: dict[str, str]) -> Iterator[str]:
    yield INTRODUCTION
    if any(result.get("quick") for _, result in _all(results)):
        yield "**A smoke test with tiny sizes (`--quick`): the figures below mean nothing.**\n"
    yield from _machines(results)
    yield from _targets(results, drawn)
    for section, title, write in [*_RACES, *_OTHERS]:
        for place, result in enumerate(results.get(section, [])):
            yield from [] if place else [f"## {title}\n"]
            yield f"{_where(result)}.\n"
            yield from _skipped(result) or write(result, drawn)


def _all(results: dict) -> Iterator[tuple[str, dict]]:
    """What each section measured on each machine."""
    return ((section, result) for section, found in results.items() for result in found)


def _machines(results: dict) -> Iterator[str]:
    """One line for each machine."""
    told = (
        ", ".join(f"{key} {value}" for key, value in result["machine"].items())
        for _, result in _all(results)
    )
    yield from (f"- Measured on: {text}." for text in dict.fromkeys(told))
    yield ""


def _where(result: dict) -> str:
    """On what, when and beside what a section was measured."""
    machine = result["machine"]
    told = [name_of(machine), f"{machine['threads']} threads", result.get("measured")]
    if _is_disturbed(result):
        told.append(f"beside other work, which kept {result['others']:.1f} cores busy")
    return ", ".join(filter(None, told))


def _targets(results: dict, drawn: dict[str, str]) -> Iterator[str]:
    yield "## Targets\n"
    columns = ["work", "against", "at least", "measured", "95 % interval", "on", ""]
    rows = [
        _target(result, target)
        for target in TARGETS
        for result in results.get(target.section, [{}])
    ]
    yield from _table(columns, rows)
    missed = [target for target in TARGETS if target.why and _is_missed(results, target)]
    if missed:
        yield "Why what is missed is missed:\n"
        yield "\n".join(_item(f"- **{target.work}**: {target.why}") for target in missed) + "\n"
    if "ratios" in drawn:
        yield f"![Ratios and targets]({drawn['ratios']})\n"


def _target(result: dict, target: Target) -> list[str]:
    rival, least = target.rival or result.get("peer"), target.least
    if rival not in result.get("ratios", {}):
        return [target.work, target.against, f"{least} x", "", "", "", _why_not(result, rival)]
    value, low, high = result["ratios"][rival]
    more = "more than " if result.get("at_least") else ""
    verdict = _verdict(low, value, high, least, bool(result.get("at_least")))
    if _is_disturbed(result):
        verdict += ", beside other work"
    return [
        target.work,
        f"{target.against}: {rival}",
        f"{least} x",
        f"{more}{value:.2f} x ({result['ours']})",
        _interval(low, high),
        name_of(result["machine"]),
        verdict,
    ]


def _verdict(low: float, value: float, high: float, least: float, at_least: bool) -> str:
    if low >= least:
        return "reached"
    if at_least:
        return "not decided: stopped before it"
    return f"missed: {value / least:.0%} of it" if high <= least else "not decided by the interval"


def _is_disturbed(result: dict) -> bool:
    return (result.get("others") or 0) >= NOTICED


def _is_missed(results: dict, target: Target) -> bool:
    """On any machine."""
    return any("missed" in _target(r, target)[-1] for r in results.get(target.section, []))


def _why_not(result: dict, rival: str | None) -> str:
    if not result:
        return "not measured"
    return (
        result.get("skipped")
        or f"{rival or 'no library'}: {result['left_out'].get(rival, 'not installed here')}"
    )


def _skipped(result: dict) -> list[str]:
    return [f"Not measured: {result['skipped']}.\n"] if "skipped" in result else []


def _race(result: dict, drawn: dict[str, str]) -> Iterator[str]:
    agreement = result.get("agreement", {})
    columns = ["", "ms on this machine", f"times as long as {result['ours']}", "95 % interval"]
    columns += [f"differs, {precision}" for precision in agreement]
    if "operations_per_second" in result:
        columns.append("GFLOP/s")
    rows = []
    for name, seconds in sorted(result["seconds"].items(), key=lambda item: item[1]):
        value, low, high = result["ratios"][name]
        row = [name, f"{1e3 * seconds:.3g}", f"{value:.2f}", f"{low:.2f} to {high:.2f}"]
        row += [f"{found[name]:.0e}" if name in found else "" for found in agreement.values()]
        if "operations_per_second" in result:
            row.append(f"{result['operations_per_second'][name] / 1e9:.3g}")
        rows.append(row)
    yield from _table(columns, rows)
    yield from _left_out(result["left_out"])
    if "machine_rates" in result:
        yield from _roofline(result)
    yield f"{result['rounds']} rounds.\n"


def _roofline(result: dict) -> Iterator[str]:
    """Achieved against what the machine reaches on plain arithmetic in the same rounds."""
    best = max(result["machine_rates"].values())
    rates = "; ".join(
        f"{name}: {rate / 1e9:.0f} GFLOP/s" for name, rate in result["machine_rates"].items()
    )
    achieved = result["operations_per_second"][result["ours"]]
    yield (
        f"Roofline: {result['operations'] / 1e9:.3g} GFLOP in products and convolutions, as plain "
        "torch computes it.\n"
        f"In the same rounds, {result['ours']} reaches {achieved / best:.1%} of the "
        "machine's best rate.\n"
        f"The floor, the time of these alone at that rate, is "
        f"{1e3 * result['operations'] / best:.3g} ms.\n"
        f"{_wrapped(f'The machine reached: {rates}.')}\n"
    )


def _item(text: str) -> str:
    return fill(text, 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _wrapped(text: str) -> str:
    return fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _accuracy(result: dict, drawn: dict[str, str]) -> Iterator[str]:
    value, more = result["ratios"][result["peer"]][0], "more than " if result["at_least"] else ""
    told = (
        f"Seconds of training until {result['accuracy']:.2f} of the answers are right on 200 "
        f"frozen validation episodes, asked every {result['every']} outer steps: `fsl run` of "
        f"`{result['recipe']}` with the shipped defaults, and learn2learn's loop over the same "
        "episodes, with the same network, first weights, step sizes and schedule. One after the "
        "other, not in turns. Seconds are the median of the steps times their number; drawing "
        "counts on both sides, validation on neither. Before it, "
        f"`auto` measured for {result['tuned']:.0f} s, once for this recipe and machine; that "
        "does not count. "
        f"{result['peer']} takes {more}{value:.2f} times as long, in one run of each."
    )
    yield f"{_wrapped(told)}\n"
    rows = []
    for name, run in result["runs"].items():
        said = f"{run['seconds']:.1f}" if run["reached"] else f"more than {run['seconds']:.1f}"
        of_step = f"{1e3 * run['seconds'] / run['steps']:.3g}"
        rows.append([name, said, f"{run['steps']}", of_step, f"{run['accuracy']:.3f}"])
    yield from _table(["", "seconds", "outer steps", "ms a step", "accuracy then"], rows)
    execution = result["runs"][result["ours"]]["execution"]
    yield f"{_wrapped(f'Ours was computed so: {execution}.')}\n"


def _interval(low: float, high: float) -> str:
    return "one run" if low == high else f"{low:.2f} to {high:.2f}"


def _adaptation(result: dict, drawn: dict[str, str]) -> Iterator[str]:
    yield (
        "One task, Conv4-64, 28x28, 5-way 1-shot. First the time from the support set to a "
        "predictor,\n"
        "without a graph; then the time with its 75 queries predicted. Every installed "
        "adapter has its\n"
        f"default options. The ratio says how many times as long {result['reference']} takes.\n"
    )
    rows = []
    for name, row in sorted(result["adapters"].items(), key=lambda item: item[1]["seconds"]):
        value, low, high = row["reference_takes"]
        times = [f"{1e3 * row[key]:.3g}" for key in ("seconds", "seconds_with_queries")]
        rows.append([name, *times, f"{value:.2f}", f"{low:.2f} to {high:.2f}"])
    yield from _table(
        [
            "adapter",
            "ms on this machine",
            "with queries",
            f"{result['reference']}, ratio",
            "95 % interval",
        ],
        rows,
    )
    yield from _left_out(result["left_out"])


def _weightings(result: dict, drawn: dict[str, str]) -> Iterator[str]:
    yield (
        f"{CONV4}, 16 tasks, 1 step, computed by {result['execution']}.\n"
        "The table says how many times as long a meta-gradient takes under each weighting "
        "as under\n"
        "`uniform`. The aim for `gradient-similarity` is 1.3.\n"
    )
    rows = [
        [name, f"{v:.2f}", f"{low:.2f} to {high:.2f}"]
        for name, (v, low, high) in sorted(result["weightings"].items())
    ]
    yield from _table(["weighting", "times as long", "95 % interval"], rows)
    yield from _left_out(result["left_out"])


def _growth(result: dict, drawn: dict[str, str]) -> Iterator[str]:
    start = result["start"]
    yield (
        f"Second-order MAML, Conv4, 28x28, 1 shot, {start['n_query']} queries a class. "
        "Unless a table says otherwise:\n"
        f"{start['tasks']} tasks, {start['steps']} step, {start['n_way']} ways, "
        f"{start['channels']} channels. "
        "The exponent p is fitted to cost = c * size^p.\n"
    )
    for key, axis in result["axes"].items():
        yield f"### Cost and {axis['label']}\n"
        columns = ["ms on this machine", *map(str, axis["sizes"]), "p"]
        rows = [
            [n, *(f"{1e3 * s:.3g}" for s in costs), f"{axis['exponents'][n]:.2f}"]
            for n, costs in axis["seconds"].items()
        ]
        yield from _table(columns, rows)
        picture = drawn[f"{key}, {name_of(result['machine'])}"]
        yield f"![Cost and {axis['label']}]({picture})\n"
    yield from _left_out(result["left_out"])


def _memory(result: dict, drawn: dict[str, str]) -> Iterator[str]:
    yield (
        f"Second-order {CONV4}, 16 tasks. Peak resident memory above what\n"
        "the process held before, in the second meta-gradient. Each contender has a "
        "process of its own.\n"
        "What compiling keeps counts too.\n"
    )
    cases = result["bytes"]
    names = dict.fromkeys(name for found in cases.values() for name in found)
    rows = [
        [n, *(f"{found[n] / 2**20:.0f}" if n in found else "" for found in cases.values())]
        for n in names
    ]
    yield from _table(["", *(f"MiB, {label}" for label in cases)], rows)
    yield from _left_out(result["left_out"])


_RACES = [(section, title, _race) for section, title in RACES.items()]
_OTHERS = [
    *((section, title, _accuracy) for section, title in ACCURACIES.items()),
    ("adaptation", "Adaptation time", _adaptation),
    ("weightings", "What a weighting adds", _weightings),
    ("growth", "How cost grows", _growth),
    ("memory", "Peak memory", _memory),
]


def _left_out(reasons: dict[str, str]) -> Iterator[str]:
    """One line a contender, except those that offer nothing of the kind."""
    told = {name: reason for name, reason in reasons.items() if not reason.startswith("offers no")}
    if told:
        yield "\n".join(f"- {name} is left out: {reason}" for name, reason in told.items()) + "\n"


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    columns = list(columns)
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""
