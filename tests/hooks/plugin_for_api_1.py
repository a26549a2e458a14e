"""A plugin made for hook API 1."""

import fsl_core as fsl

FSL_HOOK_API = 1
seen = []


@fsl.hookimpl
def fsl_step_finished(run, step):
    seen.append(step)


@fsl.hookimpl
def fsl_evaluated(split, result):
    seen.append(split)
