"""What is written as JSON can be read by every reader of JSON."""

from __future__ import annotations

import json

import pytest

from fsl_core.errors import RunError
from fsl_core.runs.files import to_json


def test_json_is_as_it_was():
    data = {"step": 3, "loss": 0.5, "lists": [1, (2, "x")], "none": None}
    assert to_json(data, "here") == json.dumps(data)
    assert to_json({"b": 1, "a": 2}, "here", sort_keys=True) == '{"a": 2, "b": 1}'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"loss": float("inf")}, r"^run: loss is inf\. A finite number$"),
        ({"a": {"b": [0, float("nan")]}}, r"^run: a\.b\.1 is nan\. A finite number$"),
        (-float("inf"), r"^run: it is -inf\. A finite number$"),
    ],
)
def test_numbers_that_are_not_finite_are_refused(data: object, message: str):
    with pytest.raises(RunError, match=message):
        to_json(data, "run")
