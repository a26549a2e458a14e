"""`python -m benchmarks --quick` as `make bench` calls it, with whatever is installed here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks import install
from benchmarks.__main__ import SECTIONS, _kept, main
from benchmarks.report import _OTHERS, RACES
from benchmarks.settings import watch_others


def bench(root: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    kept = {name: v for name, v in os.environ.items() if not name.startswith("FSL_")}
    environment = {**kept, "FSL_CACHE": os.environ["FSL_CACHE"]}  # of the tests, not the user's
    environment["TORCHDYNAMO_DISABLE"] = "1"  # compiling takes minutes, and is tested elsewhere
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=550, check=False
    )


def measured(out: Path) -> tuple[dict, str]:
    """The figures and the page that a run of the benchmarks wrote."""
    results = json.loads((out / "speed.json").read_text("utf-8"))
    assert [len(found) for found in results.values()] == [1] * len(results)
    return {name: found[0] for name, found in results.items()}, (out / "speed.md").read_text()


def test_a_section_alone_keeps_what_others_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    threads: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    for section in ("gpu", "centroid"):
        options = ["--quick", "--out", str(tmp_path), "--threads", "1", "--only", section]
        assert main(options) == 0
    results, text = measured(tmp_path)
    assert list(results) == ["gpu", "centroid"]
    assert threads == [1, 1]
    assert "ours, loop" in results["centroid"]["seconds"]
    assert results["centroid"]["machine"]["threads"] == torch.get_num_threads()
    for name in ("learn2learn", "easyfsl"):
        if find_spec(name) is None:
            assert f"- {name} is left out: not installed here" in text
        else:
            assert results["centroid"]["agreement"]["float64"][name] < 1e-9


@pytest.mark.slow
def test_every_section_measures_or_says_why_not(root: Path, tmp_path: Path):
    done = bench(root, "--quick", "--out", tmp_path, "--threads", 1)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    results, text = measured(tmp_path)
    assert {result["machine"]["threads"] for result in results.values()} == {1}
    assert list(results) == list(SECTIONS)
    skipped = {name: result["skipped"] for name, result in results.items() if "skipped" in result}
    assert not {name: reason for name, reason in skipped.items() if reason.startswith("FAILED")}
    assert all(f"Not measured: {reason}." in text for reason in skipped.values())
    assert {"centroid", "adaptation"}.isdisjoint(skipped), (
        "these need no plugin, no peer and no download"
    )
    assert "nearest-centroid" in results["adaptation"]["adapters"]
    if "growth" not in skipped:
        assert all(len(axis["exponents"]) for axis in results["growth"]["axes"].values())
    if "memory" not in skipped:
        assert min(results["memory"]["bytes"]["1 step"].values()) > 0


def test_each_machine_keeps_its_own_figures():
    amd, intel = ({"processor": name, "threads": 2, "gpu": "none"} for name in ("AMD", "Intel"))
    old, other, new = {"machine": amd, "rounds": 1}, {"machine": intel}, {"machine": amd}
    assert _kept([old, other], new, fault=False) == [other, new]
    left_out = {"machine": amd, "skipped": "no GPU here"}
    assert _kept([], left_out, fault=False) == [left_out]
    assert _kept([old, other], left_out, fault=False) == [old, other]
    assert _kept([left_out], other, fault=False) == [other]
    fault = {"machine": amd, "skipped": "FAILED: Disagreement"}
    assert _kept([old, other], fault, fault=True) == [other, fault]


def test_work_of_others_is_told_from_our_own():
    others = watch_others()
    spent = time.process_time() + 0.3
    while time.process_time() < spent:
        pass
    subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
    assert (found := others()) is None or 0 <= found < os.cpu_count()


def test_every_section_is_on_the_page():
    assert {*RACES, *(section for section, _, _ in _OTHERS)} == set(SECTIONS)


def test_an_unknown_section_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["--only", "omniglott"]) == 2
    assert capsys.readouterr().err.startswith(
        "--only: no section omniglott. Some of sinusoid, omniglot, "
    )


def test_a_peer_that_cannot_be_installed_gives_one_line():
    reason = install._pip("--no-index", "--find-links", os.devnull, "no-such-peer==1.0")
    assert "no-such-peer" in reason
    assert "\n" not in reason


def test_why_a_peer_is_absent_is_told_in_its_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from benchmarks import peers
    from benchmarks.race import LeftOut

    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    monkeypatch.delitem(sys.modules, "benchmarks.peers.learn2learn", raising=False)
    (tmp_path / "peers.json").write_text('{"learn2learn": "error: no compiler"}')
    with pytest.raises(LeftOut, match="error: no compiler"):
        peers.peer("learn2learn")


def test_the_peers_of_the_page_are_the_peers_installed(root: Path):
    lines = (root / "benchmarks" / "requirements.txt").read_text("utf-8").splitlines()
    from benchmarks.peers import BASELINES, LIBRARIES

    others = {name for name in BASELINES if not name.startswith("torch")}
    installed = {line.partition("==")[0] for line in lines if not line.startswith("#")}
    assert installed == {*LIBRARIES, *others}
