"""A GPU that this machine does not have: tensors on it are computed on the CPU.

What mixes it with the CPU raises the error that a real one raises, so a tensor that is made on the
wrong device is found on any machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretended"

_ATEN = torch.ops.aten
_BETWEEN_DEVICES = (_ATEN._to_copy.default, _ATEN.copy_.default, _ATEN._local_scalar_dense.default)
_INDEXED = (_ATEN.index, _ATEN.index_put, _ATEN.index_put_, _ATEN._unsafe_index)


def can_be_pretended() -> bool:
    """Whether this torch takes a backend that is written in Python."""
    return hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """The device `pretended`, which exists inside.

    Tensors of it may leave, and `.cpu()` and arithmetic go on outside; gradients do not. All
    is like a GPU but for speed, streams and random numbers, which are those of the CPU. One thread
    of a process may be inside at a time; torch.compile does not know the device.

    >>> with pretended_gpu() as device:
    ...     x = torch.ones(2, device=device)
    ...     (x + x).cpu()
    tensor([2., 2.])
    """
    module = _register()
    # torch.tensor(..., device=...) asks the backend itself otherwise, and it computes nothing.
    lifted = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    module.inside = True
    try:
        # A thread of its own for gradients, as devices have, would not know of this one.
        with torch.autograd.set_multithreading_enabled(False), _Pretending():
            yield torch.device(NAME, 0)
    finally:
        module.inside = False
        torch._C._set_only_lift_cpu_tensors(lifted)


@cache
def _register() -> Any:
    """Once in a process: the name cannot be changed back."""

    class Module(backend_registration._DummyBackendModule):
        """What torch asks a backend for, also where all is on the CPU, as checkpointing does."""

        inside = False

        def is_available(self) -> bool:  # outside, seeding need not look for it: that takes 5 ms
            return self.inside

        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16, torch.float16]

    module = Module()
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=module)
    return module


class Pretended(Tensor):
    """A tensor of the device.

    held: the tensor on the CPU that it stands for.
    """

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> Pretended:
        found = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device(NAME, 0),
        )
        found.held = held
        return found

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Pretended({self.held})"

    # torch's own of these two take no subclasses.

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(
                f"can't convert {NAME}:0 device type tensor to numpy. Tensor.cpu() first"
            )
        return self.held.detach().numpy()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _compute(func, args, kwargs or {})


class _Pretending(TorchDispatchMode):
    """Sees the functions that have no tensor yet, such as torch.zeros."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = any(isinstance(tensor, Pretended) for tensor in tensors)
    if there and func not in _BETWEEN_DEVICES:
        _refuse_mixture(func, tensors)
    wanted = kwargs.get("device")
    if wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
        on_it = torch.device(wanted).type == NAME
    else:
        on_it = there if func is not _ATEN.copy_.default else isinstance(tensors[0], Pretended)
    held_args, held_kwargs = tree_map(_held, args), tree_map(_held, kwargs)
    found = func(*held_args, **held_kwargs)
    if not on_it:
        return found if func is not _ATEN.copy_.default else args[0]
    placed = tree_map(_placed, found)
    return return_and_correct_aliasing(func, args, kwargs, placed) if there else placed


def _refuse_mixture(func: Any, tensors: list[Tensor]) -> None:
    """As torch does: numbers without an axis, and indices, may be on the CPU."""
    free = 1 if func.overloadpacket in _INDEXED else len(tensors)
    for place, tensor in enumerate(tensors):
        if not isinstance(tensor, Pretended) and tensor.dim() and place < free:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{NAME}:0 and {tensor.device}! (in {func})"
            )


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, Pretended) else leaf


def _placed(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor) or isinstance(leaf, Pretended):
        return leaf
    if leaf._is_zerotensor():  # of forward derivatives: it has no memory
        leaf = torch.zeros(leaf.shape, dtype=leaf.dtype)
    return Pretended(leaf)
