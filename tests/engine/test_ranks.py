"""One run on several processes: the bits of one process, and one line where it cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from filelock import FileLock

import fsl_core as fsl
from fsl_core.builtin.mlp import Mlp
from fsl_core.builtin.uniform import Uniform
from fsl_core.config.recipe import read_recipe
from fsl_core.data.cache import tensors_digest
from fsl_core.engine.devices import choose_device
from fsl_core.engine.environment import place_among_ranks
from fsl_core.engine.ranks import ALONE, Ranks, join
from fsl_core.errors import Interrupted, RunError
from fsl_core.hooks.loader import load
from fsl_core.runs.opening import _identity, _require_alike, _require_seen, new_run
from fsl_core.runs.stopping import Stop
from fsl_core.training.outer_loop import train
from tests.conftest import TOY

HERE = Path(__file__).parents[2]
TASKS, STEPS = 4, 4
PLUGINS = [str(TOY / "fslplugin.py"), str(TOY / "shared.py")]


def job(name: str, dtype: str = "float32", **changed: Any) -> dict[str, Any]:
    """A run of the toy recipe; keys are paths, such as outer__weighting."""
    recipe: dict[str, Any] = {
        "episodes": {"name": "blobs"},
        "backbone": {"name": "mlp", "hidden": [8], "norm": "none"},
        "adapter": {"name": "nearest-centroid"},
        "outer": {
            "optimizer": {"name": "adam", "lr": 0.01},
            "meta_batch_size": TASKS,
            "steps": STEPS,
        },
        "execution": {"mode": "loop"},
        "evaluate": {"episodes": 21},
    }
    recipe["outer"] |= {"validate_every": STEPS, "validate_episodes": 41}
    for path, value in changed.items():
        section, *key = path.split("__")
        if key:
            recipe[section][key[0]] = value
        else:
            recipe[section] = value
    return {"name": name, "recipe": recipe, "plugins": PLUGINS, "dtype": dtype}


FEW = 4  # of the first jobs, which more processes than tasks do too
EQUAL = [
    job("uniform", adapter={"name": "steps"}),
    job("losses", outer__weighting={"name": "remembers"}),
    job("gradients", outer__weighting={"name": "agrees"}),
    job("drawn weights", outer__weighting={"name": "draws"}),
    job("dropout", adapter={"name": "noisy"}),
    job("first order", adapter={"name": "steps"}, outer__hypergradient={"name": "first-order"}),
    job("running", backbone__norm="running"),
    job("ordinary", backbone__norm="ordinary"),
    job("plain"),
    job("conflict", outer__log_conflict=2),
    job("a task moves", adapter={"name": "carries"}),
    job("threads", execution__workers=2),
    job("untrained", outer__steps=0, outer__validate_every=0),
]
OTHERS = [
    job("vmap", "float64", adapter={"name": "steps"}, execution__mode="vmap"),
    job("vmap of rows", "float64", execution__mode="vmap", outer__weighting={"name": "agrees"}),
    job("auto", execution__mode="auto"),
    job("one fails", adapter={"name": "fails"}),
    {"name": "by hand", "call": "tests.engine.test_ranks:by_hand"},
    {"name": "resumed", "call": "tests.engine.test_ranks:resumed"},
    {"name": "stopped", "call": "tests.engine.test_ranks:stopped"},
]


def by_hand() -> dict[str, Any]:
    """fsl.train of a learner that every process has begun with other weights."""
    task = fsl.TaskShape("classification", 3, 1, 2, (1, 8, 8), 3)
    torch.manual_seed(int(os.environ.get("RANK", "0")))
    learner = fsl.Learner(Mlp(task, hidden=(4,), norm="none"), Head(4))
    records = fsl.train(learner, Noise(task), steps=3, meta_batch_size=TASKS, progress=False)
    judged = fsl.evaluate(learner, Noise(task), episodes=30, progress=False)
    return {
        "digest": tensors_digest(learner.state_dict()),
        "losses": [record["loss"] for record in records],
        "scores": judged.scores,
    }


def resumed() -> dict[str, Any]:
    """A run with a directory, and more steps of it; its own processes read what the first wrote."""
    recipe, out = job("")["recipe"], f"resumed-{os.environ.get('WORLD_SIZE', '1')}"
    with patch("fsl_core.api.ReportWriter", object):  # a page takes a second
        fsl.run(recipe, out=out, plugins=PLUGINS, progress=False)
        longer = fsl.resume(out, steps=STEPS + 2, plugins=PLUGINS, progress=False)
    again = fsl.resume(out, plugins=PLUGINS, progress=False)
    assert again.result == longer.result
    figures = {key: longer.result[key] for key in ("accuracy", "loss", "steps_changed")}
    return {"digest": tensors_digest(longer.learner.state_dict()), **figures}


def stopped() -> dict[str, Any]:
    """Somebody stops one rank, in a step and then in the validation; all of them stop and go on."""
    loaded = load(entry_points=False, files=[Path(file) for file in PLUGINS])
    recipe = read_recipe(job("")["recipe"], loaded.catalogue)
    ranks, told = join(), []
    with new_run(None, recipe, loaded, torch.device("cpu"), [], ranks) as run:
        run.stop = StopAtEpisode() if ranks.rank == ranks.count - 1 else Stop()
        adapter = run.experiment.learner.adapter
        adapter.on_step = lambda ids: setattr(run.stop, "requested", run.step == 1 and ranks.first)
        for _ in range(3):
            try:
                train(run)
            except Interrupted:
                told.append([run.step, run.unvalidated, run.records.progress_of("last")["step"]])
            run.stop.requested = False
        return {"told": told, "digest": tensors_digest(run.experiment.learner.state_dict())}


class StopAtEpisode(Stop):
    """Somebody wants the run to stop while this rank judges its first episode, once."""

    done = False

    def check(self) -> None:
        if not self.done and sys._getframe(1).f_code.co_name == "_judge_block":
            self.done = True
            raise Interrupted
        super().check()


class Head(fsl.Adapter):
    name = "head"

    def __init__(self, features: int):
        super().__init__()
        self.head = torch.nn.Linear(features, 3)

    def adapt(self, backbone, support):
        return lambda x: self.head(backbone(x))


class Noise(fsl.EpisodeSource):
    name = "noise"

    def __init__(self, task: fsl.TaskShape):
        self.task = task

    def batch(self, split, indices, seed, task=None):
        task = task or self.task
        return torch.utils.data.default_collate([self._one(i, task) for i in indices])

    def _one(self, index: int, task: fsl.TaskShape) -> fsl.Episode:
        generator = torch.Generator().manual_seed(index)

        def items(n):
            x = torch.rand(task.n_way * n, *task.input_shape, generator=generator)
            return fsl.LabelledSet(x, torch.arange(task.n_way).repeat_interleave(n))

        return fsl.Episode(items(task.n_shot), items(task.n_query), torch.tensor(index))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What 1, 2, 3 and 5 processes came to, by their number and the name of the job."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # once for all processes that share these tests out
        folder = folder.parent
    folder, out = folder / "ranks", folder / "ranks" / "out.json"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / ".lock"):
        if not out.is_file():
            _compute(folder)
    return json.loads(out.read_text())


def _compute(folder: Path) -> None:
    (folder / "jobs.json").write_text(json.dumps(EQUAL + OTHERS))
    command = [
        sys.executable,
        "-m",
        "tests.parts.ranks",
        "jobs.json",
        "out.json",
        "1",
        "2",
        "3",
        f"5:{FEW}",
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
        "FSL_LOAD_PLUGINS": "none",
        "FSL_CACHE": str(folder),
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


NAMES = [job["name"] for job in EQUAL]


@pytest.mark.parametrize(
    ("name", "count"),
    [*product(NAMES, "23"), *product(NAMES[:FEW], "5")],
)
def test_several_processes_give_the_bits_of_one(found, name, count):
    alone, together = found["1"][name], found[count][name]
    keys = ("digest", "score", "losses", "episode_set")
    assert {key: together[key] for key in keys} == {key: alone[key] for key in keys}


@pytest.mark.parametrize("count", ["2", "3"])
@pytest.mark.parametrize("name", ["vmap", "vmap of rows"])
def test_a_batched_step_is_equal_up_to_rounding(found, name, count):
    alone, together = found["1"][name], found[count][name]
    for key in ("weights", "losses"):
        torch.testing.assert_close(
            torch.tensor(together[key]), torch.tensor(alone[key]), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("count", ["2", "3"])
@pytest.mark.parametrize("name", ["by hand", "resumed", "stopped"])
def test_programs_give_the_bits_of_one(found, name, count):
    assert found[count][name] == found["1"][name]


@pytest.mark.parametrize("count", ["1", "2", "3"])
def test_a_rank_that_is_stopped_stops_all(found, count):
    """After the second step; then before the validation after the last one is complete."""
    assert found[count]["stopped"]["told"] == [[2, False, 2], [STEPS, True, STEPS]]
    assert found[count]["stopped"]["digest"] == found["1"]["plain"]["digest"]


@pytest.mark.parametrize(("count", "rank"), [("2", 1), ("3", 2)])
def test_what_one_rank_meets_is_said_by_the_first(found, count, rank):
    told = f"RunError: rank {rank}: task 7: no items. A task with items"
    assert found[count]["one fails"] == {"error": told}
    assert found["1"]["one fails"] == {"error": "DataError: task 7: no items. A task with items"}


def test_what_cannot_be_shared_is_computed_by_all_and_said(found):
    notes = [
        "every process computes all tasks of a step: one of them moves adapter.seen, which the "
        "next one finds"
    ]
    assert found["3"]["a task moves"]["notes"] == notes
    assert found["1"]["a task moves"]["notes"] == []
    assert found["3"]["uniform"]["notes"] == []


def test_the_mode_is_chosen_once(found):
    """The first process of all measures; the others read what is kept."""
    assert len({found[count]["auto"]["execution"] for count in "123"}) == 1


def test_a_step_sends_its_parameters_and_its_losses(found):
    """The last rank tells the sum, the others have passed theirs on: as many numbers each."""
    for count in ("2", "3"):
        of_sum, of_rows = (found[count][name] for name in ("losses", "gradients"))
        messages = of_sum["sent"] - STEPS * of_sum["parameters"]
        assert 0 < messages < 40 * 1024  # losses, validations and agreements, padded to 1 KiB
        rows = max(len(Ranks.part(_of(r, int(count)), TASKS)) for r in range(int(count)))
        assert abs(of_rows["sent"] - STEPS * rows * of_sum["parameters"] - messages) < 10 * 1024


def _of(rank: int, count: int) -> Ranks:
    ranks = Ranks()
    ranks.rank, ranks.count = rank, count
    return ranks


@pytest.mark.parametrize(("n", "count"), [(4, 1), (4, 3), (4, 5), (0, 2)])
def test_parts_are_contiguous_and_whole(n, count):
    parts = [list(_of(rank, count).part(n)) for rank in range(count)]
    assert [i for part in parts for i in part] == list(range(n))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_one_process_alone_tells_nobody():
    assert ALONE.gather(lambda: {"a": Uniform()})[0]["a"].name == "uniform"
    assert ALONE.in_turn(lambda: 3) == ALONE.told(lambda: 3) == 3
    assert ALONE.sent == 0


@pytest.mark.parametrize(("rank", "count"), [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "0")])
def test_a_place_that_cannot_be(monkeypatch, rank, count):
    for name, value in {"RANK": rank, "WORLD_SIZE": count, "FSL_RANKS_STORE": "s"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=rf"^RANK={rank} WORLD_SIZE={count}: not the place of"):
        place_among_ranks()


def test_numbers_of_another_program_make_no_group(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert place_among_ranks() == (0, 1)


class Saying(Ranks):
    """The first of two ranks, where the other one says something else."""

    def __init__(self, other: Any):
        super().__init__()
        self.count, self.other = 2, other

    def gather(self, work):
        return [work(), self.other]


def test_ranks_of_another_recipe_or_version_are_refused(toy_recipe, toy_plugins):
    recipe = read_recipe(toy_recipe, toy_plugins.catalogue)
    own = _identity(recipe)
    _require_alike(Saying(own), recipe)
    with pytest.raises(RunError, match=r"^rank 1: torch 1\.0, and rank 0 has .*same environment"):
        _require_alike(Saying([*own[:2], "1.0"]), recipe)
    with pytest.raises(RunError, match=r"^rank 1: recipe other, and rank 0 has "):
        _require_alike(Saying(["other", *own[1:]]), recipe)


def test_a_folder_that_another_machine_does_not_see(tmp_path):
    with pytest.raises(RunError, match=r": not here\. A folder that all machines of the run share"):
        _require_seen(tmp_path)


def test_ranks_that_have_come_apart_save_nothing(toy_recipe, toy_plugins):
    recipe = read_recipe(toy_recipe, toy_plugins.catalogue)
    with new_run(None, recipe, toy_plugins, torch.device("cpu"), []) as run:
        run.ranks = Saying("another digest")
        with pytest.raises(RunError, match=r"^outer step 0: rank 1 has other weights than rank 0"):
            run.save("last")
        assert not run.records.has("last")


def test_a_sweep_is_no_work_of_several(monkeypatch, tmp_path):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "FSL_RANKS_STORE": "s"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=r"^fsl\.sweep: this is one of several processes\."):
        fsl.sweep("glyphs/5w1s-maml", out=tmp_path)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("cuda", r"--device cuda: 2 processes on this machine, and GPUs: 1\. One process for each"),
        ("cuda:0", r"--device cuda:0: 2 processes cannot share one GPU\. cuda, which gives each"),
    ],
)
def test_each_process_has_a_gpu_of_its_own(monkeypatch, name, told):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr("fsl_core.engine.devices._device", torch.device)
    with pytest.raises(RunError, match=told):
        choose_device(name, _of(0, 2))
