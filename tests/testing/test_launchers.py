"""The kit's contract of launchers: the built-in one keeps it, and faults are named."""

from __future__ import annotations

import pytest

import fsl_core as fsl
from fsl_core.sweeping.local import Local
from fsl_core.testing import LauncherContract
from fsl_core.testing.launchers import prepared, work


class TestLocal(LauncherContract):
    def make(self):
        return Local()


class Careless(fsl.Launcher):
    """Does nothing, and says that all went well."""

    name = "careless"

    def start(self, work):
        for one in work:
            one.output.write_text("")

    def poll(self, run):
        return fsl.Ended(0)

    def stop(self, runs):
        pass


class Kit(LauncherContract):
    __test__ = False

    def make(self):
        return Careless()


def test_a_launcher_that_does_nothing_is_found_out(tmp_path):
    run = prepared(tmp_path / "run", {"steps": 0})
    with pytest.raises(AssertionError, match="without a result"):
        Kit()._ends_well(Careless(), run)
    with pytest.raises(AssertionError, match="of a process that failed"):
        Kit()._fails(Careless(), tmp_path / "empty")
    with pytest.raises(AssertionError, match="of a run at work"):
        Kit()._is_stopped(Careless(), run)


def test_a_launcher_without_its_methods_says_which():
    empty = type("Empty", (fsl.Launcher,), {"name": "empty"})()
    for method, arguments in (("start", [[]]), ("poll", ["run"]), ("stop", [[]])):
        with pytest.raises(NotImplementedError, match=rf"Empty\.{method}: not written"):
            getattr(empty, method)(*arguments)


def test_a_job_is_remembered_in_the_directory_of_its_run(tmp_path):
    run = prepared(tmp_path / "run", {"steps": 0})
    launcher, other = Careless(), type("Other", (fsl.Launcher,), {"name": "other"})()
    assert launcher.remembered(run) is None
    launcher.remember(run, "123_4")
    assert (launcher.remembered(run), other.remembered(run)) == ("123_4", None)
    assert work(run).command[1:4] == ["-m", "fsl_core", "resume"]
