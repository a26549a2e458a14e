"""A plugin that works from hook API 1 on and uses what API 3 brought where it is there."""

import fsl_core as fsl

FSL_HOOK_API = 1
seen = []


@fsl.hookimpl(optionalhook=True)
def fsl_batch_finished(step):
    seen.append(("batch", step))


@fsl.hookimpl
def fsl_run_started(run, resumed=None):
    seen.append(("started", resumed))
