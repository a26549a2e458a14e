"""The runs of a sweep on a Ray cluster."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

import fsl_core as fsl
from fsl_ray.cluster import Actor
from fsl_ray.driver import Driver

LOOKED_EVERY = 0.5
"""Seconds between two questions about all runs."""

GB = 1e9


class Ray(fsl.Launcher):
    """An actor of Ray for each run, which begins when a machine of the cluster has room for it.

    Each is a worker of its run: it claims the run, goes on from the last checkpoint, and says in
    the run's directory how it ended. If its machine dies, Ray makes it again elsewhere. The folder
    of the sweep, the working directory, this Python and its packages have to be under the same path
    on all machines.

    A sweep that is stopped leaves its actors; the same command finds them again, by their names in
    the run directories. `fsl sweep --stop` ends them.

    Source: Moritz et al. 2018, arXiv:1712.05889; docs.ray.io.
    """

    name = "ray"

    def __init__(
        self,
        address: Annotated[
            str,
            Field(
                description="HOST:PORT of the head; auto: RAY_ADDRESS, else the cluster that this "
                "machine is part of"
            ),
        ] = "auto",
        cpus: Annotated[int, Field(gt=0, description="cores of a run")] = 1,
        gpus: Annotated[float, Field(ge=0, description="of a run; 0.5: two runs share one")] = 0,
        memory: Annotated[float, Field(ge=0, description="of a run, in GB; 0: not counted")] = 0,
        resources: Annotated[
            dict[str, Annotated[float, Field(gt=0)]],
            Field(description="others of a run, as `ray start --resources` names them"),
        ] = {},  # noqa: B006  # nobody changes it
        jobs: Annotated[
            int | None, Field(gt=0, description="runs at a time; null: as many as there is room")
        ] = None,
        restarts: Annotated[
            int, Field(ge=0, description="times that a run is begun again when its machine dies")
        ] = 3,
        autoscaled: Annotated[
            bool, Field(description="wait for a machine with room, if none is there now")
        ] = False,
    ):
        self.at_once: int | None = jobs
        self._address, self._cpus, self._restarts = address, cpus, restarts
        self._autoscaled = autoscaled
        self._needs = {"CPU": cpus, "GPU": gpus, "memory": memory * GB, **resources}
        self._driver: Driver | None = None
        self._names: dict[Path, str] = {}
        self._ended: dict[str, tuple[int, str]] = {}
        self._looked = 0.0

    def start(self, work: Sequence[fsl.Work]) -> None:
        if not self._autoscaled:
            self._refuse_what_fits_nowhere()
        actors = [self._actor(one) for one in work]
        self._ask("start", actors, self._needs, self._restarts)
        for one, actor in zip(work, actors, strict=True):
            self._names[one.run] = actor.name
            self.remember(one.run, actor.name)

    def _actor(self, work: fsl.Work) -> Actor:
        environment = {key: value for key, value in os.environ.items() if key.startswith("FSL_")}
        environment |= {"OMP_NUM_THREADS": str(self._cpus), **work.environment}
        name = f"fsl-{uuid.uuid4().hex[:12]}"
        return Actor(name, work.command, work.output, environment, Path.cwd())

    def _refuse_what_fits_nowhere(self) -> None:
        needs = {name: number for name, number in self._needs.items() if number}
        machines = self._ask("machines")
        if any(all(has.get(k, 0) >= v for k, v in needs.items()) for has in machines):
            return
        most = {name: max((has.get(name, 0) for has in machines), default=0) for name in needs}
        raise fsl.FslError(
            f"launcher ray: a run needs {_listed(needs)}, and no machine has it. At most "
            f"{_listed(most)}, or launcher.autoscaled=true"
        )

    def poll(self, run: Path) -> fsl.Ended | None:
        if time.monotonic() - self._looked > LOOKED_EVERY:
            self._ended |= self._ask("ended")
            self._looked = time.monotonic()
        if (found := self._ended.get(self._names[run])) is None:
            return None
        code, reason = found
        if code < 0:
            reason = f"ended by {signal.Signals(-code).name}. More memory, if nobody stopped it"
        return fsl.Ended(code, reason)

    def stop(self, runs: Sequence[Path]) -> None:
        if names := [self._names[run] for run in runs if run in self._names]:
            self._ask("stop", names)

    def find(self, run: Path) -> bool:
        name = self.remembered(run)
        if name is None or not self._ask("find", name):
            return False
        self._names[run] = name
        return True

    def close(self) -> None:
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    def _ask(self, method: str, *arguments: object):
        if self._driver is None:
            self._driver = Driver(self._address)
        return self._driver.call(method, *arguments)


def _listed(needs: dict[str, float]) -> str:
    told = {
        name: f"{number / GB:g} GB of memory" if name == "memory" else f"{number:g} {name}"
        for name, number in needs.items()
    }
    return ", ".join(told.values())
