"""A process for Ray beside that of the sweep.

Ray prints to standard output, takes over SIGTERM, and aborts its process when the cluster dies. In
a process of its own none of it reaches the sweep.
"""

from __future__ import annotations

import multiprocessing
import os
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import fsl_core as fsl

ANSWERED_IN = 120.0
"""Seconds for an answer; a cluster that says less is taken for dead."""


class Driver:
    """Calls methods of a `Cluster` in another process, one after the other."""

    def __init__(self, address: str):
        context = multiprocessing.get_context("spawn")
        self._address, self._number = address, 0
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, address), daemon=True)
        self._process.start()
        other.close()

    def call(self, method: str, *arguments: Any) -> Any:
        """What the method returns. FslError if it raised one, or if its process has ended."""
        self._number += 1
        try:
            self._pipe.send((self._number, method, arguments))
            number = 0
            while number < self._number:  # an answer that nobody waited for is passed over
                if not self._pipe.poll(ANSWERED_IN):
                    raise EOFError
                number, error, answer = self._pipe.recv()
        except (EOFError, OSError):
            raise fsl.FslError(
                f"launcher ray: the cluster at {self._address} has ended. `ray start` begins one; "
                "the same command then goes on with what is not finished"
            ) from None
        if error:
            raise fsl.FslError(error)
        return answer

    def close(self) -> None:
        self._pipe.close()
        self._process.join(5)
        self._process.kill()


def _serve(pipe: Connection, address: str) -> None:
    """Answers calls until the sweep has closed its end of the pipe, or has died."""
    from fsl_ray.cluster import Cluster

    os.setsid()  # Ctrl-C reaches the sweep alone
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    cluster: Cluster | None = None
    with suppress(EOFError, OSError):
        while True:
            number, method, arguments = pipe.recv()
            try:
                cluster = cluster or Cluster(address)
                pipe.send((number, "", getattr(cluster, method)(*arguments)))
            except fsl.FslError as error:
                pipe.send((number, str(error), None))
            except Exception as error:  # one of Ray's many kinds
                pipe.send((number, f"launcher ray: {type(error).__name__}: {error}"[:300], None))
