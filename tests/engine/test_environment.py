"""What is set before torch loads, and that nobody else can put code where compiled kernels are
read."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from torch._inductor import codecache

from fsl_core.engine.environment import prepare_process, use_private_kernels
from fsl_core.errors import CacheError

VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "GOMP_SPINCOUNT")
PREDICTABLE = Path(tempfile.gettempdir()) / "torchinductor_somebody"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "")  # so that it is put back, whatever a test sets
        monkeypatch.delenv(variable)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    for name in ("_HEADER_DIR", "_HEADER_LOCK_DIR"):
        monkeypatch.setattr(codecache, name, getattr(codecache, name))
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_process_of_ours_is_prepared_and_nothing_is_made_yet(cache: Path):
    prepare_process()
    kernels = cache / "compiled"
    expected = [str(kernels), str(kernels / "triton"), "20000"]
    assert [os.environ[variable] for variable in VARIABLES] == expected
    assert not cache.exists()


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch):
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "ACTIVE")
    prepare_process()
    assert [os.environ[variable] for variable in VARIABLES] == ["ACTIVE"] * 3


def test_a_policy_of_the_user_is_not_overruled(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    prepare_process()
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.parametrize("before", [None, PREDICTABLE], ids=["unset", "as torch names it"])
def test_kernels_lie_in_a_private_folder_of_the_cache(cache: Path, monkeypatch, before):
    if before:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(before))
    assert use_private_kernels() == cache / "compiled"
    assert (cache / "compiled").stat().st_mode & 0o777 == 0o700
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(cache / "compiled")
    assert os.environ["TRITON_CACHE_DIR"] == str(cache / "compiled" / "triton")
    assert str(cache / "compiled" / "precompiled_headers") == codecache._HEADER_DIR
    assert not PREDICTABLE.exists()


def test_a_folder_that_the_user_names_is_taken_and_looked_at(tmp_path: Path, monkeypatch):
    named = tmp_path / "kernels"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(named))
    assert use_private_kernels() == named
    named.chmod(0o777)
    with pytest.raises(CacheError, match="kernels: other users can write to it"):
        use_private_kernels()


def test_where_the_cache_cannot_be_written_kernels_serve_one_process(cache: Path):
    cache.write_text("a file where the folder should be")
    folder = use_private_kernels()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.parent == Path(tempfile.gettempdir())
    assert os.environ["TRITON_CACHE_DIR"] == str(folder / "triton")
    assert use_private_kernels() == folder


COMPILES = """
import torch

from fsl_core.engine.environment import use_private_kernels

torch.compile(lambda x: x)  # from here on torch has a folder in mind
use_private_kernels()
torch.compile(lambda x: x.sin() + 1)(torch.ones(3))
"""


@pytest.mark.slow
def test_compiling_leaves_nothing_in_the_temporary_folder(tmp_path: Path, cache: Path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    subprocess.run([sys.executable, "-c", COMPILES], env=environment, check=True)
    kernels = {path.suffix for path in (cache / "compiled").rglob("*")}
    assert {".so", ".h"} <= kernels
    assert [path for path in temporary.rglob("*") if path.is_file()] == []


GRADIENT = """
import hashlib

import torch

torch.set_num_threads(2)
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.Tanh(), torch.nn.Linear(300, 300))
net(torch.randn(200, 300)).pow(2).sum().backward()
moved = b"".join(p.grad.numpy().tobytes() for p in net.parameters())
print(hashlib.sha256(moved).hexdigest())
"""


def test_how_long_a_waiting_thread_spins_changes_no_bit():
    def digest(spins: str) -> str:
        ran = subprocess.run(
            [sys.executable, "-c", GRADIENT],
            env=os.environ | {"GOMP_SPINCOUNT": spins},
            capture_output=True,
            text=True,
            check=True,
        )
        return ran.stdout

    assert digest("infinite") == digest("20000") == digest("0") != ""
