from __future__ import annotations

import os
import subprocess
import sys

import pytest

import fsl_core
import fsl_core.data


def test_every_public_name_exists_and_is_listed_once():
    assert fsl_core.__all__ == sorted(
        set(fsl_core.__all__), key=lambda n: (not n.isupper(), not n[0].isupper(), n)
    )
    assert set(fsl_core.__all__) == set(fsl_core._HOME)
    for name in fsl_core.__all__:
        assert getattr(fsl_core, name) is not None
    assert set(fsl_core.__all__) <= set(dir(fsl_core))


def test_names_for_sources_exist_and_are_listed_once():
    assert fsl_core.data.__all__ == sorted(
        set(fsl_core.data.__all__), key=lambda n: (not n[0].isupper(), n)
    )
    assert set(fsl_core.data.__all__) == {*fsl_core.data._HOME, "omniglot"}
    for name in fsl_core.data.__all__:
        assert getattr(fsl_core.data, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'pixels'"):
        _ = fsl_core.data.pixels


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Adaptor'"):
        _ = fsl_core.Adaptor


def test_the_front_door_prepares_the_threads_of_torch():
    code = "import os, fsl_core; fsl_core.run; print(os.environ['GOMP_SPINCOUNT'])"
    unset = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {k: v for k, v in os.environ.items() if k not in unset}
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == "20000\n"


@pytest.mark.parametrize(
    "module", ["fsl_core", "fsl_core.data", "fsl_core.cli", "fsl_core.hooks.specs"]
)
def test_torch_is_imported_late(module: str):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
