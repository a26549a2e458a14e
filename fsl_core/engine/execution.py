"""How a meta-batch is computed, as a recipe's `execution:` section says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

Mode = Literal["loop", "vmap", "compiled"]
Precision = Literal["float32", "tf32", "bf16"]


@dataclass(frozen=True)
class Execution:
    """A way to compute a meta-batch; all of them give the same numbers, up to rounding.

    mode:      `loop` takes one task after another; `vmap` all of them as one batched computation
               (torch.func.vmap); `compiled` is that computation through torch.compile.
    workers:   tasks computed at the same time by threads of their own, each on one core; of `loop`
               on a CPU. Processes of one run share them.
    chunk:     tasks batched together at most, which bounds memory; None: all, or on a CPU as many
               as compiled code holds in its cache; of `vmap` and `compiled`.
    precision: `float32` computes in the type of the parameters; `bf16` under autocast, with
               weights, statistics, losses and updates in float32; `tf32`, on a GPU, rounds what
               goes into convolutions and products to 10 bits.
    checkpoint_gradients: query activations are not kept but computed again in the backward pass;
               of `loop`.
    """

    mode: Mode = "loop"
    workers: Annotated[int, Field(gt=0)] = 1
    chunk: Annotated[int | None, Field(gt=0)] = None
    precision: Precision = "float32"
    checkpoint_gradients: bool = False

    def __str__(self) -> str:
        details = [f"{self.workers} workers"] if self.mode == "loop" and self.workers > 1 else []
        details += [f"chunks of {self.chunk}"] if self.mode != "loop" and self.chunk else []
        details += [self.precision] if self.precision != "float32" else []
        details += ["gradients checkpointed"] if self.checkpoint_gradients else []
        return ", ".join([self.mode, *details])
