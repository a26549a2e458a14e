"""What a search found: its trials, the best of each method, and how these did in the test."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsl_core.config.document import read_document
from fsl_core.config.matrix import Axis, Entry, Matrix
from fsl_core.config.search import METHOD, labels_of
from fsl_core.config.yaml_text import to_yaml
from fsl_core.files.spreadsheets import CsvWriter
from fsl_core.reporting import figures
from fsl_core.reporting.sweep import SweepResult, collect, write_tables
from fsl_core.reporting.sweep_report import write_sweep_report
from fsl_core.runs.files import RECIPE, read_result, write_atomically, writing
from fsl_core.runs.trial import read_validated
from fsl_core.searcher import Choices, Range, Study, Trial
from fsl_core.sweeping.jobs import TrialJob
from fsl_core.sweeping.plan import plan_sweep
from fsl_core.sweeping.search import MethodSearch, Searching

OPTIMISTIC = (
    "validation scores of chosen trials are too good, because these were chosen by them; test "
    "episodes were seen by chosen trials alone, and chose nothing"
)


@dataclass(frozen=True)
class SearchResult:
    """A search that has ended.

    tested: the best trials of all methods on test episodes; None if none was tested.
    notes:  what to know before the figures.
    """

    searching: Searching
    tested: SweepResult | None
    notes: tuple[str, ...]

    @property
    def methods(self) -> list[MethodSearch]:
        return self.searching.methods


def collect_search(searching: Searching) -> SearchResult:
    """Read how the best trials did in the test."""
    tests = [one.test for one in searching.methods if one.test is not None]
    tested = collect(plan_sweep(_matrix(searching, tests), with_data=False), tests)
    return SearchResult(searching, tested, tuple(_notes(searching)))


def _matrix(searching: Searching, tests: Sequence[TrialJob]) -> Matrix:
    """The best trials as the rows of a sweep."""
    search = searching.search
    entries = tuple(Entry(test.method, test.method, ()) for test in tests)
    cells = tuple(test.cell for test in tests)
    return Matrix(search.document, (Axis(METHOD, entries),), cells, {}, search.launcher)


def _notes(searching: Searching) -> list[str]:
    study = searching.methods[0].study
    options = searching.search.options
    told = (
        f"{study.trials} trials of each method, of {study.steps} steps each, proposed by "
        f"{searching.searcher.name} in batches of {options.batch} (seed {options.seed})"
    )
    own = (searching.searcher.note(one.study) for one in searching.methods)
    return [told, *dict.fromkeys(filter(None, own)), OPTIMISTIC]


def trial_rows(one: MethodSearch) -> list[dict[str, Any]]:
    """One mapping for each trial: the best first, then by score, then those without one."""
    best = one.best
    sign = -1 if one.study.higher_is_better else 1
    known = [(trial, one.jobs[trial.number]) for trial in one.all_trials()]
    known.sort(key=lambda item: _order(item[0], sign))
    return [
        {
            "method": one.study.name,
            "trial": trial.number,
            "state": _state(trial, job),
            "score": trial.score,
            **_validated(trial, job),
            "best": trial is best,
            "parameters": {key: _shown(value) for key, value in trial.parameters.items()},
            "run": job.directory.name,
        }
        for trial, job in known
    ]


def _order(trial: Trial, sign: int) -> tuple[bool, float, int]:
    score = trial.score
    return score is None, 0.0 if score is None else sign * score, trial.number


def _validated(trial: Trial, job: TrialJob) -> dict[str, Any]:
    found = read_validated(job.directory) if trial.state == "complete" else None
    if found is not None:
        return {"interval": found.interval, "step": found.step}
    return {"interval": None, "step": max(trial.scores, default="")}


def _state(trial: Trial, job: TrialJob) -> str:
    same = "" if trial.number == job.number else f" (trial {job.number})"
    if trial.state == "pruned":
        return f"pruned at step {max(trial.scores)}{same}"
    if trial.state == "failed":
        found = read_validated(job.directory)
        return f"failed: {found.failed}{same}" if found else f"failed{same}"
    if trial.state == "running":
        return f"not finished: {job.error or job.state}"
    return f"complete{same}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def told_of(one: MethodSearch) -> str:
    """What came of a method's trials, in one line."""
    counts = {state: [t for t in one.trials if t.state == state] for state in _STATES}
    each = [f"{len(found)} {state}" for state, found in counts.items() if found]
    steps = sum(_steps(trial, one.study) for trial in one.trials)
    told = f"{', '.join(each) or 'no trial finished'}; {steps} steps in all"
    if one.halted:
        return f"{told}; stopped by {one.halted}. The same command goes on"
    if (best := one.best) is None:
        return f"{told}; no trial has a score, so none is tested"
    return f"{told}; best trial {best.number}: {labels_of(best.parameters)}"


_STATES = ("complete", "pruned", "failed")


def _steps(trial: Trial, study: Study) -> int:
    """Steps until its outcome was known."""
    return study.steps if trial.state == "complete" else max(trial.scores, default=0)


def best_recipe(one: MethodSearch, folder: Path) -> Path:
    """The recipe of the best trial as a file: `fsl run` gives the same run again."""
    return folder / "best" / f"{one.study.name}.yaml"


def reproduce_command(one: MethodSearch, searching: Searching) -> str:
    """What trains the best trial of a method again, and holds it to its score."""
    plugins = dict.fromkeys(str(Path(file).parent) for file in searching.plugin_files)
    more = [f" --plugins-dir {folder}" for folder in plugins][:1]
    return f"fsl reproduce {best_recipe(one, searching.folder)}{''.join(more)}"


def write_search(
    result: SearchResult, recipe: Path, overrides: Sequence[str] = (), raw: bool = False
) -> Path:
    """Write trials.csv, the recipes of the best, tables of the test and the page.

    Returns the path of the page.    raw: names as they are, even if a spreadsheet would compute.
    """
    folder = result.searching.folder
    write_atomically(folder / "trials.csv", _csv(result, raw))
    for one in result.methods:
        _write_best(one, folder)
    assert result.tested is not None
    write_tables(result.tested, folder, raw)
    tests = [one.test for one in result.methods if one.test is not None]
    return write_sweep_report(
        folder / "report.html",
        result.tested,
        tests,
        recipe,
        overrides,
        "search.html",
        notes=result.notes,
        trials=sum(len(one.trials) for one in result.methods),
        methods=[_section(one, result.searching) for one in result.methods],
    )


def _csv(result: SearchResult, raw: bool) -> str:
    text = io.StringIO()
    writer = CsvWriter(text, raw)
    keys = list(dict.fromkeys(key for one in result.methods for key in one.study.space))
    plain = ["method", "trial", "state", "score", "interval", "step", "best", "run"]
    writer.writerow([*plain, *keys])
    for one in result.methods:
        for row in trial_rows(one):
            values = [_cell(row[name]) for name in plain]
            writer.writerow([*values, *(row["parameters"].get(key, "") for key in keys)])
    return text.getvalue()


def _cell(value: Any) -> Any:
    return "" if value is None else round(value, 6) if isinstance(value, float) else value


def _write_best(one: MethodSearch, folder: Path) -> None:
    """The recipe of the best trial, with what the test gave as what it is expected to give."""
    if one.test is None or not one.test.has_result or one.best is None:
        return
    data, found = read_document(one.test.directory / RECIPE).data, read_result(one.test.directory)
    metric = found["metric"]
    data["expect"] = {
        metric: {"value": round(found[metric], 4), "tolerance": round(found["interval"], 4)}
    }
    path = best_recipe(one, folder)
    head = (
        f"# fsl run {path}\n# The best of {len(one.trials)} trials of {one.study.name}: trial "
        f"{one.best.number}, {labels_of(one.best.parameters)}.\n"
    )
    with writing(path):
        path.parent.mkdir(exist_ok=True)
    write_atomically(path, head + to_yaml(data))


def _section(one: MethodSearch, searching: Searching) -> dict[str, Any]:
    """What the page shows of a method."""
    rows, folder = trial_rows(one), searching.folder
    for row in rows:
        page = folder / "runs" / row["run"] / "report.html"
        row["link"] = f"runs/{row['run']}/report.html" if page.is_file() else ""
    return {
        "name": one.study.name,
        "told": told_of(one),
        "best": one.test is not None and one.test.has_result,
        "command": reproduce_command(one, searching),
        "searched": list(one.study.space),
        "rows": rows,
        "figures": [*_figures(one)],
    }


def _figures(one: MethodSearch) -> list[tuple[str, str]]:
    """(caption, SVG): scores in the order of trials, and over each parameter."""
    complete = [trial for trial in one.trials if trial.score is not None]
    if not complete:
        return []
    metric, scores = one.study.metric, [trial.score or 0.0 for trial in complete]
    numbers = [trial.number for trial in complete]
    shown = f"validation {metric}"
    found = [
        (
            f"{shown} of each trial, and the best so far",
            figures.trials(numbers, scores, shown, one.study.higher_is_better),
        )
    ]
    for key, among in one.study.space.items():
        values = [trial.parameters[key] for trial in complete]
        drawn = [_shown(v) for v in values] if isinstance(among, Choices) else values
        log = isinstance(among, Range) and among.log
        found.append((f"{shown} over {key}", figures.over(drawn, scores, key, shown, log)))
    return found
