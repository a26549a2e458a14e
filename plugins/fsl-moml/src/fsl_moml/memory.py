"""The hypergradient `memory`: the query gradient at weights that are remembered for each task."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

import fsl_core as fsl
from fsl_moml.flat import flat, named
from fsl_moml.local import LocalSteps
from fsl_moml.store import DriftingStore, Store


@fsl.validated
class Memory(fsl.Hypergradient):
    """Personalised weights u_i of each task of a finite set, moved a little at each visit.

        v_i  = theta - a grad l_i(theta)                 the inner loop of the adapter
        u_i <- (1 - beta) u_i + beta v_i                 the old u_i is a constant
        g_i  = d L_i(u_i) / d theta = beta (I - a H_i) grad L_i(u_i)

    beta 1 is MAML. At its first visit a task gets u_i = theta_0 - a grad l_i(theta_0) with theta_0
    from the beginning of training. The source computes all of them before the first step; a row
    does not move before its first visit (v1), or by a known rule (v2), so the values are the same,
    but for the support set: it is that of the first visit, which serves the first v_i too.
    Learned inner rates are those of the visit. With more than one inner step v_i is where they end;
    the source takes one.

    variant v1:    as above.
    variant v2:    tasks that are not of a step drift towards theta; see `DriftingStore`.
    variant local: LocalMOML. No memory: each visit begins a u_i on `first_items` support items a
        class, then makes `local_steps` steps of theta_i by `local_lr`, each on a part of the
        support and query set, u_i as above with theta_i for theta. The direction is
        (theta - theta_i) / local_lr, so sgd with lr = local_lr sets theta to the mean of theta_i,
        as the server does. Differs: a schedule of the outer lr shortens that last step and leaves
        the local ones, which the source shortens.
    variant nasa:  v1 with every task in every step (meta_batch_size = the number of tasks, episodes
        in turn). Its average of meta-gradients, z <- (1 - m) z + m mean_i g_i with z = g at first,
        is the outer optimizer's: sgd with momentum: 1 - m and dampening: 1 - m.

    Source: Wang, Yuan, Ying and Yang 2021, arXiv:2106.04911, and its code, bokun-wang/moml. That
    code keeps no graph of the inner gradient, so its g_i = beta grad L_i(u_i): `order: 1` of the
    adapter. With exact derivatives v2 multiplies a by the number of tasks over that of a step, and
    may diverge at rates that suit the first-order one.
    """

    name = "memory"
    vectorizable = False
    threadable = False

    def __init__(
        self,
        task: fsl.TaskShape,
        tasks: int | None = None,
        meta_batch_size: int | None = None,
        variant: Annotated[
            Literal["v1", "v2", "local", "nasa"],
            Field(description="what moves the personalised weights, and when"),
        ] = "v1",
        beta: Annotated[
            float, Field(gt=0, le=1, description="share of the present inner loop; 1: no memory")
        ] = 0.3,
        local_steps: Annotated[
            int, Field(ge=1, description="steps of a task by itself; of local")
        ] = 5,
        first_items: Annotated[
            int, Field(ge=1, description="support items a class that begin a visit; of local")
        ] = 2,
        local_lr: Annotated[
            float | None,
            Field(gt=0, description="step size of local steps, the outer sgd's lr; of local alone"),
        ] = None,
        at_most_bytes: Annotated[
            int, Field(ge=1, description="largest memory of all tasks together")
        ] = 1 << 30,
    ):
        super().__init__()
        self.variant, self.tasks, self.meta_batch_size = variant, tasks, meta_batch_size
        self.local: LocalSteps | None = None
        self.store: Store | None = None
        if (variant == "local") != (local_lr is not None):
            raise ValueError(
                f"memory: local_lr: {local_lr} with variant: {variant}. A step size for local, "
                "null for the others"
            )
        if local_lr is not None:
            self.local = LocalSteps(task, beta, local_steps, first_items, local_lr)
        else:
            self.store = self._store(beta, at_most_bytes)

    def objective(
        self, adapter: fsl.Adapter, backbone: nn.Module, episode: fsl.Episode, loss: fsl.Loss
    ) -> tuple[Tensor, Tensor]:
        if self.local is not None:
            return self.local(adapter, backbone, episode, loss)
        assert self.store is not None  # every other variant has one
        problem = fsl.inner_problem_of(adapter, backbone, episode)
        *_, last = problem.points(1 if adapter.order == 1 else 2)
        names = list(problem.start)

        def start(origin: Tensor) -> Tensor:
            *_, there = replace(problem, start=named(origin, problem.start)).points(tracked=False)
            return flat(there.phi, names)

        theta, v = flat(problem.start, names), flat(last.phi, names)
        u = self.store.update(self._number(episode), theta, v, start)
        prediction = problem.predict(named(u, problem.start), last.outer, episode.query.x)
        return loss(prediction, episode.query.y), prediction

    def on_step(self, ids: Tensor) -> None:
        if self.store is None:
            return
        if self.variant == "nasa" and len(ids.unique()) != self.tasks:
            raise fsl.DataError(
                f"memory: nasa: a step of tasks {ids.tolist()}. Every task once: episodes in turn"
            )
        self.store.step_done()

    def _store(self, beta: float, at_most_bytes: int) -> Store:
        if self.tasks is None or self.tasks < 2:
            raise ValueError(
                "memory: these episodes have no finite set of tasks to remember. Episodes that "
                "do, such as sinusoid with a `grid`, or variant: local"
            )
        if self.variant == "v2":
            if self.meta_batch_size is None:
                raise ValueError("memory: v2 without meta_batch_size. The tasks of a step")
            return DriftingStore(self.tasks, beta, at_most_bytes, self.meta_batch_size)
        if self.variant == "nasa" and self.meta_batch_size != self.tasks:
            raise ValueError(
                f"memory: nasa with meta_batch_size {self.meta_batch_size} of {self.tasks} tasks. "
                f"{self.tasks}: it takes every task in every step"
            )
        return Store(self.tasks, beta, at_most_bytes)

    def _number(self, episode: fsl.Episode) -> int:
        number = int(episode.id)
        if self.tasks is None or not 0 <= number < self.tasks:
            raise fsl.DataError(
                f"memory: task {number}. A number in 0 .. {self.tasks or 0} - 1: the episodes say "
                "how many tasks they have"
            )
        return number
