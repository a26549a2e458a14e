"""What torch and OpenMP read from the environment when they are loaded.

Free of torch, except for `use_private_kernels`, which is for those who compile.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from fsl_core.errors import RunError
from fsl_core.files.private import cache_dir, private_folder

STORE = "FSL_RANKS_STORE"
"""The file by which processes that `fsl run --processes` started find each other."""

_PR_SET_PDEATHSIG = 1
KERNELS, TRITON_KERNELS = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"


def prepare_process() -> None:
    """Set, before torch is imported, what a process of our own needs; what the user has set stays.

    Threads of an operation soon sleep while they wait for one another. By default they spin, which
    on a machine that also does something else takes away the very core that is being waited for;
    to sleep at once costs small operations on a quiet machine more than it saves.
    """
    if "OMP_WAIT_POLICY" not in os.environ:  # a count of turns would take its place
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    kernels = Path(os.environ.setdefault(KERNELS, str(cache_dir() / "compiled")))
    os.environ.setdefault(TRITON_KERNELS, str(kernels / "triton"))


def use_private_kernels() -> Path:
    """The folder of compiled kernels, which torch loads and runs as it finds them there.

    It is the one that the user named in TORCHINDUCTOR_CACHE_DIR, or else a folder of our cache. If
    that cannot be written, it is a new one for this process alone.
    Raises CacheError if another user can put files into it.
    """
    named = os.environ.get(KERNELS)
    folder = cache_dir() / "compiled"
    if named is not None and not _chosen_by_torch(Path(named)):
        folder = Path(named)
    triton = Path(os.environ.get(TRITON_KERNELS, folder / "triton"))
    try:
        private_folder(folder)
        private_folder(triton)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="fsl-kernels-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        triton = folder / "triton"
    os.environ |= {KERNELS: str(folder), TRITON_KERNELS: str(triton)}
    _move_headers(folder / "precompiled_headers")
    return folder


def _move_headers(folder: Path) -> None:
    """Compiled headers become part of every kernel, and torch has no setting for their place."""
    from torch._inductor import codecache, config

    if codecache.__dict__.get("_HEADER_DIR") == str(folder):
        return
    if not {"_HEADER_DIR", "_HEADER_LOCK_DIR", "_precompile_header"} <= vars(codecache).keys():
        config.cpp_cache_precompile_headers = False  # another version of torch: slower, but safe
        return
    codecache._HEADER_DIR, codecache._HEADER_LOCK_DIR = str(folder), str(folder / "locks")
    codecache._precompile_header.cache_clear()


def _chosen_by_torch(folder: Path) -> bool:
    """Whether torch named the folder itself: any user can tell that name beforehand."""
    temporary = folder.parent == Path(tempfile.gettempdir())
    return temporary and folder.name.startswith("torchinductor_")


def place_among_ranks() -> tuple[int, int]:
    """The number of this process among those that compute one run, and how many there are.

    (0, 1) if nobody started it as one of several. RunError for numbers that cannot be.
    """
    told = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    met = os.environ.get(STORE) or (os.environ.get("MASTER_ADDR") and os.environ.get("MASTER_PORT"))
    if None in told.values() or not met:
        return 0, 1
    try:
        rank, count = int(told["RANK"] or ""), int(told["WORLD_SIZE"] or "")
    except ValueError:
        rank, count = -1, 0
    if not 0 <= rank < count:
        raise RunError(
            f"RANK={told['RANK']} WORLD_SIZE={told['WORLD_SIZE']}: not the place of one process "
            "among several. As torchrun sets them, or neither of them"
        )
    return rank, count


def die_with_parent() -> None:
    """Have the kernel end this process when the one that started it has ended, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def threads_of(workers: int) -> int:
    """Threads for each of this many processes: OMP_NUM_THREADS, or an equal share of the cores."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdigit() and int(told):
        return int(told)
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # those that this process may use, as in a container
        cores = len(os.sched_getaffinity(0))
    return max(1, cores // workers)
