"""`fsl sweep --prepare`, `--worker` and `--status`: a sweep whose runs anybody may compute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

MATRIX = "matrix: {adapter: [nearest-centroid, {name: explodes, at_progress: 0.5}], seed: [0]}\n"


@pytest.fixture
def recipe(toy_recipe: Path) -> Path:
    toy_recipe.write_text(toy_recipe.read_text().replace("steps: 12", "steps: 4") + MATRIX)
    return toy_recipe


def standings(call) -> dict[str, dict]:
    return {row["run"]: row for row in json.loads(call("sweep", "--status", "out", "--json").out)}


def test_a_sweep_is_prepared_computed_and_collected(call, recipe: Path, tmp_path: Path):
    prepared = call("sweep", recipe, "--prepare", "--out", "out")
    assert prepared.code == 0
    assert prepared.out == "out: 2 runs to compute. `fsl sweep --worker out`\n"
    assert {row["state"] for row in standings(call).values()} == {"waiting"}
    (tmp_path / "out/runs").rename(tmp_path / "elsewhere")  # another host sees another path
    (tmp_path / "out").rmdir()
    (tmp_path / "shared").mkdir()
    (tmp_path / "elsewhere").rename(tmp_path / "shared" / "runs")
    (tmp_path / "shared").rename(tmp_path / "out")

    worked = call("sweep", "--worker", "out")
    assert worked.code == 1
    assert worked.out == "1 failed, 1 finished\n"
    assert "[1/2] explodes-seed-0: failed: outer step 3, episode 4: the loss is nan" in worked.err
    found = standings(call)
    assert (
        found["nearest-centroid-seed-0"]["state"],
        found["nearest-centroid-seed-0"]["step"],
    ) == (
        "finished",
        4,
    )
    assert found["explodes-seed-0"]["error"].startswith("outer step 3, episode 4: the loss is nan")
    table = call("sweep", "--status", "out")
    assert table.out.endswith("2 runs: 1 failed, 1 finished\n")

    again = call("sweep", "--worker", "out")  # what has failed is left to whoever collects
    assert (again.code, again.out) == (0, "1 failed, 1 finished\n")


def test_what_ends_with_the_sweep_leaves_nothing_to_stop(call, recipe: Path, tmp_path: Path):
    stopped = call("sweep", recipe, "--stop", "--out", "out")
    assert stopped.code == 0
    assert stopped.out == "out: 0 jobs stopped. The same command without --stop goes on\n"
    assert not (tmp_path / "out").exists()


def test_what_is_asked_is_one_thing(call, recipe: Path):
    for arguments in ([], [recipe, "--worker", "out"], ["--worker", "out", "--status", "out"]):
        ended = call("sweep", *arguments)
        assert ended.code == 2
        assert "one of RECIPE, --worker FOLDER and --status FOLDER" in ended.err
    ended = call("sweep", "--worker", "out", "-s", "seed=1")
    assert ended.code == 2
    assert "for a RECIPE alone" in ended.err
    ended = call("sweep", "--status", "out")
    assert (ended.code, ended.err.split(". ")[0]) == (2, "out: no runs here")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--launcher", "slum"], "--launcher: launcher.name: launcher 'slum': no installed plugin"),
        (["-s", "launcher.jobs=0"], "-s launcher.jobs: found 0. Expected greater than 0"),
        (["-s", "launcher.job=2"], "launcher 'local' has no such option. Did you mean 'jobs'?"),
        (["-s", "launcher=3"], "-s launcher: found 3. A mapping such as {name: local}"),
    ],
)
def test_options_of_a_launcher_are_checked(call, recipe: Path, arguments: list[str], told: str):
    ended = call("sweep", recipe, *arguments)
    assert ended.code == 2
    assert told in " ".join(ended.err.split())
