"""Contracts of installed components, made from the names on pytest's command line.

And the report about them.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

import pytest
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

import fsl_core as fsl
from fsl_core.assembly.parts import build_source, section_at
from fsl_core.config.document import Document, read_value
from fsl_core.config.recipe import Recipe, check_document
from fsl_core.config.sections import SECTIONS
from fsl_core.errors import DataError, FslError, PluginError
from fsl_core.hooks.loader import load
from fsl_core.testing.adapter_setting import KINDS, Kind
from fsl_core.testing.adapters import AdapterContract
from fsl_core.testing.backbones import BackboneContract
from fsl_core.testing.episodes import SPLITS, EpisodesContract
from fsl_core.testing.hypergradients import HypergradientContract
from fsl_core.testing.tiny import TinyBackbone, double_precision, tiny_task
from fsl_core.testing.trials import META_BATCH, TASKS
from fsl_core.testing.weightings import PARAMETER_COUNT, WeightingContract
from fsl_core.text import suggest

HERE = "conformance"
_COLUMNS = {
    "backbone.0.weight": slice(0, 3),
    "backbone.1.weight": slice(3, 4),
    "adapter.head.weight": slice(4, PARAMETER_COUNT),
}
_OTHERS: dict[str, dict[str, object]] = {
    "episodes": {"name": "glyphs"},
    "backbone": {"name": "mlp"},
    "adapter": {"name": "nearest-centroid"},
    "outer": {"steps": 1},
}
"""The rest of a recipe around the one component that is checked."""


class Claims(BaseModel):
    """What test classes state if it differs from the default.

    None: as the contract has it, or as found out.
    """

    model_config = ConfigDict(extra="forbid")

    kinds: tuple[Kind, ...] | None = None
    label_equivariant: bool | None = None
    any_row_order: bool | None = None
    without_gradient: tuple[str, ...] | None = None
    adapts_frozen: bool | None = None
    progress: float | None = None
    exact: Literal["always", "at the minimum", "no"] | None = None
    tolerance: float | None = None
    own_value: bool | None = None
    reaches_outer: bool | None = None
    inner_steps: int | None = None
    random: bool | None = None
    sizes: tuple[int, ...] | None = None
    input_shape: tuple[int, ...] | None = None
    items_together: bool | None = None
    splits: tuple[Literal["train", "validation", "test"], ...] | None = None
    distinct_items: bool | None = None


class InstalledAdapter(AdapterContract):
    """The contract of an adapter, with what `on_progress` is told.

    progress: the share of training done: in the middle of a warm-up rather than before it.
    """

    progress: ClassVar[float] = 0.3
    build: ClassVar[Callable[..., Any]]

    def make(self, task, backbone):
        adapter = type(self).build(task=task, backbone=backbone)
        if isinstance(adapter, fsl.Adapter):
            adapter.on_progress(self.progress)
        return adapter

    def permute_classes(self, adapter: fsl.Adapter, permutation: Tensor) -> None:
        """Permute every axis that is as long as there are classes.

        Such axes are found by building the adapter for one class more.
        """
        n_way = len(permutation)
        wider = self.make(tiny_task(n_way=n_way + 1), TinyBackbone()).state_dict()
        for name, tensor in adapter.state_dict().items():
            axes = _grown_axes(tensor, wider.get(name), n_way)
            if axes is None:
                pytest.skip(
                    f"not run: {name} grows with the classes in a way of its own, so a test class "
                    "has to permute it"
                )
            for axis in axes:
                tensor.index_copy_(axis, permutation, tensor.clone())


def _grown_axes(tensor: Tensor, wider: Tensor | None, n_way: int) -> list[int] | None:
    """The axes that are one longer for one class more; None if it grows in another way."""
    if wider is None or wider.dim() != tensor.dim():
        return None if tensor.dim() else []
    changed = [axis for axis in range(tensor.dim()) if tensor.shape[axis] != wider.shape[axis]]
    for axis in changed:
        if (tensor.shape[axis], wider.shape[axis]) != (n_way, n_way + 1):
            return None
    return changed


class InstalledHypergradient(HypergradientContract):
    build: ClassVar[Callable[..., Any]]

    def make(self, task):
        return type(self).build(task=task, tasks=TASKS, meta_batch_size=META_BATCH)


class InstalledWeighting(WeightingContract):
    build: ClassVar[Callable[..., Any]]

    def make(self):
        return type(self).build(columns=_COLUMNS, tasks=max(self.sizes))


class InstalledBackbone(BackboneContract):
    build: ClassVar[Callable[..., Any]]

    def make(self, task):
        return type(self).build(task=task)


class InstalledEpisodes(EpisodesContract):
    build: ClassVar[Callable[..., Any]]

    def make(self):
        return type(self).build()


CONTRACTS: dict[str, type] = {
    "adapter": InstalledAdapter,
    "hypergradient": InstalledHypergradient,
    "weighting": InstalledWeighting,
    "backbone": InstalledBackbone,
    "episodes": InstalledEpisodes,
}


@dataclass
class Checked:
    """One component under its contract, and what each property came to.

    outcomes: property -> (outcome, detail, seconds) of every case.
    """

    kind: str
    name: str
    options: str
    origin: str
    contract: type
    outcomes: dict[str, list[tuple[str, str, float]]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.kind} {self.name}{self.options and ' '}{self.options}"

    def rows(self) -> Iterator[tuple[str, str, float]]:
        """(property, result, seconds)."""
        for name, cases in self.outcomes.items():
            seconds = sum(case[2] for case in cases)
            told = {outcome: detail for outcome, detail, _ in reversed(cases)}
            yield name.replace("_", " "), _result(told), seconds


def _result(told: dict[str, str]) -> str:
    """A property in one word or two.

    told: the detail of the first case of each outcome.
    """
    left_out = told.get("skipped", "")
    if "failed" in told:
        return f"**failed**: {told['failed']}"
    if "passed" in told:
        return f"passed; {left_out}" if left_out.startswith("not run") else "passed"
    return left_out


class Conformance:
    """Collects the contracts, and reports.

    A pytest plugin, registered if an option names a component.
    """

    def __init__(self, config: pytest.Config, named: list[tuple[str, str]]):
        try:
            claims = _claims(config.getoption("--fsl-claims"), {kind for kind, _ in named})
            catalogue = load().catalogue
            self.checked = [_checked(kind, text, catalogue, claims) for kind, text in named]
        except FslError as error:
            raise pytest.UsageError(str(error)) from error
        self.report_file: Path | None = config.getoption("--fsl-report")
        if config.args_source is not pytest.Config.ArgsSource.ARGS:
            config.args = []  # no file is named: the kit alone

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(
        self, session: pytest.Session, items: list[pytest.Item]
    ) -> None:
        module = pytest.Module.from_parent(session, path=Path(__file__), name=HERE, nodeid=HERE)
        module.obj = ModuleType(HERE)
        for checked in self.checked:
            setattr(module.obj, checked.title, checked.contract)
        items[:0] = session.genitems(module)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        here, _, rest = report.nodeid.partition("::")
        if here != HERE:
            return
        title, _, test = rest.rpartition("::test_")
        checked = next(c for c in self.checked if c.title == title)
        cases = checked.outcomes.setdefault(test.partition("[")[0], [])
        if report.when == "call" or report.outcome != "passed":
            cases.append((report.outcome, _detail(report), report.duration))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        text = self.report()
        terminalreporter.section("conformance", sep="=")
        terminalreporter.write(text)
        if self.report_file:
            self.report_file.write_text(text, encoding="utf-8")

    def report(self) -> str:
        """A Markdown table of each component, for a README."""
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        versions = [f"{name} {metadata.version(name)}" for name in ("fsl-core", "torch")]
        ran_on = ", ".join([*versions, f"Python {platform.python_version()}", device])
        return "\n".join(self._table(checked, ran_on) for checked in self.checked)

    @staticmethod
    def _table(checked: Checked, ran_on: str) -> str:
        options = f" with options `{checked.options}`" if checked.options else ""
        rows = [
            f"| {name} | {result.replace('|', chr(92) + '|')} | {seconds:.2f} |"
            for name, result, seconds in checked.rows()
        ]
        failed = sum("**failed**" in row for row in rows)
        passed = sum("| passed" in row for row in rows)
        counts = (
            f"{passed} properties passed, {failed} failed, {len(rows) - passed - failed} not run"
        )
        return "\n".join(
            [
                f"### Conformance of {checked.kind} `{checked.name}`{options}\n",
                f"{checked.origin}, {ran_on}: {counts}\n",
                "| property | result | seconds |\n|---|---|---|",
                *rows,
                "",
            ]
        )


def _detail(report: pytest.TestReport) -> str:
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return crash.message.splitlines()[0].removeprefix("AssertionError: ") if crash else ""


def _checked(kind: str, text: str, catalogue: Any, claims: Claims) -> Checked:
    name, _, options = (part.strip() for part in text.partition(":"))
    recipe = _recipe(kind, name, options, catalogue)
    path = next(path for path, of in SECTIONS.items() if of == kind)
    component = recipe.chosen[path]

    def build(**injected: Any) -> Any:
        if component.lists:
            return build_source(recipe, path)
        return component.build(section_at(recipe, path), **injected)

    stated = claims.model_dump(exclude_none=True)
    wanted = {key: value for key, value in stated.items() if hasattr(CONTRACTS[kind], key)}
    found = _found_out(f"--fsl-{kind} {name}", kind, build, recipe, path)
    contract = type(
        f"Installed{kind.title()}",
        (CONTRACTS[kind],),
        {"__test__": True, "build": staticmethod(build), **found, **wanted},
    )
    return Checked(kind, name, options, component.origin, contract)


def _recipe(kind: str, name: str, options: str, catalogue: Any) -> Recipe:
    """A recipe around the component, so that its options are checked as in every recipe."""
    source = f"--fsl-{kind} {name}"
    given = read_value(options, source) if options else {}
    if not isinstance(given, dict):
        raise FslError(
            f"{source}: options {options!r}. A mapping after the colon: '{name}:{{key: value}}'"
        )
    section = {"name": name, **given}
    data = {key: dict(value) for key, value in _OTHERS.items()}
    where = data["outer"] if kind in ("hypergradient", "weighting") else data
    where[kind] = section
    return check_document(Document(source, data), catalogue)


def _found_out(
    source: str, kind: str, build: Callable[..., Any], recipe: Recipe, path: tuple[str | int, ...]
) -> dict[str, Any]:
    """Claims that building the component tells: kinds of tasks, splits with data.

    Raises FslError if it cannot be built at all.
    """
    if kind == "adapter":
        return {"kinds": _kinds(source, build)}
    if kind == "episodes":
        try:
            episodes = build_source(recipe, path)
        except PluginError:  # the property `claims` says what is wrong with it
            return {}
        return {"splits": _splits(source, episodes)}
    return {}


def _kinds(source: str, build: Callable[..., Any]) -> tuple[Kind, ...]:
    """The kinds of tasks that an adapter takes."""
    kinds: list[Kind] = []
    refused = ""
    for kind in KINDS:
        with double_precision():
            try:
                build(task=tiny_task(kind), backbone=TinyBackbone())
            except ValueError as error:
                refused = str(error)
            except FslError:
                raise
            except Exception:  # the property `claims` says what is wrong with it
                return (kind,)
            else:
                kinds.append(kind)
    if not kinds:
        raise FslError(f"{source}: {refused}")
    return tuple(kinds)


def _splits(source: str, episodes: fsl.EpisodeSource) -> tuple[fsl.Split, ...]:
    """The splits that have data."""
    splits = []
    for split in SPLITS:
        try:
            episodes.check(split)
        except DataError as error:
            if split == "train":
                raise DataError(f"{source}: {error}") from error
        else:
            splits.append(split)
    return tuple(splits)


def _claims(text: str | None, kinds: set[str]) -> Claims:
    if text is None:
        return Claims()
    given = read_value(text, "--fsl-claims")
    if not isinstance(given, dict):
        raise FslError(f"--fsl-claims: {text!r}. A mapping such as '{{random: true}}'")
    contracts = [CONTRACTS[kind] for kind in kinds]
    known = {name for name in Claims.model_fields if any(hasattr(c, name) for c in contracts)}
    for name in given:
        if name not in known:
            of, fit = " or ".join(sorted(kinds)), suggest(name, known, label="Claims")
            raise FslError(f"--fsl-claims: {name}: no claim of {of}. {fit}")
    try:
        return Claims.model_validate_json(json.dumps(given), strict=True)
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False)
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Input should be ")
        raise FslError(
            f"--fsl-claims: {where}: found {json.dumps(first['input'])}. Expected {message}"
        ) from error
