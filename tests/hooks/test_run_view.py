"""What observers are shown of a run is public: to change it is a conscious act."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest

import fsl_core as fsl
from fsl_core.hooks.run_view import RunView

ATTRIBUTES = {
    "name": "str",
    "directory": "Path | None",
    "seed": "int",
    "steps": "int",
    "step": "int",
    "resumed_from": "int",
    "best": "Best | None",
    "execution": "str",
    "device": "str",
    "learner": "Learner",
    "task": "TaskShape",
    "test_task": "TaskShape",
    "notes": "tuple[str, ...]",
    "sweep": "str",
    "recipe": "dict[str, Any]",
    "options": "dict[str, bool | int | float | str]",
    "parameter_names": "tuple[str, ...]",
}
METHODS = {
    "checkpoints": "(self) -> dict[str, Path]",
    "metrics": "(self) -> list[dict[str, Any]]",
    "predict_episodes": (
        "(self, split: Literal['validation', 'test'], indices: Sequence[int]) "
        "-> Iterator[tuple[Episode, Tensor]]"
    ),
    "episode_classes": (
        "(self, split: Literal['validation', 'test'], indices: Sequence[int]) "
        "-> list[tuple[str, ...]] | None"
    ),
}


def public(names: object) -> list[str]:
    return [name for name in names if not name.startswith("_")]


def view(**changed: object) -> RunView:
    fields = {field.name: None for field in dataclasses.fields(RunView)}
    return RunView(**{**fields, **changed})


def signature_of(function: object) -> str:
    return str(inspect.signature(function)).replace("'", "").replace('"', "")


def test_its_attributes_are_those_promised():
    fields = {field.name: field.type for field in dataclasses.fields(RunView)}
    properties = {
        name: inspect.signature(member.fget).return_annotation
        for name, member in vars(RunView).items()
        if isinstance(member, property)
    }
    found = {name: type_ for name, type_ in {**fields, **properties}.items() if name[0] != "_"}
    assert found == ATTRIBUTES


def test_its_methods_are_those_promised():
    found = {
        name: signature_of(member)
        for name, member in vars(RunView).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }
    assert found == {name: text.replace("'", "") for name, text in METHODS.items()}


def test_it_has_nothing_else():
    assert sorted(public(dir(view()))) == sorted([*ATTRIBUTES, *METHODS])


def test_all_of_it_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "hooks.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in ATTRIBUTES)
    assert all(f"| `{name}(" in page for name in METHODS)
    told = inspect.getdoc(RunView) or ""
    for name in ATTRIBUTES:
        member = inspect.getattr_static(RunView, name, None)
        assert f"{name}:" in told or (member is not None and member.__doc__)
    assert all(getattr(RunView, name).__doc__ for name in METHODS)


def test_it_is_read_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        view(step=3).step = 4


def test_plugins_name_it_by_its_public_name():
    assert fsl.RunView is RunView
