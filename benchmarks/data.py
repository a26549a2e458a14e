"""Drawing meta-batches of Omniglot, and training on them.

Against learn2learn's tasksets and its example's loop.
"""

from __future__ import annotations

import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

import fsl_core as fsl
from benchmarks import ours, problems
from benchmarks.gradients import FLOAT32_LIMIT, agree, summary
from benchmarks.peers import peer
from benchmarks.race import Disagreement, LeftOut, Work, race
from benchmarks.settings import Settings


class Tasksets(Protocol):
    """learn2learn's tasks."""

    def sample(self) -> tuple[Tensor, Tensor]: ...


TASKS, LR, SEED = 32, 0.003, 42
N_QUERY = {"sampling": 15, "training": 1}


def sampling(settings: Settings) -> dict:
    """Drawing a meta-batch of 32 Omniglot episodes, 28x28, rotations, 5-way 1-shot 15-query."""
    source, files = _omniglot(settings, N_QUERY["sampling"])
    draws = iter(range(0, sys.maxsize, TASKS))

    def own() -> fsl.Episode:
        first = next(draws)
        return source.batch("train", range(first, first + TASKS), seed=0)

    def draw_from(tasksets: Tasksets) -> list[tuple[Tensor, Tensor]]:
        return [tasksets.sample() for _ in range(TASKS)]

    entered: dict[str, Work] = {"ours, from the pool in memory": own}
    left_out: dict[str, str] = {}
    for label, tasksets in _tasksets(settings, files, 1 + N_QUERY["sampling"], left_out).items():
        entered[label] = partial(draw_from, tasksets)
    _check_episodes(entered)
    return summary(race(entered, settings.budget, settings.rounds, settings.block), left_out)


def training(settings: Settings) -> dict:
    """Omniglot training end to end: draw 32 episodes, meta-gradient, Adam.

    learn2learn's example, 784-256-128-64-64-5.
    """
    source, files = _omniglot(settings, N_QUERY["training"])
    problem = problems.omniglot_fc(tasks=4)
    agreement = agree(problem, FLOAT32_LIMIT, slow_to_start=False)
    entered: dict[str, Work] = {}
    left_out: dict[str, str] = {}
    for execution in ours.EXECUTIONS:
        try:
            learner = problems.fc_learner(source.task)
            entered[f"ours, {execution}"] = ours.training(learner, source, TASKS, LR, execution)
        except LeftOut as reason:
            left_out[f"ours, {execution}"] = str(reason)
    for label, tasksets in _tasksets(settings, files, 1 + N_QUERY["training"], left_out).items():
        entered[label] = peer("learn2learn").training(problems.fc_model(), tasksets, TASKS, LR)
    result = summary(race(entered, settings.budget, settings.rounds, settings.block), left_out)
    rates = {name: TASKS / seconds for name, seconds in result["seconds"].items()}
    return result | {"agreement": {"float32": agreement}, "episodes_per_second": rates}


def _omniglot(settings: Settings, n_query: int) -> tuple[fsl.EpisodeSource, list[Path]]:
    """Our episodes, in learn2learn's split with rotations everywhere, and their files."""
    options = {
        "n_query": n_query,
        "split": "learn2learn",
        "rotations": "all",
        "download": not settings.quick,
    }
    if settings.root:
        options["root"] = str(settings.root)
    source = ours.build("episodes", "omniglot", options)
    try:
        return source, source.fetch()
    except fsl.DataError as error:
        raise LeftOut(" ".join(str(error).split())) from error


def _tasksets(
    settings: Settings, parts: list[Path], samples: int, left_out: dict[str, str]
) -> dict[str, Tasksets]:
    """learn2learn's training tasks.

    As its benchmark interface makes them, from files; and over decoded images in memory.
    """
    try:
        learn2learn = peer("learn2learn")
    except LeftOut as reason:
        left_out["learn2learn, image files"] = str(reason)
        return {}
    root = unpacked(parts)
    entered = {"learn2learn, image files": learn2learn.tasksets_of_files(root, samples, SEED)}
    decoded = "learn2learn, images in memory"
    if settings.quick:
        left_out[decoded] = "decoding all of Omniglot is too slow for a smoke test"
    else:
        entered[decoded] = learn2learn.tasksets_in_memory(root, samples, SEED)
    return entered


def unpacked(parts: list[Path]) -> Path:
    """A data root as torchvision unpacks one, in this environment.

    learn2learn reads image files.
    """
    root = Path(sys.prefix) / "omniglot"
    folder = root / "omniglot-py"
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        if (folder / part.stem).exists():
            continue
        if part.is_dir():
            (folder / part.name).symlink_to(part.resolve(), target_is_directory=True)
            continue
        with zipfile.ZipFile(part) as archive:
            archive.extractall(folder / f"{part.stem}.part")
        (folder / f"{part.stem}.part" / part.stem).rename(folder / part.stem)
        (folder / f"{part.stem}.part").rmdir()
    return root


def _tasks_of(batch: fsl.Episode) -> list[tuple[Tensor, Tensor]]:
    """Pictures and labels of each episode, support and queries together."""
    return [
        (torch.cat([support.x, query.x]), torch.cat([support.y, query.y]))
        for support, query, _ in batch.unbatch()
    ]


def _check_episodes(entered: dict[str, Work]) -> None:
    """Everybody draws 32 tasks of 80 images of 28x28.

    Values lie in 0 .. 1, ink is 1, and there are 16 images of each of five labels.
    """
    for name, work in entered.items():
        found = work()
        drawn = _tasks_of(found) if isinstance(found, fsl.Episode) else found
        assert isinstance(drawn, list)
        for x, y in drawn:
            counts, ink = y.bincount().tolist(), float(x.mean())
            scaled = float(x.min()) >= 0 and float(x.max()) <= 1 and ink < 0.3
            if x.shape != (80, 1, 28, 28) or counts != [16] * 5 or not scaled:
                raise Disagreement(
                    f"{name} drew {tuple(x.shape)} with labels {counts} and mean ink {ink:.2f}"
                )
        if len(drawn) != TASKS:
            raise Disagreement(f"{name} drew {len(drawn)} tasks. {TASKS}")
