"""Tasks computed at the same time by threads of one process, each on one core.

torch's operations release the interpreter, so two threads of one core each keep two cores busy with
whole tasks. Two cores that share every operation wait for one another at its end instead.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, repeat
from math import ceil
from threading import local
from typing import TypeVar

import torch

from fsl_core.learner import Learner

Item = TypeVar("Item")
Result = TypeVar("Result")


class _OfThread(local):
    """The copies of learners that a thread works with, and the call of `map` they were made for."""

    def __init__(self) -> None:
        self.made_for: object | None = None
        self.copies: dict[int, Learner] = {}


class Workers:
    """Threads that apply a function of (learner, item).

    With a count of 1 it is the calling thread alone, on all its cores.

    sharing: processes that share the workers, each of which has its part of the tasks.

    Each thread has a copy of the learner's modules: torch's stateless calls put weights into a
    module while it runs, where another thread would find them. The parameters and buffers are the
    learner's own, so gradients reach them from every thread.
    """

    def __init__(self, learner: Learner, count: int = 1, sharing: int = 1):
        self.learner, self.count = learner, ceil(count / sharing)
        self._of_thread = _OfThread()
        self._pool: ThreadPoolExecutor | None = None
        if count > 1:  # also for one of its own: a task has the bits of one core
            # torch keeps its number of threads for each thread: one core for each worker here, and
            # all cores, as before, for the thread that calls.
            self._pool = ThreadPoolExecutor(
                self.count, "fsl-task", initializer=torch.set_num_threads, initargs=(1,)
            )

    def map(
        self,
        function: Callable[[Learner, Item], Result],
        items: Iterable[Item],
        learners: Iterable[Learner] | None = None,
    ) -> Iterator[Result]:
        """Results in the order of the items.

        No more than `count` tasks are ahead of the result that is asked for, which bounds memory.

        learners: the one for each item, over the same parameters; None: always the same one.
        """
        # Not strict: the same learner comes without an end.
        pairs = zip(items, repeat(self.learner) if learners is None else learners, strict=False)
        if self._pool is None:
            yield from (function(learner, item) for item, learner in pairs)
            return
        # A copy serves one call of `map`: the caller may change the learner's modules between two
        # calls. This object stands for the call.
        this_call = object()
        # Whether gradients are enabled is a thread's own setting, and a new thread has them on.
        with_gradients = torch.is_grad_enabled()

        def work(item: Item, learner: Learner) -> Result:
            own = self._of_thread
            if own.made_for is not this_call:
                own.made_for, own.copies = this_call, {}
            if id(learner) not in own.copies:
                own.copies[id(learner)] = copy_modules(learner)
            with torch.set_grad_enabled(with_gradients):
                return function(own.copies[id(learner)], item)

        # Held to the end: see the function. Nothing reads it.
        held = gradient_nodes(self.learner)
        waiting: list[Future[Result]] = []
        for item, learner in pairs:
            waiting.append(self._pool.submit(work, item, learner))
            if len(waiting) > self.count:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()
        del held


def gradient_nodes(learner: Learner) -> list[torch.Tensor]:
    """Views of the parameters. While they live, so do the nodes that add up their gradients.

    Threads that share a parameter must not make its node. torch 2.13 makes it at the first use, and
    holds the parameter's lock while it waits for the interpreter; another thread may hold the
    interpreter and wait for that lock. Then both wait for ever: seen with a `view` in one thread
    and an index in the other. A node that exists is taken without the interpreter, unless a Python
    object stands for it, as `get_gradient_edge` makes one; hence views.
    """
    with torch.enable_grad():
        return [p.view_as(p) for p in learner.parameters() if p.requires_grad]


def copy_modules(learner: Learner) -> Learner:
    """A learner of new modules over the same parameters and buffers."""
    # deepcopy takes what its memo already holds for a copy: here each tensor for itself.
    tensors = chain(learner.parameters(), learner.buffers())
    return copy.deepcopy(learner, {id(tensor): tensor for tensor in tensors})


def draws_random_numbers(call: Callable[[], object]) -> bool:
    """Whether a call moves torch's global random state; the state is put back."""
    before = torch.get_rng_state()
    call()
    moved = not torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    return moved
