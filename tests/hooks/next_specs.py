"""The hooks of a later fsl-core, for tests: API 3 has deprecated one hook and one argument of API 1
and brought a hook."""

from __future__ import annotations

from fsl_core.hooks import specs
from fsl_core.hooks.specs import HookDeprecation, hookspec
from fsl_core.hooks.specs import fsl_register_weightings as fsl_register_weightings

__all__ = ["HOOK_API", "HookDeprecation", "fsl_register_weightings"]
HOOK_API = 3
for name in (
    "fsl_register_episodes",
    "fsl_register_backbones",
    "fsl_register_adapters",
    "fsl_run_started",
    "fsl_run_finished",
):
    globals()[name] = getattr(specs, name)


@hookspec(since=1, arguments={"split": "since hook API 3, gone in 5. result['split']"})
def fsl_evaluated(run, split, result): ...


@hookspec(since=1, deprecated="since hook API 3, gone in 5. fsl_batch_finished")
def fsl_step_finished(run, step, metrics): ...


@hookspec(since=3)
def fsl_batch_finished(run, step, metrics, episodes): ...
