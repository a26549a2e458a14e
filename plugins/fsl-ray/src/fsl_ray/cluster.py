"""What is asked of Ray, in a process of its own; see `fsl_ray.driver`."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsl_core as fsl
from fsl_ray.job import Job

NAMESPACE = "fsl"
"""Of the names of actors."""

REACHED_IN = 5.0
"""Seconds for a connection to the head of a cluster."""

RECEIVED_IN = 5.0
"""Seconds for an actor that has begun to take an order."""


@dataclass(frozen=True)
class Actor:
    """An actor for a run: its name, and what it does."""

    name: str
    command: list[str]
    output: Path
    environment: dict[str, str]
    folder: Path


class Cluster:
    """The actors of a sweep, on the cluster at an address ("auto": that of this machine).

    FslError from every method once the cluster is gone.
    """

    def __init__(self, address: str):
        import ray

        if address == "auto":
            address = os.environ.get("RAY_ADDRESS", "auto")
        if address != "auto":
            _reach(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
        except Exception as error:  # of many kinds: versions that differ, no Ray on this machine
            raise fsl.FslError(
                f"launcher ray: address {address}: {_line(error)}. A cluster that `ray start` "
                "began, on one of its machines"
            ) from error
        self._ray = ray
        self._head = ray.get_runtime_context().gcs_address
        self._handles: dict[str, Any] = {}
        self._ends: dict[Any, str] = {}  # name by reference

    def start(self, actors: Sequence[Actor], needs: Mapping[str, float], restarts: int) -> None:
        """Make these actors; each begins when a machine has room for it.

        needs:    CPU, GPU, memory in bytes and whatever else the machines are said to have.
        restarts: times an actor is made again after its machine has died.
        """
        _reach(self._head)
        others = {k: v for k, v in needs.items() if k not in ("CPU", "GPU", "memory") and v}
        for one in actors:
            made = self._ray.remote(Job).options(
                name=one.name,
                namespace=NAMESPACE,
                lifetime="detached",
                num_cpus=needs["CPU"],
                num_gpus=needs["GPU"],
                memory=needs["memory"] or None,
                resources=others,
                max_restarts=restarts,
                max_task_retries=-1,
                max_concurrency=4,
            )
            self._keep(one.name, made.remote(one.command, one.output, one.environment, one.folder))

    def _keep(self, name: str, handle: Any) -> None:
        self._handles[name] = handle
        self._ends[handle.ended.remote()] = name

    def machines(self) -> list[dict[str, float]]:
        """What each machine has, used or not."""
        _reach(self._head)
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def find(self, name: str) -> bool:
        """Whether an actor of this name exists; if so, it is one of this sweep from now on."""
        _reach(self._head)
        with suppress(ValueError):
            self._keep(name, self._ray.get_actor(name, namespace=NAMESPACE))
            return True
        return False

    def ended(self) -> dict[str, tuple[int, str]]:
        """Names of actors that have ended since this was asked, with code and reason."""
        _reach(self._head)
        known = list(self._ends)
        done, _ = self._ray.wait(known, num_returns=len(known), timeout=0) if known else ([], [])
        return {name: self._outcome(name, one) for one in done if (name := self._ends.pop(one))}

    def _outcome(self, name: str, reference: Any) -> tuple[int, str]:
        try:
            outcome = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return 1, f"actor {name}: {_line(error)}"
        self._kill(name)  # frees what it holds at once
        return outcome

    def stop(self, names: Sequence[str]) -> None:
        """End these actors: those that wait at once, those at work when they have saved."""
        _reach(self._head)
        told = {self._handles[name].stop.remote(): name for name in names if name in self._handles}
        if told:
            _, waiting = self._ray.wait(list(told), num_returns=len(told), timeout=RECEIVED_IN)
            for reference in waiting:
                self._kill(told[reference])

    def _kill(self, name: str) -> None:
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(self._handles.pop(name))


def _reach(address: str) -> None:
    """FslError if nothing listens there. Ray itself would wait for minutes, and then abort."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHED_IN).close()
    except (OSError, ValueError, OverflowError) as error:
        raise fsl.FslError(
            f"launcher ray: no cluster at {address} ({error}). HOST:PORT of a head that runs, as "
            "`ray start --head` says it"
        ) from error


def _line(error: Exception) -> str:
    """The first sentence of what Ray says, which may be a page."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return first.rstrip(".")[:300] or type(error).__name__
