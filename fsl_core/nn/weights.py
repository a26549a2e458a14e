"""Weights from a file: read without running code, fitted by name or else by position."""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from fsl_core.files.reading import open_regular
from fsl_core.text import first_line

WRAPPERS = ("state_dict", "model_state_dict", "model", "teacher")
"""Where training programs put the weights in what they save."""
DAMAGED = (pickle.UnpicklingError, LookupError, AttributeError, TypeError)
"""What unpickling raises of bytes that are no pickle, or that ask for more than tensors."""
UNREADABLE = (SafetensorError, *DAMAGED, RuntimeError, ValueError, EOFError, OSError)
CLASSIFIER = 2
"""Tensors that may follow those of a network without its classifier: a weight and a bias."""


@dataclass(frozen=True)
class LoadedWeights:
    """Where the weights of a network came from.

    file:   as it was named.    sha256: of its bytes.
    fitted: `name`, or `position`: names differ, and the shapes are equal one after the other.
    """

    file: Path
    sha256: str
    fitted: Literal["name", "position"]

    def __str__(self) -> str:
        how = "by name" if self.fitted == "name" else "by position: names differ, shapes are equal"
        return f"weights of {self.file} (sha256 {self.sha256[:12]}), fitted {how}"


def load_weights(net: nn.Module, file: Path) -> LoadedWeights:
    """Fill parameters and buffers of a network from a file; further tensors of it are left out.

    By name where every name of the network is there with its shape, also behind a common prefix
    such as `module.`. Otherwise by position, where the file begins with tensors of the same shapes
    in the same order (counters of batch norms apart) and has two more at most, of a classifier.

    file: .safetensors, or what torch.save wrote; the latter is read by `weights_only=True`, so no
        code in it is run.
    Raises ValueError, one line, if it cannot be read or fits neither way.
    """
    content = _bytes_of(file)
    found = _tensors_of(file, content)
    own = net.state_dict()
    fitted: Literal["name", "position"] = "name"
    chosen = _by_name(own, found)
    if chosen is None:
        fitted, chosen = "position", _by_position(own, found)
    if chosen is None:
        raise ValueError(f"weights: {file}: {_misfit(own, found)}. Weights of this very network")
    net.load_state_dict({name: chosen.get(name, tensor) for name, tensor in own.items()})
    return LoadedWeights(file, hashlib.sha256(content).hexdigest(), fitted)


def _bytes_of(file: Path) -> bytes:
    with open_regular(file.expanduser()) as opened:
        return opened.read()


def _tensors_of(file: Path, content: bytes) -> dict[str, Tensor]:
    try:
        loaded: Any = _parsed(file, content)
    except UNREADABLE as error:
        reason = first_line(error, 120)
        if isinstance(error, DAMAGED):  # torch tells at length how to trust it
            reason = "damaged, or it holds pickled code"
        raise ValueError(
            f"weights: {file}: not read ({reason}). A .safetensors file, or one of torch.save that "
            "holds tensors alone"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    tensors = loaded.items() if isinstance(loaded, Mapping) else ()
    found = {str(name): value for name, value in tensors if isinstance(value, Tensor)}
    if not found:
        raise ValueError(f"weights: {file}: no tensors by name. A state dict of a network")
    return found


def _parsed(file: Path, content: bytes) -> Any:
    if file.suffix == ".safetensors":
        return load_safetensors(content)
    with warnings.catch_warnings(action="ignore"):  # of pickle protocols, which it reads or refuses
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _by_name(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    needed = _without_counters(own)
    for prefix in _prefixes(needed, found):
        named = {name: found.get(prefix + name) for name in needed}
        if all(t is not None and t.shape == own[name].shape for name, t in named.items()):
            return {name: tensor for name, tensor in named.items() if tensor is not None}
    return None


def _prefixes(needed: Iterable[str], found: Iterable[str]) -> list[str]:
    """What stands before the name of the network's first tensor in the file; mostly nothing."""
    first = next(iter(needed), "")
    return sorted({name.removesuffix(first) for name in found if name.endswith(first)}, key=len)


def _by_position(
    own: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    names, tensors = _without_counters(own), list(_without_counters(found).values())
    if not len(names) <= len(tensors) <= len(names) + CLASSIFIER:
        return None
    if any(own[name].shape != t.shape for name, t in zip(names, tensors, strict=False)):
        return None
    return dict(zip(names, tensors, strict=False))


def _without_counters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the batch norms' counts of batches, which older files lack and nothing reads."""
    return {name: t for name, t in tensors.items() if t.dim() or t.is_floating_point()}


def _misfit(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    needed, there = _without_counters(own), _without_counters(found)
    absent = [name for name in needed if name not in there]
    differ = [name for name in needed if name in there and there[name].shape != needed[name].shape]
    by_name = f"no {absent[0]}" if absent else f"{differ[0]} of another shape" if differ else ""
    pairs = zip(needed.items(), there.items(), strict=False)
    for k, ((name, mine), (other, theirs)) in enumerate(pairs):
        if mine.shape != theirs.shape:
            place = f"tensor {k} is {other} {tuple(theirs.shape)}, and {name} {tuple(mine.shape)}"
            return f"{len(there)} tensors fit neither by name ({by_name}) nor by position ({place})"
    return f"{len(there)} tensors, and the network has {len(needed)}"
