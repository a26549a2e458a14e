"""For every test: fences of README and docs run, and the user's cache is left alone.

Python in a fence is executed, YAML is checked as a recipe.
"""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import pytest
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from fsl_core.assembly.experiment import build_experiment
from fsl_core.config.document import read_document
from fsl_core.config.matrix import has_matrix, read_matrix
from fsl_core.config.recipe import read_recipe
from fsl_core.config.search import has_search, read_search
from fsl_core.engine.environment import prepare_process
from fsl_core.hooks.loader import load
from fsl_core.sweeping.plan import plan_sweep
from fsl_core.sweeping.search import checked_metric

# No test is decided by what was measured before, or leaves what it measured for the user's runs.
# Compiled kernels alone stay where they are: making them takes minutes.
prepare_process()
os.environ["FSL_CACHE"] = mkdtemp(prefix="fsl-tests-")
atexit.register(shutil.rmtree, os.environ["FSL_CACHE"], ignore_errors=True)

# What a shell starts in the background ignores Ctrl-C, what nohup starts ignores the terminal's
# end, and so would all that a test starts.
for name, handler in {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL}.items():
    number = getattr(signal, name, None)  # Windows knows no SIGHUP
    if number is not None and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


def pytest_configure(config: pytest.Config) -> None:
    """No test adds to the list of plugins that the user of this machine trusts."""
    os.environ["FSL_STATE"] = mkdtemp()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Garbage is not looked for in what lives as long as the tests: six seconds in a hundred."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ.pop("FSL_STATE", ""), ignore_errors=True)


def _check_recipe(example) -> None:
    with TemporaryDirectory() as folder:
        recipe = Path(folder) / f"{Path(example.path).stem}.yaml"
        recipe.write_text(example.parsed, encoding="utf-8")
        if has_search(recipe):
            checked_metric(read_search(recipe, load().catalogue))
        elif has_matrix(recipe):
            plan_sweep(read_matrix(recipe, load().catalogue))
        else:
            build_experiment(read_recipe(recipe, load().catalogue, _start_values(recipe)))


def _start_values(recipe: Path) -> list[str]:
    """An override for a backbone that would fetch its weights: no test needs the network."""
    data = read_document(recipe).data
    return ["backbone.weights=null"] if "weights" in data.get("backbone", {}) else []


PAGES = Sybil(
    parsers=[PythonCodeBlockParser(), CodeBlockParser(language="yaml", evaluator=_check_recipe)],
    patterns=["README.md", "docs/*.md", "docs/results/*.md"],
)


class Page(pytest.File):
    """One test a page: its fences use what earlier ones made, so no two processes share them."""

    def collect(self):
        if document := list(PAGES.parse(self.path)):
            yield Fences.from_parent(self, name="fences", examples=document)


class Fences(pytest.Item):
    def __init__(self, *, examples, **kwargs) -> None:
        super().__init__(**kwargs)
        self.examples = examples

    def runtest(self) -> None:
        for example in self.examples:
            example.evaluate()

    def reportinfo(self):
        return self.path, 0, f"{self.path.name}: fences"


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> Page | None:
    return Page.from_parent(parent, path=file_path) if PAGES.should_parse(file_path) else None
