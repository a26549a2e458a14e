"""Tasks computed at the same time by threads of one process, each on one core.

torch's operations release the interpreter, so two threads of one core each keep two cores busy with whole tasks, where two
cores inside every operation wait for one another at its end.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from threading import local
from typing import TypeVar

import torch

from fsl_core.learner import Learner

Item, Result = TypeVar("Item"), TypeVar("Result")


class Workers:
    """Threads that apply a function of (learner, item); with a count of 1 the calling thread alone, on all its cores.

    Each thread has a copy of the learner's modules, for torch's stateless calls put weights into a module while it runs; the
    parameters and buffers are the learner's own.
    """

    def __init__(self, learner: Learner, count: int = 1):
        self.learner, self.count = learner, count
        self._pool = (
            ThreadPoolExecutor(count, "fsl-task", initializer=torch.set_num_threads, initargs=(1,))
            if count > 1
            else None
        )
        self._of_thread = local()

    def map(
        self, function: Callable[[Learner, Item], Result], items: Iterable[Item]
    ) -> Iterator[Result]:
        """Results in the order of the items; no more than `count` tasks ahead of the one that is asked for."""
        if self._pool is None:
            yield from (function(self.learner, item) for item in items)
            return
        era, graded = (
            object(),
            torch.is_grad_enabled(),
        )  # a copy serves one call: modules may change between two

        def work(item: Item) -> Result:
            if getattr(self._of_thread, "era", None) is not era:
                self._of_thread.era, self._of_thread.learner = era, copy_modules(self.learner)
            with torch.set_grad_enabled(graded):
                return function(self._of_thread.learner, item)

        waiting = []
        for item in items:
            waiting.append(self._pool.submit(work, item))
            if len(waiting) > self.count:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def copy_modules(learner: Learner) -> Learner:
    """A learner of new modules over the same parameters and buffers."""
    tensors = chain(learner.parameters(), learner.buffers())
    return copy.deepcopy(learner, {id(tensor): tensor for tensor in tensors})


def draws_random_numbers(call: Callable[[], object]) -> bool:
    """Whether a call moves torch's global random state, which is put back."""
    before = torch.get_rng_state()
    call()
    moved = not torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    return moved


def add_up(
    total: Sequence[torch.Tensor | None] | None, new: Sequence[torch.Tensor | None]
) -> list[torch.Tensor | None]:
    """The sum of two lists of tensors, entry by entry; None stands for zero."""
    if total is None:
        return list(new)
    return [b if a is None else a if b is None else a + b for a, b in zip(total, new, strict=True)]
