"""A plugin that cannot do without the hook that API 3 brought."""

import fsl_core as fsl

FSL_HOOK_API = 3


@fsl.hookimpl
def fsl_batch_finished(run, episodes): ...
