"""Checkpoints: one safetensors file each, written atomically, with tensors and JSON but no code."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from fsl_core.errors import RunError
from fsl_core.files.writing import replacing
from fsl_core.runs.files import Record, check_record, is_file, load_json, reading, to_json

Tensors = dict[str, Tensor]


class _Optimizer(Record):
    scalars: dict[str, dict[str, Any]]
    groups: list[dict[str, Any]]


class _Checkpoint(Record):
    progress: dict[str, Any]
    optimizer: _Optimizer


def save(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizer: Optimizer | None,
    progress: Mapping[str, Any],
) -> None:
    """Write weights, optimizer state and progress (plain JSON data) to path, all or nothing.

    optimizer: None if nothing is trained.
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
    save_tensors(path, tensors, {"fsl": to_json(record, path, sort_keys=True)})


def save_tensors(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    """Write one safetensors file, all of it or nothing, as readable as other files of the user."""
    copies = {  # tied weights share memory, which the format does not allow
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()
    }
    with replacing(path) as new:
        save_file(copies, new, metadata=metadata)


def restore(
    path: Path, modules: Mapping[str, nn.Module], optimizer: Optimizer | None = None
) -> dict[str, Any]:
    """Load what `save` wrote into modules and optimizer; returns the progress.

    Raises RunError if the file is absent, damaged, or of other modules than these. Nothing is
    converted: a tensor of another type than the weight is refused.
    """
    tensors, record = _read(path)
    strange = [name for name in tensors if name.partition(".")[0] not in (*modules, "optimizer")]
    if strange:
        raise RunError(f"{path}: {strange[0]!r} belongs to no part of a run. {_SAME_RECIPE}")
    for label, module in modules.items():
        prefix = f"{label}."
        own = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        try:
            load_weights(module, own)
        except ValueError as error:
            raise RunError(
                f"{path}: does not fit this recipe's {label}: {error}. {_SAME_RECIPE}"
            ) from error
    untrained = not record["optimizer"]["groups"] and record["progress"].get("step") == 0
    if optimizer is not None and not untrained:
        try:
            _restore_optimizer(optimizer, tensors, record["optimizer"])
        except ValueError as error:
            raise RunError(
                f"{path}: does not fit this recipe's optimizer: {error}. {_SAME_RECIPE}"
            ) from error
    return record["progress"]


_SAME_RECIPE = "A checkpoint of the same recipe"


def load_weights(module: nn.Module, tensors: Tensors) -> None:
    """Load a whole state.

    Raises ValueError, naming it, if a weight is absent, of another kind or not finite.
    """
    wanted = module.state_dict()
    for name, tensor in tensors.items():
        if name in wanted and wanted[name].dtype != tensor.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, not {wanted[name].dtype}")
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise ValueError((lines[1:] or lines)[0][:200].rstrip(".")) from error
    if faulty := first_not_finite({"": module}):
        raise ValueError(f"{faulty} is not finite")


def read_learner(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """The weights of a checkpoint's learner by their names in it, and the progress.

    RunError as for `restore`.
    """
    tensors, record = _read(path)
    label = "learner."
    own = {k.removeprefix(label): v for k, v in tensors.items() if k.startswith(label)}
    return own, record["progress"]


def copy_weights(path: Path, out: Path) -> None:
    """Copy a checkpoint without the state of its optimizer: to be judged, not to go on from."""
    tensors, record = _read(path)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("optimizer.")}
    record = {**record, "optimizer": {"scalars": {}, "groups": []}}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(out, kept, {"fsl": to_json(record, out, sort_keys=True)})


def progress_of(path: Path) -> dict[str, Any]:
    """The progress stored in a checkpoint; weights are not read."""
    return _read(path, weights=False)[1]["progress"]


def _read(path: Path, weights: bool = True) -> tuple[Tensors, dict[str, Any]]:
    if not is_file(path):
        raise RunError(f"{path}: no such checkpoint. A run directory that has been trained")
    try:
        tensors, metadata = read_tensors(path, weights)
        return tensors, check_record(load_json(metadata["fsl"]), _Checkpoint)
    except KeyError as error:
        raise _damaged(path, f"no metadata {error}") from error
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def read_tensors(path: Path, weights: bool = True) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    safetensors opens a file twice. If a run in training replaces it meanwhile, it is read again.

    weights: False leaves the tensors out.
    Raises ValueError if the file is damaged.
    """
    while True:
        before = _identity(path)
        try:
            found = _read_once(path, weights)
        except (SafetensorError, OSError, RuntimeError, TypeError, ValueError) as error:
            if _identity(path) == before:
                reason = getattr(error, "strerror", None) or str(error)
                raise ValueError(" ".join(reason.split()).rstrip(".")) from error
        else:
            if _identity(path) == before:
                return found


def _identity(path: Path) -> tuple[int, int, int] | None:
    """What changes when another file takes this place; None if nothing can be seen there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read_once(path: Path, weights: bool) -> tuple[Tensors, dict[str, str]]:
    with reading(path):
        path.open("rb").close()  # safetensors does not tell which error it was
    with safe_open(path, framework="pt") as file:
        names = file.keys() if weights else ()
        return {name: file.get_tensor(name) for name in names}, file.metadata() or {}


def _damaged(path: Path, reason: str) -> RunError:
    other = "best" if path.stem == "last" else "last"
    return RunError(
        f"{path}: damaged checkpoint ({reason}). Move it away: `fsl resume` goes on from "
        f"{other}{path.suffix}, or from the start"
    )


def _restore_optimizer(optimizer: Optimizer, tensors: Tensors, record: Mapping[str, Any]) -> None:
    """Load an optimizer's state.

    Raises ValueError if it is not a state of this optimizer over these parameters.
    """
    state: dict[int, dict[str, Any]] = {}
    parameters = sum(len(group["params"]) for group in optimizer.param_groups)
    for index, key, value in _entries(tensors, record["scalars"]):
        if not (index.isascii() and index.isdigit() and int(index) < parameters):
            raise ValueError(f"state of parameter {index!r}, of {parameters}")
        state.setdefault(int(index), {})[key] = value
    _check_state(optimizer, state)
    _check_groups(optimizer, record["groups"])
    optimizer.load_state_dict({"state": state, "param_groups": record["groups"]})


def _entries(
    tensors: Tensors, scalars: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, str, Any]]:
    for index, values in scalars.items():
        for key, value in values.items():
            yield index, key, value
    for name, tensor in tensors.items():
        label, _, rest = name.partition(".")
        if label == "optimizer":
            index, _, key = rest.partition(".")
            yield index, key, tensor.clone() if tensor.dim() == 0 else tensor


def _check_state(optimizer: Optimizer, state: Mapping[int, Mapping[str, Any]]) -> None:
    """Compare a state with that of the optimizer's twin after a step.

    Only an optimizer itself knows what its state consists of.
    """
    if not state:
        return
    twin = copy.deepcopy(optimizer)
    for group in twin.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    twin.step()
    wanted = twin.state_dict()["state"]
    for index, values in state.items():
        expected = wanted.get(index, {})
        if values.keys() != expected.keys():
            name = min(values.keys() ^ expected.keys())
            how = "absent" if name in expected else "not of this optimizer"
            raise ValueError(f"{name!r} of parameter {index} is {how}")
        for key, value in values.items():
            if not _alike(value, expected[key]):
                raise ValueError(
                    f"{key!r} of parameter {index} is {_kind(value)}, not {_kind(expected[key])}"
                )


def _check_groups(optimizer: Optimizer, groups: list[dict[str, Any]]) -> None:
    own = optimizer.state_dict()["param_groups"]
    if [group.get("params") for group in groups] != [group["params"] for group in own]:
        raise ValueError("other groups of parameters")
    for group, wanted in zip(groups, own, strict=True):
        for key, value in wanted.items():
            if key in group and not _alike(group[key], value):
                raise ValueError(f"{key!r} is {_kind(group[key])}, not {_kind(value)}")
            group.setdefault(key, value)


def _alike(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list | tuple):
        long = isinstance(value, list | tuple) and len(value) == len(wanted)
        return long and all(map(_alike, value, wanted))
    if isinstance(wanted, Tensor):
        same = isinstance(value, Tensor) and value.shape == wanted.shape
        return same and value.dtype == wanted.dtype
    if isinstance(wanted, float | int) and not isinstance(wanted, bool):
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is type(wanted)


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return f"{value!r}"[:60]


def first_not_finite(modules: Mapping[str, nn.Module]) -> str | None:
    """The first parameter with a value that is not finite; buffers may hold such values."""
    for label, module in modules.items():
        for name, parameter in module.named_parameters(prefix=label):
            if not torch.isfinite(parameter).all():
                return name
    return None
