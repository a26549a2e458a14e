"""What computing a task leaves behind, which the task after it would find."""

from __future__ import annotations

import copy
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fsl_core.episode import Episode
from fsl_core.learner import Learner
from fsl_core.text import first_line

_PLAIN = (bool, int, float, complex, str, bytes, bytearray)
Task = Callable[[Learner, Episode], object]

ROUNDING = 2e-6
"""Sums in another order differ by less, in float32 and of losses near one."""


class NotCopiableError(Exception):
    """Modules that `copy.deepcopy` refuses, so that nothing can be tried without leaving traces."""


@dataclass(frozen=True)
class Traces:
    """What tasks leave behind.

    moved:  the first thing found changed, such as `backbone.norm.running_mean`; None: nothing.
    random: they draw random numbers.
    """

    moved: str | None = None
    random: bool = False


def copied(*modules: nn.Module) -> tuple[Any, ...]:
    """Copies that share nothing with their originals. Raises NotCopiableError with the reason."""
    try:
        return copy.deepcopy(modules)
    except Exception as error:  # each module has its own way of saying so
        raise NotCopiableError(first_line(error)) from error


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put the global random states of torch, Python and numpy back afterwards.

    What is tried before training must not move them: a run has to give the same bits whether or not
    something was tried, such as when the choice of an execution was kept from an earlier run.
    """
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def find_traces(learner: Learner, episodes: Sequence[Episode], task: Task) -> Traces:
    """What `task` of a copy of the learner leaves behind.

    Each episode but the first is looked at: the first one may fill a cache for those after it.
    Raises NotCopiableError with the reason.
    """
    (probe,) = copied(learner)
    moved, draws = None, False
    with random_state_kept():
        task(probe, episodes[0])
        for episode in episodes[1:]:
            (before,) = copied(probe)
            state = _random_state()
            task(probe, episode)
            draws |= _Comparison().first(state, _random_state()) is not None
            moved = moved or _Comparison().first(before, probe)
    return Traces(moved, draws)


def count_ways(learner: Learner, moments: Sequence[float], loss_of: Callable[[], Tensor]) -> int:
    """How many different losses `loss_of()` of the learner has, told of these moments of training.

    Buffers stay as they are at the first moment: a compiler takes their numbers as an input. The
    learner is left at the last moment, but for them. Equal are losses that differ by rounding
    alone.
    """
    losses, first = [], dict[str, Tensor]()
    for moment in moments:
        with random_state_kept(), torch.no_grad():
            learner.on_progress(moment)
            buffers = dict(learner.named_buffers())
            first = first or {name: buffer.clone() for name, buffer in buffers.items()}
            for name, buffer in buffers.items():
                # A buffer of another shape, or with numbers that share their place, counts as seen.
                if buffer.is_contiguous() and name in first and first[name].shape == buffer.shape:
                    buffer.copy_(first[name])
            with torch.enable_grad():
                losses.append(float(loss_of().detach()))
    losses.sort()
    far = [b - a > ROUNDING * max(1.0, abs(b)) for a, b in itertools.pairwise(losses)]
    return 1 + sum(far)


def _random_state() -> list[Any]:
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), on_gpu, random.getstate(), np.random.get_state()]


class _Comparison:
    """Two states of an object side by side, one of them a deep copy that was made before.

    seen: pairs that were compared, by their ids, so that a cycle ends. It holds the values too: the
        id of a value that was freed could be given to another one.
    """

    def __init__(self) -> None:
        self.seen: dict[tuple[int, int], Any] = {}

    def first(self, old: Any, new: Any, name: str = "") -> str | None:
        """The name of the first part that differs, or None. Parts without a value are equal."""
        if old is new or (id(old), id(new)) in self.seen:
            return None
        self.seen[id(old), id(new)] = (old, new)
        if type(old) is not type(new) or not _equal(old, new):
            return name
        old_parts, new_parts = _parts(old), _parts(new)
        if old_parts.keys() != new_parts.keys():
            return name
        for part, value in old_parts.items():
            found = self.first(value, new_parts[part], f"{name}.{part}".lstrip("."))
            if found is not None:
                return found
        return None


def _equal(old: Any, new: Any) -> bool:
    """Whether two things of one type are equal, apart from their parts."""
    if isinstance(old, Tensor):
        return _equal_tensors(old.detach(), new.detach())
    if isinstance(old, np.ndarray):
        return old.dtype == object or np.array_equal(old, new, equal_nan=old.dtype.kind in "fc")
    if isinstance(old, _PLAIN):
        return old == new or (old != old and new != new)  # NaN stays NaN
    if isinstance(old, (set, frozenset)):
        return len(old) == len(new) and _plain(old) == _plain(new)
    return True


def _plain(values: Set[Any]) -> list[Any]:
    return sorted((value for value in values if isinstance(value, _PLAIN)), key=repr)


def _equal_tensors(old: Tensor, new: Tensor) -> bool:
    if (old.shape, old.dtype, old.device) != (new.shape, new.dtype, new.device):
        return False
    if old.is_meta:
        return True
    return bool(((old == new) | ((old != old) & (new != new))).all())


def _parts(value: Any) -> dict[Any, Any]:
    """What a thing consists of, by name or place; copies keep the order of their parts."""
    if isinstance(value, Tensor):
        return {"grad": value.grad} if value.is_leaf else {}
    if isinstance(value, nn.Module):
        return _parts_of_module(value)
    if isinstance(value, Mapping):
        return dict(enumerate((*value.keys(), *value.values())))
    if isinstance(value, (list, tuple, deque)):
        return dict(enumerate(value))
    if isinstance(value, MethodType):
        return {"__self__": value.__self__}
    if isinstance(value, (*_PLAIN, np.ndarray, set, frozenset)):
        return {}
    return _parts_of_copies(value)


def _parts_of_module(module: nn.Module) -> dict[Any, Any]:
    """Its attributes, as the module itself tells them: an LSTM leaves out what it makes again."""
    told = module.__getstate__()
    held = dict(told if isinstance(told, dict) else vars(module))
    # Parameters, buffers and parts by their own names, as people know them from `state_dict`.
    named = [held.pop(name, {}) for name in ("_parameters", "_buffers", "_modules")]
    return {name: part for parts in (*named, held) for name, part in parts.items()}


def _parts_of_copies(value: Any) -> dict[Any, Any]:
    """What `copy.deepcopy` would make a copy of."""
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:  # deepcopy does not copy such a thing either: old and new are the same
        return {}
    if isinstance(reduced, str):  # the name of a global
        return {}
    _, arguments, state, *items = (*reduced, None, None, None)[:5]
    return {
        "arguments": arguments,
        **_as_named(state),
        "items": [list(part or ()) for part in items],
    }


def _as_named(state: Any) -> dict[Any, Any]:
    return state if isinstance(state, dict) else {"state": state}
