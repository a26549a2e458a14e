"""Predictors that need no run: what `predict --backbone` and `label` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fsl_core.cli.arguments import choose_device, load_plugins, warn

if TYPE_CHECKING:
    from torch import Tensor

    from fsl_core.predicting.predictor import AdaptedPredictor
    from fsl_core.predicting.untrained import Candidate

USUAL_NETWORK = "resnet18"
"""Of torchvision: small, and its weights are fetched once."""

OF_PHOTOGRAPHS = 0.5
"""Share of middle greys from which on pictures are no drawings: those have about 0.1."""


def share_of_greys(images: Tensor) -> float:
    """Of all pixels, uint8, how many are neither nearly black nor nearly white."""
    parts = images.split(256)
    return sum(int(((part > 32) & (part < 223)).sum()) for part in parts) / images.numel()


def without_run(
    network: str,
    weights: Path | None,
    support: Path,
    adapter: str | None,
    invert: bool,
    device: str,
    skip_unreadable: bool,
    no_plugin: list[str],
    plugins_dir: Path | None,
    option: str = "--backbone",
) -> AdaptedPredictor:
    """A predictor of a frozen network and labelled pictures; what was found out goes to stderr.

    option: which named the network.
    """
    from fsl_core.predicting.untrained import adapt_without_run, network_section

    loaded = load_plugins(no_plugin, plugins_dir)
    section = network_section(network, weights, loaded, option)
    predictor, candidates = adapt_without_run(
        section,
        support,
        loaded,
        {"name": adapter} if adapter else None,
        invert,
        choose_device(device),
        skip_unreadable,
    )
    for note in getattr(predictor.learner.backbone, "notes", ()):
        warn(f"network: {note}")
    _tell(candidates)
    return predictor


def _tell(candidates: list[Candidate]) -> None:
    best = candidates[0]
    found = best.left_out
    if found is None:
        warn(
            f"adapter {best.title}; each class has one labelled picture, so nothing says how good "
            "it is. Two of each, and it is known"
        )
        return
    low, high = found.interval
    warn(
        f"adapter {best.title}: {found.accuracy:.2f} of {len(found.y)} labelled pictures are "
        f"right if they are left out (95 % interval {low:.2f} to {high:.2f}; chance "
        f"{found.chance:.2f})"
    )
    others = [c for c in candidates[1:] if c.left_out is not None]
    if others:
        told = ", ".join(f"{c.title} {c.left_out.accuracy:.2f}" for c in others if c.left_out)
        warn(f"also tried: {told}")
    if found.near_chance:
        warn("warning: that may be chance. More or clearer labelled pictures, or another network")
    else:
        warn(
            f"--unknown-below {found.threshold:.2f} would leave out 5 % of the labelled pictures "
            "predicted right"
        )
