"""Locks and claims between processes, also where the file system has no flock."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import pytest
from filelock import Timeout

import fsl_core as fsl
from fsl_core.files import locks
from fsl_core.files.locks import Claim, holder_of, is_locked, only_one


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Lustre answers that was mounted without flock."""

    def refused(*_: object) -> bool:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("filelock._unix.lock_fd_nonblocking", refused)
    monkeypatch.setattr(locks, "SILENCE", 0.6)


def claimed_elsewhere(path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.6) -> Claim:
    """A claim of another machine, whose processes nobody here can see."""
    with monkeypatch.context() as there:
        there.setattr("filelock._marker.host_name", lambda: "elsewhere")
        claim = Claim(path, seconds)
        assert claim.take()
    return claim


def test_one_process_has_a_claim(tmp_path: Path):
    first, second = (Claim(tmp_path / "claim", 5.0) for _ in range(2))
    assert first.take()
    assert not second.take()
    assert (first.holder.process, first.holder.silent < 5) == (second.holder.process, True)
    first.release()
    assert holder_of(tmp_path / "claim") is None
    assert second.take()
    second.release()


def test_a_claim_is_kept_while_it_is_renewed_and_then_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = claimed_elsewhere(tmp_path / "claim", monkeypatch, seconds=2.0)
    own = Claim(tmp_path / "claim", seconds=2.0)
    until = time.monotonic() + 2.5  # renewed every 0.7 seconds; a busy machine may be late
    while time.monotonic() < until:
        assert not own.take()
        time.sleep(0.05)
    other._lease._stop_heartbeat()  # it dies
    while not own.take():
        time.sleep(0.05)
    own.release()


def test_who_was_taken_over_finds_out(tmp_path: Path):
    claim = Claim(tmp_path / "claim", 0.3)
    assert claim.take()
    (tmp_path / "claim").unlink()
    other = Claim(tmp_path / "claim", 0.3)
    assert other.take()
    deadline = time.monotonic() + 60
    while not claim.lost:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not other.lost
    claim.release()
    assert other.holder is not None  # who has lost it does not remove it
    other.release()


def test_another_pace_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    other = claimed_elsewhere(tmp_path / "claim", monkeypatch)
    with pytest.raises(fsl.RunError, match=r"another --take-over than 9\. The same number"):
        Claim(tmp_path / "claim", 9.0).take()
    other.release()


def test_a_lock_is_seen(tmp_path: Path):
    assert not is_locked(tmp_path / ".lock")
    with only_one(tmp_path / ".lock"):
        assert is_locked(tmp_path / ".lock")
        with pytest.raises(Timeout), only_one(tmp_path / ".lock"):
            pass
    assert not is_locked(tmp_path / ".lock")


@pytest.mark.usefixtures("no_flock")
def test_without_flock_one_process_has_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(locks, "SILENCE", 3.0)
    with only_one(tmp_path / ".lock"):
        assert not is_locked(tmp_path / ".lock")  # nobody can tell
        began = time.monotonic()
        with pytest.raises(Timeout), only_one(tmp_path / ".lock"):
            pass
        assert time.monotonic() - began < 3.0  # its owner renewed it after one, so it lives
    with only_one(tmp_path / ".lock"):
        pass


@pytest.mark.usefixtures("no_flock")
def test_without_flock_a_dead_machine_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = claimed_elsewhere(tmp_path / ".lock.claim", monkeypatch)
    other._lease._stop_heartbeat()
    began = time.monotonic()
    with only_one(tmp_path / ".lock"):
        assert time.monotonic() - began > 0.6
