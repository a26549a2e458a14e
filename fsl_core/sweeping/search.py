"""A search: its trials are prepared runs, proposed batch by batch, and the best is tested.

All that is known of it is in the run directories, so the same command goes on with it. What is
proposed and what is pruned follows from earlier batches and a trial's own validations; neither the
clock nor the number of runs at a time decides anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any

from filelock import Timeout

from fsl_core.assembly.experiment import build_experiment
from fsl_core.config.matrix import Matrix
from fsl_core.config.search import METHOD, Method, Search
from fsl_core.errors import PluginError, RecipeError, RunError
from fsl_core.files.locks import only_one
from fsl_core.hooks.loader import Loaded
from fsl_core.launcher import Launcher
from fsl_core.runs.begun import WITHOUT_EFFECT, differences
from fsl_core.runs.files import (
    Record,
    read_json,
    to_json,
    write_atomically,
    writing,
)
from fsl_core.runs.trial import TRIAL, TrialRecord, read_trial, read_validated, validation_scores
from fsl_core.searcher import Choices, Range, Searcher, Study, Trial
from fsl_core.sweeping.jobs import TrialJob
from fsl_core.sweeping.plan import plan_sweep
from fsl_core.sweeping.prepare import prepare

IDENTITY = "search.json"
"""What the trials in a folder have in common."""


class _Identity(Record):
    """What search.json holds."""

    searcher: dict[str, Any]
    methods: dict[str, Any]


@dataclass
class Asked:
    """A trial of the present batch. first: the trial with these parameters that made the run."""

    number: int
    first: int
    parameters: Mapping[str, Any]
    job: TrialJob
    outcome: Trial | None = None
    looked_at: int = 0


@dataclass
class MethodSearch:
    """The search of one method.

    trials: those of finished batches.    halted: why it goes no further in this process.
    jobs:   the run of each trial; trials with the same parameters share one.
    """

    method: Method
    study: Study
    trials: list[Trial] = field(default_factory=list)
    batch: list[Asked] = field(default_factory=list)
    halted: str = ""
    jobs: dict[int, TrialJob] = field(default_factory=dict)
    test: TrialJob | None = None

    @property
    def done(self) -> bool:
        return bool(self.halted) or len(self.trials) >= self.study.trials

    @property
    def best(self) -> Trial | None:
        """The first of the trials with the best score."""
        sign = -1 if self.study.higher_is_better else 1
        complete = [(sign * t.score, t.number, t) for t in self.trials if t.score is not None]
        return min(complete, key=lambda found: found[:2])[2] if complete else None

    def all_trials(self) -> list[Trial]:
        """Those of finished batches and of the present one."""
        asked = [a.outcome or Trial(a.number, a.parameters) for a in self.batch]
        return [*self.trials, *asked]


class Searching:
    """All methods of a search, and the runs that have been asked for.

    queue: grows while runs are computed.
    """

    def __init__(self, search: Search, folder: Path, loaded: Loaded, device: str, take_over: float):
        self.search, self.folder, self._loaded = search, folder, loaded
        self._device, self._take_over = device, take_over
        self.searcher: Searcher = search.searcher.build()
        metric = checked_metric(search)
        self.methods = [MethodSearch(m, _study(search, m, metric)) for m in search.methods]
        self.queue: list[TrialJob] = []
        self._known: dict[tuple[str, int], tuple[Path, TrialRecord]] = {}
        self._threads = 1

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within this context this process alone searches here. RunError if another one does."""
        with writing(self.folder):
            (self.folder / "runs").mkdir(parents=True, exist_ok=True)
        try:
            with only_one(self.folder / ".search"):
                self._hold_identity()
                self._read_known()
                yield
        except Timeout as error:
            raise RunError(
                f"{self.folder}: another process searches here. `fsl sweep --worker {self.folder}` "
                "computes its trials, or another --out"
            ) from error

    @property
    def total(self) -> int:
        """Trials of all methods."""
        return sum(one.study.trials for one in self.methods)

    @property
    def plugin_files(self) -> list[str]:
        """The one-file plugins that the runs need."""
        return list(self._loaded.files)

    def at_once(self) -> int:
        """How many runs there can be at a time, whatever the launcher takes."""
        return len(self.methods) * self.search.options.batch

    def advance(self, launcher: Launcher, threads: int) -> None:
        """Look at the trials, end some early, and ask for more; test the best at the end."""
        self._threads = threads
        for one in self.methods:
            while not one.done and self._finish_batch(one, launcher):
                if len(one.trials) < one.study.trials:
                    self._ask(one)
        if all(one.done for one in self.methods):
            for one in self.methods:
                self._test(one)

    def _finish_batch(self, one: MethodSearch, launcher: Launcher) -> bool:
        """Whether the batch has ended, and its outcomes are known."""
        for asked in one.batch:
            if asked.outcome is None:
                self._look(one, asked, launcher)
        failed = [a.job for a in one.batch if a.outcome is None and a.job.state == "failed"]
        if failed and all(a.outcome or a.job.state == "failed" for a in one.batch):
            one.halted = f"{failed[0].title}: {failed[0].error}"
        if any(asked.outcome is None for asked in one.batch):
            return False
        if one.batch:
            one.trials += [asked.outcome for asked in one.batch if asked.outcome]
            one.batch = []
            self.searcher.record(self.folder, one.study, one.trials)
        return True

    def _look(self, one: MethodSearch, asked: Asked, launcher: Launcher) -> None:
        if asked.first != asked.number:
            same = (t for t in one.all_trials() if t.number == asked.first and t.state != "running")
            asked.outcome = next((replace(t, number=asked.number) for t in same), None)
            return
        directory = asked.job.directory
        validated = read_validated(directory)  # before scores: all are written by then
        scores = validation_scores(directory, one.study.metric)
        step = self._pruned_at(one, asked, scores)
        if step is not None:
            until = {s: score for s, score in scores.items() if s <= step}
            asked.outcome = Trial(asked.number, asked.parameters, "pruned", until)
            self._end_early(one, asked, step, launcher)
            return
        if validated is not None and asked.job.state == "finished":  # its process has ended, too
            ended = Trial(asked.number, asked.parameters, "failed", scores)
            if validated.score is not None:
                ended = replace(ended, state="complete", score=validated.score)
            asked.outcome = ended

    def _pruned_at(
        self, one: MethodSearch, asked: Asked, scores: Mapping[int, float]
    ) -> int | None:
        """The step of the validation after which the trial ends early, or None."""
        _, record = self._known[one.method.name, asked.number]
        if record.pruned is not None:
            return record.pruned
        for step in sorted(scores):
            if asked.looked_at < step < one.study.steps:
                asked.looked_at = step
                until = {s: score for s, score in scores.items() if s <= step}
                if self.searcher.prune(one.study, one.trials, until):
                    return step
        return None

    def _end_early(self, one: MethodSearch, asked: Asked, step: int, launcher: Launcher) -> None:
        """Note it for whoever computes runs, and stop the run."""
        self._note(asked.job.directory, one.method.name, asked, pruned=step)
        if asked.job.state == "running":
            launcher.stop([asked.job.run])

    def _ask(self, one: MethodSearch) -> None:
        """Propose a batch, and prepare its runs; of one that was asked before, what is missing."""
        first, size = len(one.trials), self.search.options.batch
        for number in range(first, min(first - first % size + size, one.study.trials)):
            _, known = self._known.get((one.method.name, number), (None, None))
            proposed = known.parameters if known else self._proposed(one)
            one.batch.append(self._asked(one, number, proposed))

    def _proposed(self, one: MethodSearch) -> dict[str, Any]:
        proposed, space = self.searcher.propose(one.study, one.all_trials()), one.study.space
        where = f"searcher {self.searcher.name!r}: propose"
        if not isinstance(proposed, Mapping) or proposed.keys() != space.keys():
            raise PluginError(f"{where}: {proposed!r}. A value for each of {', '.join(space)}")
        return {key: _fitted(where, key, proposed[key], space[key]) for key in space}

    def _asked(self, one: MethodSearch, number: int, parameters: Mapping[str, Any]) -> Asked:
        name = one.method.name
        cell = one.method.cell(parameters, f"trial {number}", self._loaded.catalogue)
        same = next((job for job in one.jobs.values() if job.cell.digest == cell.digest), None)
        if same is not None:  # its run counts for both
            one.jobs[number] = same
            asked = Asked(number, same.number, parameters, same)
            if (name, number) not in self._known:
                self._note(same.directory, name, asked)
            return asked
        directory, _ = self._known.get((name, number), (None, None))
        directory = directory or self.folder / "runs" / cell.directory_name
        job = TrialJob(
            cell=cell, directory=directory, take_over=self._take_over, method=name, number=number
        )
        asked = Asked(number, number, parameters, job)
        if (name, number) not in self._known:  # before the run can be found by a worker
            self._note(directory, name, asked)
        prepare([job], self._loaded, self._device, self._threads, self.folder.absolute().name)
        if job.has_result:
            job.state = "finished"
        one.jobs[number] = job
        self.queue.append(job)
        return asked

    def _note(self, directory: Path, method: str, asked: Asked, **changes: Any) -> None:
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
        record = read_trial(directory) or TrialRecord(method, [], dict(asked.parameters))
        numbers = sorted({*record.numbers, asked.number})
        record = record._replace(numbers=numbers, **changes)
        record.write(directory)
        self._known[method, asked.number] = directory, record

    def _test(self, one: MethodSearch) -> None:
        """Have the best trial judged on the test episodes, once."""
        if one.test is not None or one.halted or one.best is None:
            return
        number = one.best.number
        job = one.jobs[number]
        record = read_trial(job.directory)
        if record is not None and not record.test:
            record._replace(test=True).write(job.directory)
        cell = replace(job.cell, labels={METHOD: one.method.name})
        one.test = replace(job, cell=cell, test=True, state="waiting", error="", seconds=0.0)
        one.test.state = "finished" if one.test.has_result else "waiting"
        self.queue.append(one.test)

    def _read_known(self) -> None:
        for path in sorted((self.folder / "runs").glob(f"*/{TRIAL}")):
            if record := read_trial(path.parent):
                for number in record.numbers:
                    self._known[record.method, number] = path.parent, record

    def _hold_identity(self) -> None:
        """Raise RunError if the folder holds trials of another search; more trials are no other."""
        own, path = _identity(self.search, self.methods), self.folder / IDENTITY
        if not path.is_file():
            write_atomically(path, to_json(own, IDENTITY, indent=2) + "\n")
        elif found := list(differences(read_json(path, _Identity), own)):
            told = ", ".join(f"{key}: {change}" for key, change in found[:3])
            raise RunError(f"{self.folder}: holds another search ({told}). Another --out")


def _study(search: Search, method: Method, metric: str) -> Study:
    options = search.options
    steps = next(c for c in search.ends if c.labels[METHOD] == method.name).recipe.sections.outer
    return Study(method.name, method.space, options.seed, options.trials, steps.steps, metric)


def checked_metric(search: Search, with_data: bool = True) -> str:
    """The metric of the scores. Builds the ends of all ranges.

    with_data: check as well that the data can give the episodes.
    RecipeError or DataError, with every fault, if one of them or the data cannot be used.
    """
    outer = search.ends[0].recipe.sections.outer
    for key in ("steps", "validate_every"):
        if not getattr(outer, key):
            where = search.document.where(("outer", key))
            raise RecipeError(f"{where}: 0. Above 0, because a search compares validation scores")
    plan = plan_sweep(Matrix(search.document, (), search.ends, {}, search.launcher), with_data)
    if plan.refused:
        raise RecipeError([f"search: {title}: {reason}" for title, reason in plan.refused])
    digests: dict[str, str] = {}
    for method in search.methods:
        first = next(c for c in search.ends if c.labels[METHOD] == method.name)
        if (other := digests.setdefault(first.digest, method.name)) != method.name:
            where = search.document.where(("search", "methods", method.name))
            raise RecipeError(f"{where}: the same as {other}. Methods that differ")
    return build_experiment(search.ends[0].recipe).source.task.metric


def _identity(search: Search, methods: Sequence[MethodSearch]) -> dict[str, Any]:
    """What may not change between two commands for one search. The number of trials may."""
    firsts = {c.labels[METHOD]: c.recipe for c in reversed(search.ends)}
    of_methods = {
        one.method.name: {
            "recipe": _that_counts(firsts[one.method.name].resolved()),
            "space": {key: _plain(among) for key, among in one.method.space.items()},
        }
        for one in methods
    }
    told = {
        "searcher": search.searcher.section.model_dump(mode="json"),
        "seed": search.options.seed,
        "batch": search.options.batch,
        "methods": of_methods,
    }
    return json.loads(to_json(told, IDENTITY))


def _that_counts(recipe: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in recipe.items() if key not in WITHOUT_EFFECT}


def _plain(among: Range | Choices) -> Any:
    return list(among.values) if isinstance(among, Choices) else dict(vars(among))


def _fitted(where: str, key: str, value: Any, among: Range | Choices) -> Any:
    if isinstance(among, Range) and isinstance(value, Real) and not isinstance(value, bool):
        value = among.fitted(float(value))
    if value not in among:
        raise PluginError(f"{where}: {key}: {value!r}. A value within {among}")
    return value
