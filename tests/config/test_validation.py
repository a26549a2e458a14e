"""What `fsl.validated` refuses, lets through, and leaves as it is."""

from __future__ import annotations

import inspect
from typing import Annotated, Literal

import pytest
from pydantic import Field
from torch import nn

import fsl_core as fsl
from fsl_core.config.options import Component
from fsl_core.errors import OptionError


@fsl.validated
class Toy(fsl.Adapter):
    """A toy."""

    name = "toy"

    def __init__(
        self,
        task: fsl.TaskShape | None,
        backbone: nn.Module,
        rate: Annotated[float, Field(gt=0, description="of the steps")] = 0.1,
        steps: Annotated[int | None, Field(ge=0, le=9)] = None,
        mode: Literal["fast", "slow"] = "fast",
        width: Annotated[float, Field(gt=0)] | Literal["median"] = "median",
        widths: tuple[Annotated[int, Field(gt=0)], ...] = (1,),
        ready: bool = False,
    ):
        super().__init__()
        self.given = (task, backbone, rate, steps, mode, width, widths, ready)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0}, "toy: rate: 0. A number above 0"),
        ({"rate": "fast"}, "toy: rate: 'fast'. A number"),
        ({"rate": float("inf")}, "toy: rate: inf. A finite number"),
        ({"steps": -1}, "toy: steps: -1. A number from 0, or None"),
        ({"steps": 10}, "toy: steps: 10. A number of at most 9, or None"),
        ({"steps": 1.5}, "toy: steps: 1.5. A whole number, or None"),
        ({"mode": "quick"}, "toy: mode: 'quick'. 'fast' or 'slow'"),
        ({"width": -2.0}, "toy: width: -2.0. A number above 0, or 'median'"),
        ({"widths": [3, 0]}, "toy: widths: 0. A number above 0"),
        ({"ready": "perhaps"}, "toy: ready: 'perhaps'. True or False"),
        ({"mode": "quick", "rate": -1.0}, "toy: rate: -1.0. A number above 0"),
    ],
)
def test_what_the_annotations_do_not_allow_is_refused_in_one_line(options, message):
    with pytest.raises(OptionError) as raised:
        Toy(None, nn.Identity(), **options)
    assert str(raised.value) == message
    assert isinstance(raised.value, ValueError)
    assert isinstance(raised.value, fsl.FslError)


def test_values_are_of_the_annotated_types_and_the_rest_is_as_it_was():
    backbone = nn.Identity()
    toy = Toy(None, backbone, 1, widths=[2, 3])
    assert toy.given == (None, backbone, 1.0, None, "fast", "median", (2, 3), False)
    assert isinstance(toy.given[2], float)
    assert toy.given[1] is backbone


def test_what_python_refuses_keeps_its_words():
    with pytest.raises(TypeError, match="unexpected keyword argument 'speed'"):
        Toy(None, nn.Identity(), speed=1)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'backbone'"):
        Toy(None)


def test_the_signature_stays_the_schema():
    assert list(inspect.signature(Toy).parameters)[:3] == ["task", "backbone", "rate"]
    assert Toy.__doc__ == "A toy."
    component = Component("adapter", "toy", Toy, "here")
    fields = component.options.model_fields
    assert list(fields) == ["name", "rate", "steps", "mode", "width", "widths", "ready"]
    assert fields["rate"].description == "of the steps"
    section = component.options(name="toy", rate=0.5)
    assert component.build(section, task=None, backbone=nn.Identity()).given[2] == 0.5


def test_a_derived_class_is_named_by_its_own_name():
    class Derived(Toy):
        name = "derived"

    class Nameless(nn.Module):
        @fsl.validated
        def __init__(self, size: Annotated[int, Field(gt=0)]):
            super().__init__()

    with pytest.raises(ValueError, match=r"^derived: rate: 0\. A number above 0$"):
        Derived(None, nn.Identity(), rate=0)
    with pytest.raises(ValueError, match=r"^Nameless: size: 0\. A number above 0$"):
        Nameless(0)


def test_functions_are_checked_too():
    @fsl.validated
    def halve(value: Annotated[float, Field(ge=1)]) -> float:
        return value / 2

    assert halve(3) == 1.5
    with pytest.raises(ValueError, match=r"^halve: value: 0\.5\. A number from 1$"):
        halve(0.5)
