"""In which environment a run is computed: versions, machine and plugins."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from functools import reduce
from importlib import metadata
from typing import Any

import torch

from fsl_core.engine.devices import processor
from fsl_core.errors import RunError
from fsl_core.hooks.loader import Loaded
from fsl_core.hooks.plugin import Plugin
from fsl_core.runs.files import ENVIRONMENT, to_json, write_atomically
from fsl_core.runs.run import Run


def describe_environment(plugins: Iterable[Plugin]) -> dict[str, Any]:
    """Versions, machine and plugins, for results and bug reports."""
    packages = ("fsl-core", "torch", "torchvision", "numpy", "pluggy", "pydantic", "safetensors")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in packages},
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "plugins": {
            p.name: p.origin for p in plugins if p.status == "ok" and p.distribution != "fsl-core"
        },
    }


def keep_where_it_goes_on(run: Run, environment: dict[str, Any], loaded: Loaded) -> None:
    """Add to environment.json what is not as it was when the run was last computed, and tell it.

    A run with no step done is computed whole where it goes on.
    """
    assert run.directory is not None
    try:
        step = run.kept_step()
    except RunError:  # a damaged checkpoint, which is told where it is restored
        return
    if run.records.result() is not None or not step:
        return
    # One-file plugins have digests of their own, and are found in another way now.
    packaged = [plugin for plugin in loaded.plugins if plugin.version]
    now = {**describe_environment(packaged), "device": str(run.device)}
    earlier = environment.get("went_on", [])
    before = reduce(_laid_over, earlier, environment)
    known = [key for key in now if key in before]  # what an earlier version did not keep is unknown
    changed = {key: new for key in known if (new := _changed(before[key], now[key])) != {}}
    if changed:
        kept = {**environment, "went_on": [*earlier, {"at": step, **changed}]}
        write_atomically(run.directory / ENVIRONMENT, to_json(kept, ENVIRONMENT, indent=2) + "\n")
        run.notes.append(
            f"from step {step} on computed in another environment: {', '.join(changed)} in "
            f"{ENVIRONMENT}, so that the numbers may differ from those of one machine by rounding"
        )


def _changed(before: Any, now: Any) -> Any:
    """What is new; of mappings the keys of both that are, since a package more changes nothing.

    An empty mapping if nothing is.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        return {key: now[key] for key in now if key in before and before[key] != now[key]}
    return {} if before == now else now


def _laid_over(environment: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """The environment with a change of it, of mappings key by key."""
    over = dict(environment)
    for key, new in change.items():
        old = environment.get(key)
        over[key] = {**old, **new} if isinstance(old, dict) and isinstance(new, dict) else new
    return over
