"""Which device computes."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from fsl_core.engine.ranks import ALONE, Ranks
from fsl_core.errors import RunError


def choose_device(name: str | torch.device, ranks: Ranks = ALONE) -> torch.device:
    """The device with that name; `auto` takes a GPU if there is one.

    ranks: the processes of a run. On GPUs each of them has one of its own.
    Raises RunError if it is not available here.
    """
    device = _device(name)
    if ranks.alone or device.type != "cuda":
        return device
    own = int(os.environ.get("LOCAL_RANK", ranks.rank))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.count))
    found = torch.cuda.device_count()
    if device.index is not None:
        raise RunError(
            f"--device {name}: {here} processes cannot share one GPU. cuda, which gives each its "
            "own, or cpu"
        )
    if here > found:
        raise RunError(
            f"--device {name}: {here} processes on this machine, and GPUs: {found}. One process "
            "for each GPU, or --device cpu"
        )
    torch.cuda.set_device(own)
    return torch.device("cuda", own)


def _device(name: str | torch.device) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).tolist()  # some devices fail at the first use alone
    except (RuntimeError, AssertionError) as error:
        raise RunError(
            f"--device {name}: not available here. auto, cpu, or cuda where a GPU is present"
        ) from error
    return device


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has units for products in bfloat16; True where that is not known."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return True
    # torch has no public question for these instructions.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    asked = [getattr(torch.cpu, name, lambda: True) for name in names]
    return any(ask() for ask in asked)


def processor() -> str:
    """The model of the processor, if the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else f"{platform.machine()} {platform.processor()}"
