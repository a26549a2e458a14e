"""Which device computes."""

from __future__ import annotations

import torch

from fsl_core.errors import RunError


def choose_device(name: str | torch.device) -> torch.device:
    """The device with that name; `auto` takes a GPU if there is one.

    Raises RunError if it is not available here.
    """
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
