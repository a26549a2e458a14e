"""What layers keep, in a trial: what evaluation reads must be what training has moved.

A layer such as BatchNorm moves buffers in a forward pass. An adapter that computes with fast
weights calls the layer with copies in their place, so the layer's own buffers may never move.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # the one class of all that keep running_mean
from torch.utils.hooks import RemovableHandle

from fsl_core.assembly.trials.trial import Trial
from fsl_core.data.seeding import seed_torch
from fsl_core.engine import soundness
from fsl_core.learner import Learner


class Moved(NamedTuple):
    """What training came to.

    lost: names of what forward passes move and the objective leaves as it was.
    drifting: names of plain attributes that each task moves.
    learner: as training leaves it.
    """

    lost: set[str]
    drifting: set[str]
    learner: Learner


def check_kept(trial: Trial, moved: Moved) -> None:
    """Refuse what evaluation reads and training does not move, or moves where nobody keeps it."""
    learner = (moved.learner if trial.same_shape else trial.judged()).eval()
    for name in sorted(moved.lost):
        if _reads(trial, learner, name):
            refuse_lost(trial, name)
    for name in sorted(moved.drifting):
        if _reads(trial, learner, name):
            part, _, attribute = name.partition(".")
            trial.refuse(
                part,
                f"each task moves the attribute {attribute}, which predictions read and no "
                "checkpoint holds. A buffer (register_buffer)",
            )


def _reads(trial: Trial, learner: Learner, name: str) -> bool:
    """Whether predictions change with this buffer, frozen parameter or attribute."""
    episode = trial.test_episodes[0]

    @torch.no_grad()
    def judge() -> Tensor:
        seed_torch("preflight")
        return learner.adapt(episode)(episode.query.x)

    expected = judge()
    try:
        with soundness.disturbed(learner, name):
            found = judge()
    except AttributeError:  # a twin for another shape lacks it
        return False
    return not torch.equal(found, expected)


def refuse_lost(trial: Trial, name: str) -> None:
    owner, _, buffer = name.rpartition(".")
    layer, part = trial.experiment.learner.get_submodule(owner), name.partition(".")[0]
    adapter = trial.experiment.recipe.chosen["adapter",].name
    place = owner.partition(".")[2] or "it"
    remedy = "A layer that keeps nothing"
    if isinstance(layer, _NormBase):
        remedy = "fsl.replace_norms(module, 'transductive') in its constructor"
    trial.refuse(
        part,
        f"{place} ({type(layer).__name__}) moves its {buffer} in training, which adapter "
        f"{adapter!r} cannot keep: it computes with other weights than the layer's own. "
        f"Evaluation would read what never moved. {remedy}, or an adapter that calls the "
        "backbone as it is, such as nearest-centroid",
    )


@contextmanager
def watching(learner: Learner) -> Iterator[set[str]]:
    """Within this context, the names of buffers of the adapter's layers that their calls move.

    Also while a stateless call has put copies in their place: the hooks look at the layer during
    its call, when the copies are there, and the difference before and after says what moved.
    """
    seen: set[str] = set()
    handles: list[RemovableHandle] = []

    def watch(name: str, layer: nn.Module) -> None:
        before: list[dict[str, Tensor]] = []  # a stack: a layer may call itself

        def enter(layer: nn.Module, _: object) -> None:
            before.append({n: b.detach().clone() for n, b in layer.named_buffers(recurse=False)})

        def leave(layer: nn.Module, *_: object) -> None:
            now, then = dict(layer.named_buffers(recurse=False)), before.pop()
            with suppress(RuntimeError):  # within torch.func.vmap no value is read
                seen.update(f"adapter.{name}.{n}" for n in soundness.changed(then, now))

        handles.append(layer.register_forward_pre_hook(enter))
        handles.append(layer.register_forward_hook(leave))

    for name, layer in learner.adapter.named_modules():
        if name and list(layer.buffers(recurse=False)):
            watch(name, layer)
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
