"""Checks slurm with the conformance kit, on submitit's executor of this machine."""

import pytest

pytest.importorskip("submitit", reason="submitit is not installed")

from fsl_core.testing import LauncherContract
from fsl_submitit import Slurm


class TestLocal(LauncherContract):
    def make(self):
        return Slurm(cluster="local")
