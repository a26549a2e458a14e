"""`pytest --fsl-adapter NAME`: what it collects, what it reports, and what it says of mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run pytest in this process, in an empty folder; what it printed and its exit code."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")

    def call(*arguments: str) -> tuple[str, int]:
        code = pytest.main(["-q", "-p", "no:cacheprovider", *arguments])
        printed = capsys.readouterr()
        return printed.out + printed.err, int(code)

    return call


def test_report_of_an_installed_adapter(kit, tmp_path: Path):
    printed, code = kit(
        "--fsl-adapter", "nearest-centroid:{distance: cosine}", "--fsl-report", "report.md"
    )
    assert code == 0
    report = (tmp_path / "report.md").read_text()
    assert report in printed
    assert (
        "### Conformance of adapter `nearest-centroid` with options `{distance: cosine}`" in report
    )
    assert "fsl-core 0." in report
    assert "torch " in report
    rows = {
        row.split("|")[1].strip(): row.split("|")[2].strip()
        for row in report.splitlines()
        if row.startswith("| ")
    }
    assert rows["label equivariance"] == rows["gradient is that of finite differences"] == "passed"
    assert (
        rows["compiled equals the loop"]
        == "not run: --fsl-compiled was not given, because it takes a minute"
    )
    assert rows["device"] in ("passed", "passed; not run: no CUDA")
    assert (
        f"{len(rows) - 2} properties passed, 0 failed, 1 not run" in report
    )  # a heading; the compiled one


def test_every_kind_at_once_beside_a_test_of_ones_own(kit, tmp_path: Path):
    (tmp_path / "test_mine.py").write_text("def test_mine(): pass\n")
    named = [
        "--fsl-weighting",
        "uniform",
        "--fsl-weighting",
        "uniform:{reduction: sum}",
        "--fsl-episodes",
        "sinusoid:{tasks: 4}",
        "--fsl-hypergradient",
        "first-order",
    ]
    printed, code = kit(
        *named,
        "--fsl-backbone",
        "mlp:{hidden: [5]}",
        "--fsl-claims",
        "{input_shape: [4], exact: 'no'}",
        "test_mine.py",
    )
    assert code == 0
    for title in (
        "weighting `uniform`\n",
        "weighting `uniform` with options",
        "episodes `sinusoid`",
        "hypergradient `first-order`",
        "backbone `mlp`",
    ):
        assert f"### Conformance of {title}" in printed
    printed, code = kit("test_mine.py")
    assert printed.splitlines()[-1].startswith("1 passed")
    assert "conformance" not in printed


def test_a_failed_property_is_told_in_the_table(kit):
    printed, code = kit("--fsl-weighting", "uniform", "--fsl-claims", "{random: true}", "--tb=no")
    assert code == 1
    assert (
        "| randomness is claimed | **failed**: random: True, and 20 seeds give the same weights. Drop the claim |"
        in printed
    )
    assert "1 failed" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--fsl-adapter", "nearest-centroit"],
            "no installed plugin offers it. Did you mean 'nearest-centroid'?",
        ),
        (
            ["--fsl-backbone", "mlp:{hiden: [3]}"],
            "--fsl-backbone mlp: backbone.hiden: backbone 'mlp' has no such option",
        ),
        (
            ["--fsl-backbone", "mlp:3"],
            "--fsl-backbone mlp: options '3'. A mapping after the colon: 'mlp:{key: value}'",
        ),
        (["--fsl-weighting", "uniform:{"], "--fsl-weighting uniform: YAML syntax: "),
        (
            ["--fsl-adapter", "nearest-centroid", "--fsl-claims", "{any_roworder: true}"],
            "Did you mean 'any_row_order'?",
        ),
        (
            ["--fsl-adapter", "nearest-centroid", "--fsl-claims", "{random: true}"],
            "random: no claim of adapter. Claims: adapts_frozen",
        ),
        (
            ["--fsl-hypergradient", "unrolled", "--fsl-claims", "{exact: roughly}"],
            "exact: found \"roughly\". Expected 'always', 'at the minimum' or 'no'",
        ),
        (
            ["--fsl-adapter", "nearest-centroid", "--fsl-claims", "{any_row_order: 3}"],
            "found 3. Expected a valid boolean",
        ),
        (
            ["--fsl-adapter", "nearest-centroid", "--fsl-claims", "3"],
            "--fsl-claims: '3'. A mapping such as '{random: true}'",
        ),
        (["--fsl-report", "x.md"], "--fsl-report: nothing to check. One of --fsl-adapter, "),
        (
            ["--fsl-adapter", "nearest-centroid:{temperature: -1}"],
            "temperature: found -1. Expected greater than 0",
        ),
    ],
)
def test_mistakes_are_one_line(kit, arguments, message):
    printed, code = kit(*arguments)
    assert code == 4
    assert message in printed
    assert "Traceback" not in printed


def test_pytest_without_an_option_imports_no_torch(tmp_path: Path):
    """Of the environment's other projects, every run of pytest loads the plugin."""
    code = "import sys, pytest; pytest.main(['-q', '--co', '-c', '/dev/null', '.']); print(sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    loaded = done.stdout.splitlines()[-1]
    assert "'fsl_core.testing.plugin'" in loaded
    assert "'torch'" not in loaded


SUPER = (
    "its constructor does not call that of torch.nn.Module. super().__init__() in its first line"
)
FAULTY = """
import pytest
import torch

import fsl_core as fsl
from fsl_core.testing import AdapterContract, BackboneContract, EpisodesContract, WeightingContract


class NoSuper(fsl.Adapter):
    name = "no-super"

    def __init__(self, task):
        self.n_way = task.n_way


class Transposed(fsl.Adapter):
    name = "transposed"

    def __init__(self, task):
        super().__init__()
        self.head = torch.nn.Linear(5, 3)

    def adapt(self, backbone, support):
        return lambda x: self.head(backbone(x)).T


class Counting(Transposed):
    name = "counting"
    calls = 0

    def adapt(self, backbone, support):
        self.calls += 1
        calls = self.calls
        return lambda x: self.head(backbone(x)) * calls


class TestNoSuper(AdapterContract):
    def make(self, task):
        return NoSuper(task)


class TestTransposed(AdapterContract):
    def make(self, task):
        return Transposed(task)


class TestCounting(AdapterContract):
    def make(self, task):
        return Counting(task)


class TestWeighting(WeightingContract):
    def make(self):
        raise KeyError("temperature")


class TestBackbone(BackboneContract):
    input_shape = (4,)

    def make(self, task):
        return torch.nn.Linear(4, 3)


class TestEpisodes(EpisodesContract):
    def make(self):
        return 3
"""


def test_what_builds_upon_a_failed_property_is_not_run_and_names_it(kit, tmp_path: Path):
    (tmp_path / "test_faulty.py").write_text(FAULTY)
    printed, code = kit("test_faulty.py", "-rfs", "--tb=line")
    assert code == 1
    failed = [line.split(" - ")[0] for line in printed.splitlines() if line.startswith("FAILED")]
    assert [line.removeprefix("FAILED test_faulty.py::") for line in failed] == [
        "TestNoSuper::test_claims[classification]",
        "TestTransposed::test_predictions_have_their_shape[classification-none]",
        "TestTransposed::test_predictions_have_their_shape[classification-transductive]",
        "TestCounting::test_adapt_changes_nothing[classification-none]",
        "TestCounting::test_adapt_changes_nothing[classification-transductive]",
        "TestWeighting::test_claims",
        "TestBackbone::test_claims",
        "TestEpisodes::test_claims",
    ]
    assert SUPER in printed
    for cause in (
        "claims",
        "predictions have their shape",
        "adapt changes nothing",
    ):
        assert f"not run: {cause} failed" in printed


NO_SUPER = """
import fsl_core as fsl


class NoSuper(fsl.Adapter):
    name = "no-super"

    def __init__(self, task: fsl.TaskShape):
        self.n_way = task.n_way


@fsl.hookimpl
def fsl_register_adapters(register):
    register(NoSuper)
"""


def test_an_installed_adapter_without_super_is_one_failure(
    kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from fsl_core.hooks.loader import load
    from fsl_core.testing import installed

    (tmp_path / "no_super.py").write_text(NO_SUPER)
    monkeypatch.setattr(installed, "load", lambda: load(files=[tmp_path / "no_super.py"]))
    printed, code = kit("--fsl-adapter", "no-super", "--tb=no")
    assert code == 1
    assert "INTERNALERROR" not in printed
    assert f"| claims | **failed**: make: NoSuper: {SUPER}" in printed
    assert "| support order | not run: claims failed |" in printed
    assert "0 properties passed, 1 failed" in printed
