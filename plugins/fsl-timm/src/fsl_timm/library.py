"""timm, imported when it is needed, and the file of a model's own weights."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from fsl_core.data import torchvision


@cache
def timm() -> ModuleType:
    """timm itself. It imports torchvision, which beside a CPU-only torch needs core's help."""
    torchvision()
    return import_module("timm")


def create(model: str, size: int | None) -> nn.Module:
    """The network without its classifier, with start values. ValueError for an unknown name."""
    library = timm()
    known = library.list_models()
    if model.partition(".")[0] not in known:
        near = get_close_matches(model, known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "timm.list_models() names all"
        raise ValueError(f"model: timm has no {model!r}. {hint}")
    options: dict[str, Any] = {"pretrained": False, "num_classes": 0}
    if size is not None and fixed_size(model):
        options["dynamic_img_size"] = True
    try:
        return library.create_model(model, **options)
    except (RuntimeError, TypeError) as error:  # an unknown tag, or a network of one size
        raise ValueError(f"model: {model!r}: {error}. A model of timm, at its own size") from error


def fixed_size(model: str) -> bool:
    """Whether its weights were made for one size of pictures, as those of most transformers."""
    config = import_module("timm.models").get_pretrained_cfg(model)
    return bool(getattr(config, "fixed_input_size", False))


def pretrained_file(model: str, net: Any) -> Path:
    """The file of timm's weights: from the Hub's cache, or fetched into it.

    ValueError, one line, says what to fetch and where to put it.
    """
    config = net.pretrained_cfg
    repository = config.get("hf_hub_id")
    if not repository:
        raise ValueError(f"weights: {model}: timm names no file for it. `weights: FILE` or null")
    name = config.get("hf_hub_filename") or "model.safetensors"
    try:
        hub = import_module("huggingface_hub")
        return Path(hub.hf_hub_download(repository, name))
    except Exception as error:  # no network, no such file, a limit: each of another class
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(
            f"weights: {model}: not fetched ({reason}). Fetch "
            f"https://huggingface.co/{repository}/resolve/main/{name}, put it anywhere on this "
            "machine, and name it as `weights: FILE`"
        ) from error
