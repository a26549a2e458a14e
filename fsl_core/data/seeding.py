"""Random state as a function of names, so that nothing has to be saved to continue exactly."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*names: object) -> int:
    """A 63-bit seed from any names, such as (recipe seed, "step", 17).

    The same names give the same seed on every machine: Python's own `hash` would not.
    """
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_torch(*names: object) -> None:
    """Set torch's global random state from names.

    Modules such as dropout draw from the global state. It is set at the start of every step, so a
    run that is resumed in the middle goes on with the same random numbers.
    """
    torch.manual_seed(derive_seed(*names))
