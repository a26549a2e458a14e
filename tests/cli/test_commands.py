"""The command line as a user meets it: output, exit codes, and one clear line for each mistake.

In this process, except for what a process of its own might do in another way.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fsl_core.builtin.nearest_centroid import NearestCentroid


def test_help_lists_every_command(fsl):
    shown = fsl("--help")
    assert shown.returncode == 0
    for command in [
        "run",
        "resume",
        "eval",
        "reproduce",
        "report",
        "watch",
        "compare",
        "keep",
        "bench",
        "leaderboard",
        "check",
        "schema",
        "plugins",
        "list",
        "show",
        "doctor",
    ]:
        assert f" {command} " in shown.stdout


def test_run_resume_eval_report(fsl, call, toy_recipe: Path, tmp_path: Path):
    ran = fsl("run", toy_recipe, "--out", "out")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("test accuracy 0.")
    assert "(95 % interval, 10 episodes)" in ran.stdout
    assert "norm none" in ran.stdout
    assert "report: out/report.html" in ran.stdout
    assert "validation accuracy" in ran.stderr

    again = json.loads(call("resume", "out", "--json").out)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert again == {**result, "run": "out"}

    evaluated = json.loads(call("eval", "out", "--json").out)
    assert evaluated["accuracy"] == result["accuracy"]
    assert evaluated["episode_set"] == result["episode_set"]
    more = json.loads(
        call(
            "eval",
            "out",
            "--episodes",
            "20",
            "--split",
            "validation",
            "--checkpoint",
            "last",
            "--json",
        ).out
    )
    assert (more["episodes"], more["split"], more["checkpoint"]) == (20, "validation", "last")

    html = (tmp_path / "out" / "report.html").read_text()
    assert f"{result['accuracy']:.4f}" in html
    assert html.count("<svg") == 3
    assert not re.search(
        r"(src|href)=\"?http|url\(http|@import|<script", html
    )  # it fetches nothing
    (tmp_path / "out" / "report.html").unlink()
    assert call("report", "out").out == "report: out/report.html\n"


def test_runs_are_numbered(call, toy_recipe: Path, tmp_path: Path):
    for _ in range(2):
        assert call("run", toy_recipe, "-s", "outer.steps=1").code == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"toy", "toy-2"}


@pytest.mark.parametrize(("value", "code"), [(0.9, 0), (0.2, 1)])
def test_reproduce(call, toy_recipe: Path, value: float, code: int):
    held = call(
        "reproduce", toy_recipe, "-s", f"expect.accuracy={{value: {value}, tolerance: 0.1}}"
    )
    assert held.code == code, held.out + held.err
    assert ("NOT reproduced" in held.out) == bool(code)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "none.yaml"], 2, "none.yaml: No such file or directory. A recipe file in YAML"),
        (
            ["check", "toy.yaml", "-s", "adapter.name=mamal"],
            2,
            "-s adapter.name: adapter 'mamal': no installed plugin offers it. ",
        ),
        (
            ["check", "toy.yaml", "-s", "backbone.name=resnet12"],
            2,
            "fsl-learn2learn 0.1.0 would, but it is disabled: FSL_LOAD_PLUGINS",
        ),
        (
            ["run", "toy.yaml", "--no-plugin", "nothing"],
            2,
            "--no-plugin nothing: there is no plugin with that name. ",
        ),
        (
            ["run", "toy.yaml", "--plugins-dir", "absent"],
            2,
            "--plugins-dir absent: no such folder. ",
        ),
        (["run", "toy.yaml", "--device", "quantum"], 2, "--device quantum: not available here. "),
        (
            ["run", "toy.yaml", "-s", "adapter={name: explodes}"],
            1,
            "outer step 7, episode 12: the loss is nan. ",
        ),
        (
            ["reproduce", "toy.yaml"],
            2,
            "toy.yaml: no `expect:`, so there is nothing to compare a result with. ",
        ),
        (["resume", "absent"], 2, "absent: no run here, and nothing else. A directory that "),
        (["reuse", ".", "absent"], 2, "absent: no run here, and nothing else. "),
        (["watch", "absent"], 2, "absent: no such folder. A run, a sweep, a search, or a folder"),
        (["resume", "."], 2, ".: no run here (recipe.yaml is absent). A directory that "),
        (["report", "."], 2, ".: no result.json here. "),
        (
            ["eval", ".", "--split", "tets"],
            2,
            "--split tets: no such split. One of train, validation, test",
        ),
        (["list", "adaptrs"], 2, "adaptrs: not a kind of component. Did you mean 'adapter"),
        (["show", "adapter", "nearest-centriod"], 2, "Did you mean 'nearest-centroid'?"),
    ],
)
def test_mistakes_end_in_one_clear_line(
    call, toy_recipe: Path, arguments: list[str], code: int, message: str
):
    ended = call(*arguments)
    assert ended.code == code
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert not ended.out


def test_a_truncated_checkpoint_is_named(call, toy_recipe: Path, tmp_path: Path):
    assert call("run", toy_recipe, "--out", "out").code == 0
    (tmp_path / "out" / "result.json").unlink()
    last = tmp_path / "out" / "checkpoints" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:200])
    ended = call("resume", "out")
    assert ended.code == 2
    imported, damaged = ended.err.splitlines()
    assert imported.startswith("imported ")
    assert damaged.startswith("out/checkpoints/last.safetensors: damaged checkpoint")


def test_check_says_what_the_recipe_is(call, toy_recipe: Path):
    assert call("check", toy_recipe).out.startswith(f"{toy_recipe}: ok. nearest-centroid on mlp, ")


def test_check_says_how_much_memory_training_takes(call, toy_recipe: Path):
    told = "memory of the process without its data, about: "
    assert told not in call("check", toy_recipe).out
    line = call("check", toy_recipe, "--memory", "-s", "execution.mode=auto").out.splitlines()[-1]
    assert re.fullmatch(told + r"0\.\d GB by loop, 0\.\d GB by vmap", line)
    named = ("execution.mode=loop", "-s", "execution.workers=2")
    line = call("check", toy_recipe, "--memory", "-s", *named).out.splitlines()[-1]
    assert re.fullmatch(told + r"0\.\d GB by loop, 2 workers", line)
    line = call("check", toy_recipe, "--memory", "-s", "outer.steps=0").out.splitlines()[-1]
    assert line == "memory: nothing is trained"


def test_check_says_what_an_adapter_advises(
    call, toy_recipe: Path, monkeypatch: pytest.MonkeyPatch
):
    assert "note:" not in call("check", toy_recipe).out
    monkeypatch.setattr(NearestCentroid, "advice", lambda self: "it is near")
    assert "note: adapter nearest-centroid: it is near" in call("check", toy_recipe).out


def test_listing_and_showing(call, toy_recipe: Path):
    names = {row["name"] for row in json.loads(call("list", "backbones", "--json").out)}
    assert {"conv4", "mlp"} <= names
    shown = call("show", "adapter", "nearest-centroid")
    assert "arXiv:1703.05175" in shown.out
    assert "temperature" in shown.out
    schema = json.loads(call("show", "weighting", "uniform", "--json").out)["schema"]
    assert schema["properties"]["reduction"]["default"] == "mean"
    assert {"adam", "sgd"} <= {
        row["name"] for row in json.loads(call("list", "optimizers", "--json").out)
    }


def test_plugins_and_doctor_name_a_broken_plugin(call, tmp_path: Path):
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "shaky.py").write_text(
        "from fsl_core import hookimpl\nraise RuntimeError('not today')"
    )
    rows = json.loads(call("plugins", "--plugins-dir", "extra", "--json").out)
    shaky = next(row for row in rows if row["name"] == "shaky")
    assert (shaky["status"], shaky["reason"]) == ("failed", "RuntimeError: not today")
    assert next(row for row in rows if row["name"] == "glyphs")["offers"] == ["episodes glyphs"]
    examined = call("doctor", "--plugins-dir", "extra")
    assert examined.code == 1
    assert "shaky RuntimeError: not today" in examined.out
    assert call("doctor").code == 0


def test_the_schema_is_json(fsl):
    assert json.loads(fsl("schema").stdout)["title"] == "fsl recipe"


def test_the_hypergradient_is_named(call, toy_recipe: Path, tmp_path: Path):
    chosen = ("-s", "adapter=steps", "-s", "outer.hypergradient=first-order")
    assert (
        " parameters, hypergradient first-order, blobs 3-way "
        in call("check", toy_recipe, *chosen).out
    )
    ended = call("run", toy_recipe, *chosen, "-s", "outer.steps=2", "--out", "out")
    assert ended.code == 0, ended.err
    assert "\nhypergradient first-order\n" in ended.out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Trained with the hypergradient first-order. " in page
    evaluated = call("eval", "out", "--episodes", 5)
    assert evaluated.code == 0, evaluated.err


def test_a_hypergradient_that_does_not_fit_is_refused_before_anything_runs(
    call, toy_recipe: Path, tmp_path: Path
):
    for command in ("check", "run"):
        ended = call(command, toy_recipe, "-s", "outer.hypergradient=first-order")
        assert ended.code == 2
        assert ended.err.endswith(
            "outer.hypergradient: first-order: adapter 'nearest-centroid' has no inner problem. "
            "unrolled, or an adapter or options that fit\n"
        )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("more", [[], ["--quiet"]])
def test_a_misspelt_tracker_is_one_line(call, monkeypatch: pytest.MonkeyPatch, more: list[str]):
    monkeypatch.setenv("FSL_TRACKER", "wanbd")
    ended = call("run", "toy.yaml", "-s", "outer.steps=1", *more)
    lines = [line for line in ended.err.splitlines() if "FSL_TRACKER" in line]
    told = "no plugin tracks runs under this name, so nothing does. Did you mean 'wandb'?"
    assert (ended.code, lines) == (0, [f"FSL_TRACKER=wanbd: {told}"])
