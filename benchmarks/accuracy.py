"""Seconds of training until a validation reaches an accuracy: `fsl run` and learn2learn's loop.

    python -m benchmarks.accuracy RACE      the loop of learn2learn, one line of JSON when it ends

RACE is JSON: {"recipe": FILE, "overrides": [...], "accuracy": 0.9, "limit": SECONDS, "threads": 2}

Both have the recipe's network, weights to start from, episodes, step sizes, schedule and frozen
validation episodes, and are judged by the same evaluation. Drawing counts, validations do not; nor
does what `fsl tune-execution` measures, once for a recipe and a machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch._dynamo  # else the first step of an optimizer does this, and takes seconds
from torch.optim.lr_scheduler import LambdaLR

import fsl_core as fsl
from benchmarks import problems
from benchmarks.peers import peer
from benchmarks.race import Disagreement, LeftOut
from benchmarks.settings import Settings
from fsl_core.assembly.experiment import Experiment, build_experiment
from fsl_core.assembly.parts import build_part
from fsl_core.engine.evaluation import evaluate

ROOT = Path(__file__).parents[1]
PATIENCE, MINUTES = 5, 60
"""learn2learn gets at most so many times our seconds, and so many times the budget of a race."""

OURS, PEER = "ours", "learn2learn"
QUICK = ["outer.steps=4", "backbone.channels=4", "outer.validate_episodes=2"]


class Case(NamedTuple):
    """A recipe, the accuracy to reach, and outer steps from one validation to the next."""

    recipe: str
    accuracy: float
    every: int


def glyphs(settings: Settings) -> dict:
    """Training until 0.90 on validation episodes of glyphs, recipe glyphs/5w1s-maml."""
    return _raced(Case("glyphs/5w1s-maml", 0.9, 50), settings, [])


def omniglot(settings: Settings) -> dict:
    """Training until 0.95 on validation episodes of Omniglot, omniglot/5w1s-maml-small."""
    data = ["episodes.download=false"] if settings.quick else []
    data += [f"episodes.root={settings.root}"] if settings.root else []
    return _raced(Case("omniglot/5w1s-maml-small", 0.95, 500), settings, data)


def _raced(case: Case, settings: Settings, overrides: list[str]) -> dict:
    every = 2 if settings.quick else case.every
    overrides += [f"outer.validate_every={every}", "outer.validate_episodes=200"]
    overrides += QUICK if settings.quick else []
    race = {
        "recipe": str(ROOT / "recipes" / f"{case.recipe}.yaml"),
        "overrides": overrides,
        "accuracy": 0.0 if settings.quick else case.accuracy,
        "threads": torch.get_num_threads(),
    }
    tuned, own = _tuned(race), _our_run(race)
    limit = min(PATIENCE * own["seconds"], MINUTES * settings.budget)
    theirs = _run_of_peer({**race, "limit": limit})
    if own["episode_set"] != theirs["episode_set"]:
        raise Disagreement("the two were judged on different validation episodes")
    told = {"recipe": case.recipe, "accuracy": race["accuracy"], "every": every, "tuned": tuned}
    return told | _compared(own, theirs)


def _compared(own: dict, theirs: dict) -> dict:
    """One run has no interval. `at_least`: the other one was stopped before it got there."""
    ratio = theirs["seconds"] / own["seconds"]
    return {
        "runs": {OURS: own, PEER: theirs},
        "ours": OURS,
        "peer": PEER,
        "ratios": {PEER: [ratio, ratio, ratio]},
        "at_least": not theirs["reached"],
        "left_out": {},
    }


def _our_run(race: dict) -> dict[str, Any]:
    """`fsl run` with the shipped defaults. LeftOut if it does not reach the accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        stopwatch = json.dumps({"accuracy": race["accuracy"], "out": str(out)})
        plugins = Path(folder) / "plugins"
        plugins.mkdir()
        shutil.copy(ROOT / "benchmarks" / "stopwatch.py", plugins)
        options = ["--plugins-dir", str(plugins), "--out", str(Path(folder) / "run")]
        done = _fsl("run", race, options, {"FSL_STOPWATCH": stopwatch})
        if not out.is_file():
            raise LeftOut(f"fsl run: {_last_line(done)}")
        found = json.loads(out.read_text("utf-8"))
    if not found["reached"]:
        raise LeftOut(f"ours ended with {found['accuracy']:.3f} after {found['steps']} steps")
    return found


def _tuned(race: dict) -> float:
    """Seconds in which `mode: auto` measures, as it does once for a recipe and a machine."""
    started = time.perf_counter()
    done = _fsl("tune-execution", race, [], {})
    if done.returncode:
        raise LeftOut(f"fsl tune-execution: {_last_line(done)}")
    return time.perf_counter() - started


def _fsl(
    command: str, race: dict, options: list[str], environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """A command with the settings of a race. What interrupts a run has done its work."""
    settings = [part for text in race["overrides"] for part in ("-s", text)]
    threads = {"OMP_NUM_THREADS": str(race["threads"])}
    return subprocess.run(
        [sys.executable, "-m", "fsl_core", command, race["recipe"], *settings, *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | threads | environment,
    )


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def _run_of_peer(race: dict) -> dict[str, Any]:
    peer(PEER)  # LeftOut if it is not installed
    command = [sys.executable, "-m", "benchmarks.accuracy", json.dumps(race)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{PEER}'s process: {_last_line(done)}")
    return json.loads(done.stdout.splitlines()[-1])


def train_peer(race: dict) -> dict[str, Any]:
    """learn2learn's loop over the episodes of a recipe, until the accuracy or the limit."""
    recipe = fsl.load_recipe(race["recipe"], race["overrides"])
    outer, parts = recipe.sections.outer, build_experiment(recipe)
    learner, source, inner = parts.learner, parts.source, recipe.sections.adapter
    model = problems.conv4_model(recipe.sections.backbone.channels, source.task.n_way)
    problems.same_weights(model, learner)
    step = peer(PEER).outer_step(model, source.task.loss, inner.inner_lr, inner.inner_steps)
    optimizer = build_part(recipe, ("outer", "optimizer"), parameters=model.parameters())
    factor = build_part(recipe, ("outer", "schedule"))
    scheduler = LambdaLR(optimizer, lambda done: factor(done, outer.steps))
    times, seed, size = list[float](), recipe.sections.seed, outer.meta_batch_size
    for done in range(outer.steps):
        started = time.perf_counter()
        step(optimizer, source.batch("train", range(done * size, (done + 1) * size), seed))
        scheduler.step()
        times.append(time.perf_counter() - started)
        if (done + 1) % outer.validate_every == 0 or done + 1 == outer.steps:
            problems.same_weights(learner, model)
            seconds = median(times) * len(times)
            found = {"seconds": seconds, "steps": done + 1, **_judged(parts, race["accuracy"])}
            if found["reached"] or sum(times) > race["limit"]:
                break
    return found


def _judged(parts: Experiment, accuracy: float) -> dict[str, Any]:
    """As `fsl run` validates."""
    sections = parts.recipe.sections
    learner, task = parts.test_learner(), parts.test_task
    judged = evaluate(
        learner.eval(),
        parts.source,
        "validation",
        sections.outer.validate_episodes,
        sections.evaluate.seed,
        task,
        each_step=False,
    ).summary()
    reached = judged["accuracy"] >= accuracy
    return {k: judged[k] for k in ("accuracy", "episode_set")} | {"reached": reached}


if __name__ == "__main__":
    race = json.loads(sys.argv[1])
    torch.set_num_threads(race["threads"])
    print(json.dumps(train_peer(race)))
