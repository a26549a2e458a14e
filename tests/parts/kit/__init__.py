"""Parts for the tests of the conformance kit, and how one property of it is run."""

import contextlib
import inspect
import itertools
from functools import partial
from unittest import mock

import pytest
import torch

from fsl_core.testing import EpisodesContract, double_precision
from fsl_core.testing.pretended import NAME as PRETENDED

# Takes seconds. It catches the faulty twins of sound parts, so not all of the sound ones need it.
COMPILED = "compiled_equals_the_loop"
VALUES = {
    "case": lambda contract: contract.values_of("case"),
    "shape": lambda contract: contract.values_of("shape"),
    "kind": lambda contract: contract.kinds,
    "size": lambda contract: contract.sizes,
    "split": lambda contract: contract.splits,
    "device": lambda contract: [PRETENDED],  # CUDA is left to pytest
    "compiled": lambda contract: [True],
}


def properties(contract: type) -> list[str]:
    return [name.removeprefix("test_") for name in dir(contract) if name.startswith("test_")]


def every(*contracts: type, without: tuple[str, ...] = ()) -> list[tuple[type, str]]:
    """Each contract with each of its properties, for parametrize."""
    return [(c, name) for c in contracts for name in properties(c) if name not in without]


def named(value: object) -> str | None:
    """How pytest shows a class among the parameters of a test."""
    return getattr(value, "__name__", None)


def check(contract_class: type, property_name: str) -> None:
    """Run one property as pytest would, for every value of its parameters.

    torch.compile makes its graph, forward and backward, but no code, which would take a minute.
    """
    contract = contract_class()
    method = getattr(contract, f"test_{property_name}")
    values = [VALUES[name](contract) for name in inspect.signature(method).parameters]
    traced = partial(torch.compile, backend="aot_eager")
    with mock.patch("torch.compile", traced):
        for arguments in itertools.product(*values):
            _run(method, arguments, double=not isinstance(contract, EpisodesContract))


def _run(method, arguments: tuple, double: bool) -> None:
    with contextlib.ExitStack() as stack:
        if double:
            stack.enter_context(double_precision())
        stack.enter_context(contextlib.suppress(pytest.skip.Exception))
        method(*arguments)


def caught(contract_class: type, property_name: str) -> str:
    """What the kit says of a faulty part: what was found. What would fit."""
    with pytest.raises(AssertionError) as told:
        check(contract_class, property_name)
    message = str(told.value)
    assert ". " in message
    return message
