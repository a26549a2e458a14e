"""Locks between processes, on one machine or on several that share a folder."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from filelock import (
    BaseFileLock,
    FileLock,
    LeaseCompromise,
    LeaseSettingsMismatch,
    SoftFileLease,
    Timeout,
)

from fsl_core.errors import RunError

SILENCE = 60.0
"""Seconds after which a lock without flock is taken over from a process that does not renew it."""


class Holder(NamedTuple):
    """Who holds a claim. silent: seconds since it was last renewed, by the clocks of two hosts."""

    host: str
    process: int
    silent: float


class Claim:
    """One process has it, whatever the file system: a file that only one can make.

    The file holds host, process and a token. A thread renews it three times in `seconds`. If
    nobody has renewed it for that long, by the clock of who waits for it, or if its process is dead
    and was on this machine, the next `take` takes it over.

    lost: another process has taken it over from this one, which must not go on.
    """

    def __init__(self, path: Path, seconds: float):
        self.path, self.seconds = path, seconds
        self.lost = False
        self._lease: SoftFileLease | None = None  # it remembers when it saw the file change

    def take(self) -> bool:
        """Whether this process has it now. RunError if others renew theirs at another pace."""
        if self._lease is None:
            self._lease = SoftFileLease(
                self.path, lease_duration=self.seconds, on_compromise=self._lose, timeout=0
            )
        self.lost = False
        try:
            self._lease.acquire()
        except Timeout:
            return False
        except LeaseSettingsMismatch as error:
            raise RunError(
                f"{self.path}: claimed by a process with another --take-over than "
                f"{self.seconds:g}. The same number for all that share a sweep"
            ) from error
        return True

    def _lose(self, _: LeaseCompromise) -> None:
        self.lost = True

    def release(self) -> None:
        if self._lease is not None:
            with suppress(OSError):  # its folder may be gone
                self._lease.release()

    @property
    def holder(self) -> Holder | None:
        """Who has it, as the file says; nothing is locked to find out."""
        return holder_of(self.path)


def holder_of(path: Path) -> Holder | None:
    """Who holds the claim at this path, or None."""
    owner = SoftFileLease(path).owner
    with suppress(OSError):
        if owner is not None:
            silent = max(0.0, time.time() - path.stat().st_mtime)
            return Holder(owner.hostname, owner.pid, silent)
    return None


@contextmanager
def only_one(path: Path, timeout: float = 0) -> Iterator[None]:
    """Hold the lock file at `path`; filelock.Timeout if another process does.

    timeout: seconds to wait; -1: as long as it takes.

    Where the file system has no flock, such as Lustre mounted without it, a claim beside the file
    takes its place. One whose process died on another machine is waited for, until its time has
    passed or it has been renewed.
    """
    lock: BaseFileLock = FileLock(path, timeout=timeout, fallback_to_soft=False)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        lock = _claimed(path.with_name(f"{path.name}.claim"), timeout)
    try:
        yield
    finally:
        lock.release()


def _claimed(path: Path, timeout: float) -> SoftFileLease:
    lease, first = SoftFileLease(path, lease_duration=SILENCE), _renewed(path)
    lease.acquire(
        timeout or 2 * SILENCE,
        poll_interval=0.2,
        cancel_check=lambda: timeout == 0 and _renewed(path) not in (first, None),
    )
    return lease


def _renewed(path: Path) -> int | None:
    with suppress(OSError):
        return path.stat().st_mtime_ns
    return None


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file at `path`, as far as the file system can tell."""
    if not path.is_file():
        return False
    try:
        with FileLock(path, timeout=0, fallback_to_soft=False):
            return False
    except Timeout:
        return True
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        return False  # whoever begins the run finds out, and waits
