"""Memory for many pictures, which a file stands in for."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from fsl_core.data import mapped


def resident(kind: str) -> int:
    """Bytes of this process in memory: `Anon`, which must stay there, or `File`, which need not."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    found = next(line for line in lines if line.startswith(f"Rss{kind}:"))
    return int(found.split()[1]) * 1024


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_a_large_one_needs_no_memory_and_leaves_no_file(cache, monkeypatch):
    monkeypatch.setattr(mapped, "LARGE", 1 << 26)
    before = resident("Anon")
    images = mapped.scratch((64, 1 << 20))
    images.fill_(7)
    assert resident("Anon") - before < 1 << 24
    assert int(images[-1, -1]) == 7
    assert list(cache.iterdir()) == []


def test_a_small_one_and_one_for_which_there_is_no_room_are_in_memory(cache, monkeypatch):
    assert mapped.scratch((3, 2)).shape == (3, 2)
    assert not cache.exists()
    monkeypatch.setattr(mapped, "LARGE", 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    in_file = mapped.scratch((4, 5)).fill_(1)
    assert cache.exists()
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    in_memory = mapped.scratch((4, 5)).fill_(1)
    assert torch.equal(in_file, in_memory)
    assert list(cache.iterdir()) == []
