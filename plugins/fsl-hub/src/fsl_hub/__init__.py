"""The hook of a store: runs on the Hugging Face Hub, under `hf:user/name`."""

from __future__ import annotations

import fsl_core as fsl
from fsl_hub.store import Hub

__all__ = ["FSL_HOOK_API", "Hub", "fsl_register_stores"]

FSL_HOOK_API = 1


@fsl.hookimpl
def fsl_register_stores(register) -> None:
    register(Hub)
