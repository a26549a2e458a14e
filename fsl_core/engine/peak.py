"""How much memory a meta-batch takes at its fullest, and how many tasks at a time fit."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fsl_core.data.groups import Group
from fsl_core.engine.choice import Setting
from fsl_core.engine.execution import Execution
from fsl_core.engine.meta_gradient import MetaGradient
from fsl_core.engine.traces import random_state_kept
from fsl_core.episode import Episode, LabelledSet

SHARE = 0.5
"""Of a device's memory: what a meta-batch may take where the recipe names no chunk. The rest is for
the data, the weights and what else the machine does."""

GAPS = 4 / 3
"""What a CPU's memory takes for each byte of a tensor: a block that was freed leaves a gap that the
next one may not fit, and some operations need room for themselves. Measured, see "Memory" in
docs/performance.md."""

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def peak_of(call: Callable[[], object]) -> int:
    """Bytes of the tensors that `call` makes and holds at once, at its fullest.

    What an operation needs for itself while it computes is not seen.
    """
    with _Held() as held:
        call()
    return held.most


def peak_of_meta_batch(setting: Setting, execution: Execution) -> int:
    """The same of a meta-batch, above weights and episodes; one or two tasks are computed for it.

    Memory grows in proportion to the tasks that are computed at a time. Compiled code takes at most
    as much as `vmap`. Raises what a meta-batch raises.
    """
    tasks = sum(len(group.places) for group in setting.groups)
    if execution.mode == "loop":
        alone = replace(execution, workers=1)
        at_a_time = min(execution.workers, tasks)
        one, two = _peak(setting, alone, 1), _peak(setting, alone, 2)
        return one * at_a_time + (two - one) * (tasks - at_a_time)
    together = replace(execution, mode="vmap", chunk=None)
    one, two = _peak(setting, together, 1), _peak(setting, together, 2)
    return one + (two - one) * (min(execution.chunk or tasks, tasks) - 1)


def fitting_chunk(setting: Setting, execution: Execution, limit: float) -> int | None:
    """How many tasks at a time hold at most `limit` bytes; None: all of them."""
    tasks = max(len(group.places) for group in setting.groups)
    together = replace(execution, mode="vmap", workers=1, chunk=None)
    one = _peak(setting, together, 1)
    if tasks == 1 or one * tasks <= limit:  # the most that it can be
        return None
    slope = max(_peak(setting, together, 2) - one, 1)
    fitting = 1 + int(max(limit - one, 0) // slope)
    return None if fitting >= tasks else fitting


def memory_of(device: torch.device) -> int | None:
    """Bytes of a GPU, or of this machine or what a container gives of it; None: it does not tell.

    All of it, and not what is free at the moment: the same recipe has to be computed in the same
    way an hour later.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    found = []
    with suppress(AttributeError, ValueError, OSError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for file in _LIMITS:
        with suppress(ValueError, OSError):  # no such file, or "max"
            found.append(int(Path(file).read_text("ascii")))
    return min(found, default=None)


def _peak(setting: Setting, execution: Execution, tasks: int) -> int:
    with random_state_kept():
        parts = setting.copied()
        group = _largest(parts.groups, tasks)
        compute = MetaGradient(parts.fitted, parts.weighting, parts.loss, execution)
        on_cpu = group.episodes.support.x.device.type == "cpu"
        return int(peak_of(lambda: compute([group])) * (GAPS if on_cpu else 1))


def _largest(groups: Sequence[Group], tasks: int) -> Group:
    """The first tasks of the shape that has the most numbers."""
    group = max(groups, key=_numbers)
    (support_x, support_y), (query_x, query_y), ids = group.episodes
    rows = [i % len(ids) for i in range(tasks)]
    support, query = (
        LabelledSet(x[rows], y[rows]) for x, y in ((support_x, support_y), (query_x, query_y))
    )
    return Group(group.task, Episode(support, query, ids[rows]), tuple(range(tasks)))


def _numbers(group: Group) -> int:
    (support_x, _), (query_x, _), _ = group.episodes
    return support_x[0].numel() + query_x[0].numel()


class _Held(TorchDispatchMode):
    """Counts the bytes of storages from when an operation returns them until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = {_key(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and _key(tensor) not in given:
                self._see(tensor)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _key(tensor)
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
