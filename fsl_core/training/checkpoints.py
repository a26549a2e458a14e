"""Checkpoints: one safetensors file each, written atomically, holding tensors and JSON but no code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from fsl_core.errors import RunError
from fsl_core.training.files import to_json


def save(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizer: Optimizer | None,
    progress: Mapping[str, Any],
) -> None:
    """Write weights, optimizer state and progress (plain JSON data) to path, all or nothing.

    optimizer: None where nothing is trained.
    """
    tensors = {
        f"{label}.{k}": v
        for label, module in modules.items()
        for k, v in module.state_dict().items()
    }
    packed = optimizer.state_dict() if optimizer else {"state": {}, "param_groups": []}
    scalars: dict[str, dict[str, Any]] = {}
    for index, state in packed["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                scalars.setdefault(str(index), {})[key] = value
    record = {
        "progress": dict(progress),
        "optimizer": {"scalars": scalars, "groups": packed["param_groups"]},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    copies = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()
    }  # tied weights share memory
    save_file(copies, partial, metadata={"fsl": to_json(record, path, sort_keys=True)})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def restore(
    path: Path, modules: Mapping[str, nn.Module], optimizer: Optimizer | None = None
) -> dict[str, Any]:
    """Load what `save` wrote into modules and optimizer; returns the progress.

    Raises RunError if the file is absent, damaged, or of other modules than these.
    """
    tensors, record = _read(path)
    for label, module in modules.items():
        prefix = f"{label}."
        own = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            first = next((line.strip() for line in str(error).splitlines()[1:]), str(error)).rstrip(
                "."
            )
            raise RunError(
                f"{path}: does not fit this recipe's {label}: {first}. A checkpoint of the same recipe"
            ) from error
    if optimizer is not None and record["optimizer"]["groups"]:  # none: of a run of no steps
        _restore_optimizer(optimizer, tensors, record["optimizer"])
    return record["progress"]


def progress_of(path: Path) -> dict[str, Any]:
    """The progress stored in a checkpoint; weights are not read."""
    return _read(path, weights=False)[1]["progress"]


def _read(path: Path, weights: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise RunError(f"{path}: no such checkpoint. A run directory that has been trained")
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys() if weights else ()
            tensors = {name: file.get_tensor(name) for name in names}
            return tensors, json.loads(file.metadata()["fsl"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise RunError(
            f"{path}: damaged checkpoint ({reason}). Delete it: `fsl resume` goes on from the "
            "other checkpoint, or from the start"
        ) from error


def _restore_optimizer(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], record: Mapping[str, Any]
) -> None:
    state: dict[int, dict[str, Any]] = {
        int(index): dict(values) for index, values in record["scalars"].items()
    }
    for name, tensor in tensors.items():
        label, _, rest = name.partition(".")
        if label == "optimizer":
            index, _, key = rest.partition(".")
            state.setdefault(int(index), {})[key] = tensor.clone() if tensor.dim() == 0 else tensor
    optimizer.load_state_dict({"state": state, "param_groups": record["groups"]})


def all_finite(modules: Mapping[str, nn.Module]) -> bool:
    """Whether every floating-point parameter and buffer is finite."""
    values = (
        v
        for module in modules.values()
        for v in module.state_dict().values()
        if v.is_floating_point()
    )
    return all(bool(torch.isfinite(v).all()) for v in values)
