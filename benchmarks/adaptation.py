"""Time from a support set to a predictor, one task, for every installed adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

import fsl_core as fsl
from benchmarks import ours
from benchmarks.race import LeftOut, Work, race, ratio
from benchmarks.settings import Settings

MAML_STEPS = (1, 5, 10)
REFERENCE = "maml, 5 steps"


def adaptation(settings: Settings) -> dict:
    """Adaptation of one task, Conv4-64, 28x28, 5-way 1-shot, and with 75 queries predicted."""
    source = ours.build("episodes", "glyphs")
    episode = source.batch("test", [0], seed=0).unbatch()[0]
    backbone = ("conv4", {"channels": 4 if settings.quick else 64})
    works: dict[str, Work] = {}
    left_out: dict[str, str] = {}
    for name, adapter in _adapters():
        try:
            learner = ours.learner(source.task, backbone, adapter).eval()
            works[name] = _adapt(learner, episode)
            works[f"{name}, with queries"] = _adapt(learner, episode, predict=True)
            works[f"{name}, with queries"]()
        except Exception as error:  # an adapter for another kind of tasks says so here
            for key in (name, f"{name}, with queries"):
                works.pop(key, None)
            left_out[name] = " ".join(str(error).split()) or type(error).__name__
    if not works:
        raise LeftOut("no adapter could be built")
    seconds = race(works, settings.budget, settings.rounds, settings.block)
    reference = REFERENCE if REFERENCE in seconds else next(iter(seconds))
    rows = {}
    for name, alone in seconds.items():
        if name.endswith(", with queries"):
            continue
        predicting = seconds[f"{name}, with queries"]
        rows[name] = {
            "seconds": sorted(alone)[len(alone) // 2],
            "seconds_with_queries": sorted(predicting)[len(predicting) // 2],
            "reference_takes": list(vars(ratio(seconds[reference], alone)).values()),
        }
    return {
        "adapters": rows,
        "reference": reference,
        "left_out": left_out,
        "rounds": len(seconds[reference]),
    }


def _adapters() -> Iterator[tuple[str, tuple[str, dict]]]:
    """Every installed adapter with its default options; `maml` with 1, 5 and 10 steps."""
    for name in ours.loaded().catalogue.names("adapter"):
        if name == "maml":
            for n in MAML_STEPS:
                yield f"maml, {n} step{'s' * (n > 1)}", (name, {"inner_steps": n})
        else:
            yield name, (name, {})


def _adapt(
    learner: fsl.Learner, episode: fsl.Episode, predict: bool = False
) -> Callable[[], object]:
    @torch.no_grad()
    def work() -> object:
        predictor = learner.adapt(episode)
        return predictor(episode.query.x) if predict else predictor

    return work
