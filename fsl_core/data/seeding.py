"""Random state as a function of names, so that nothing has to be saved to continue exactly."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*names: object) -> int:
    """A 63-bit seed from any names, such as (recipe seed, "step", 17); the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_torch(*names: object) -> None:
    """Set torch's global random state from names."""
    torch.manual_seed(derive_seed(*names))
