"""Runs are pushed to a stand-in of the hub and fetched from it, and what goes wrong is one line."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

from huggingface_hub import ModelCard, get_token
from safetensors.torch import load_file

import fsl_core as fsl
from fsl_core.cli import main
from fsl_hub import Hub

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=:DeprecationWarning"  # of huggingface_hub's own
)
RECIPE = {
    "episodes": {"name": "glyphs", "n_way": 3, "n_shot": 1, "n_query": 2},
    "backbone": {"name": "conv4", "channels": 4},
    "adapter": {"name": "nearest-centroid"},
    "outer": {"meta_batch_size": 1, "steps": 2, "validate_every": 1, "validate_episodes": 2},
    "execution": {"mode": "loop", "workers": 1},
    "evaluate": {"episodes": 4},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FSL_LOAD_PLUGINS", "")
        fsl.run(RECIPE, out=directory, device="cpu", progress=False)
    return directory


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path):
    """The command line in this process: code, stdout, stderr."""
    monkeypatch.setenv("FSL_LOAD_PLUGINS", "hub")
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["fsl", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code or 0, *capfd.readouterr())

    return command


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three classes of two pictures."""
    for label in range(3):
        for number in range(2):
            sheet = np.zeros((28, 28), dtype=np.uint8)
            sheet[4 : 8 + 6 * label, 6 + number : 9 + 7 * label] = 255
            file = tmp_path / "pictures" / f"class{label}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sheet).save(file)
    return tmp_path / "pictures"


def test_a_run_is_pushed_and_predicts_as_it_did(hub, call, run: Path, pictures: Path):
    assert call("push", run, "ada/glyphs", "--licence", "mit") == (
        0,
        f"{hub.url}/ada/glyphs\nfsl predict hf:ada/glyphs --support DIR --query DIR\n",
        "",
    )
    here = call("predict", run, "--support", pictures, "--query", pictures)
    code, table, _ = call("predict", "hf:ada/glyphs", "--support", pictures, "--query", pictures)
    assert (code, table) == (0, here[1])
    assert len(table.splitlines()) == 7


def test_a_fetched_run_is_judged_as_it_was(hub, call, run: Path):
    call("push", run, "ada/glyphs", "--licence", "mit")
    result = json.loads((run / "result.json").read_text())
    told = json.loads(call("eval", "hf:ada/glyphs", "--json")[1])
    assert (told["accuracy"], told["episode_set"]) == (result["accuracy"], result["episode_set"])


def test_pictures_of_training_are_not_needed(hub, call, pictures: Path, tmp_path: Path):
    """Their folder is on another machine, and the pushed recipe has its last name alone."""
    for split in ("train", "validation", "test"):
        shutil.copytree(pictures, tmp_path / "own" / split)
    recipe = tmp_path / "own.yaml"
    own = {"name": "image-folder", "root": str(tmp_path / "own"), "n_way": 2, "n_query": 1}
    outer = {"meta_batch_size": 1, "steps": 0, "validate_every": 0}
    episodes = {**own, "image_size": 28, "channels": "gray"}
    recipe.write_text(json.dumps({**RECIPE, "episodes": episodes, "outer": outer}))
    code, _, told = call("run", recipe, "--out", "run")
    assert code == 0, told
    assert call("push", "run", "ada/own", "--licence", "other")[0] == 0
    shutil.rmtree(tmp_path / "own")
    given = ("--support", pictures, "--query", pictures)
    code, table, told = call("predict", "hf:ada/own", *given)
    assert (code, len(table.splitlines())) == (0, 7), told


def test_what_is_pushed_is_data_that_tells_nothing_of_this_machine(hub, call, run: Path):
    call("push", run, "ada/glyphs", "--licence", "mit")
    files = hub.files("ada/glyphs")
    assert set(files) == {
        *("README.md", "recipe.yaml", "environment.json", "metrics.jsonl", "episodes.csv"),
        *("result.json", "checkpoints/best.safetensors"),
    }
    text = b"".join(content for name, content in files.items() if "checkpoint" not in name)
    assert str(run.parent).encode() not in text
    assert "per_class" not in json.loads(files["result.json"])
    weights = run / "checkpoints" / "best.safetensors"
    sent = Path(weights.parent.parent / "sent.safetensors")
    sent.write_bytes(files["checkpoints/best.safetensors"])
    assert {n for n in load_file(weights) if not n.startswith("optimizer.")} == set(load_file(sent))


def test_the_card_tells_the_figure_the_protocol_and_the_licence(hub, call, run: Path):
    call("push", run, "ada/glyphs", "--licence", "cc-by-4.0")
    card = ModelCard(hub.files("ada/glyphs")["README.md"].decode())
    result = json.loads((run / "result.json").read_text())
    assert (card.data.license, card.data.library_name) == ("cc-by-4.0", "fsl-core")
    (evaluation,) = card.data.eval_results
    assert evaluation.metric_value == pytest.approx(result["accuracy"], abs=1e-6)
    assert evaluation.metric_args["interval_95"] == pytest.approx(result["interval"], abs=1e-6)
    assert evaluation.metric_args["episode_set"] == result["episode_set"]
    assert evaluation.task_name == "3-way 1-shot, 2 queries a class"
    assert (evaluation.dataset_name, evaluation.metric_type) == ("glyphs", "accuracy")
    assert f"**Test accuracy {result['accuracy']:.4f} ± {result['interval']:.4f}**" in card.text
    assert "fsl predict hf:ada/glyphs" in card.text


def test_further_sources_have_results_of_their_own(run: Path, tmp_path: Path):
    from fsl_hub.card import card

    result = json.loads((run / "result.json").read_text())
    row = {**result, "episodes_name": "omniglot", "n_way": 5, "n_shot": 1, "n_query": 3}
    for name, content in {
        "result.json": json.dumps({**result, "on": {"drawn": row}}),
        "recipe.yaml": (run / "recipe.yaml").read_text(),
    }.items():
        (tmp_path / name).write_text(content)
    read = ModelCard(card(tmp_path, "ada/glyphs", "mit"))
    _, other = read.data.eval_results
    assert (other.dataset_name, other.task_name) == ("omniglot", "5-way 1-shot, 3 queries a class")


def test_a_run_starts_from_one_on_the_hub(hub, call, run: Path, tmp_path: Path):
    call("push", run, "ada/glyphs", "--licence", "mit")
    recipe = tmp_path / "more.yaml"
    recipe.write_text(json.dumps({**RECIPE, "start_from": "hf:ada/glyphs"}))
    code, out, _ = call("run", recipe, "--out", "more", "-s", "outer.steps=0")
    assert code == 0
    assert "weights of hf:ada/glyphs (best of step" in out
    resolved = (tmp_path / "more" / "recipe.yaml").read_text()
    assert "hf:ada/glyphs" in resolved
    assert f"{tmp_path}/hf:" not in resolved
    assert "fsl-hub>=0.1" in resolved
    result = json.loads((tmp_path / "more" / "result.json").read_text())
    assert result["accuracy"] == json.loads((run / "result.json").read_text())["accuracy"]


def test_a_revision_can_be_named(hub, call, run: Path, pictures: Path):
    call("push", run, "ada/glyphs", "--licence", "mit")
    first = hub.sha("ada/glyphs")
    hub.commit("ada/glyphs", {"README.md": b"nothing any more"})
    given = ("--support", pictures, "--query", pictures)
    assert call("predict", f"hf:ada/glyphs@{first}", *given)[0] == 0
    code, _, told = call("predict", "hf:ada/glyphs", *given)
    assert (code, told) == (
        2,
        "hf:ada/glyphs: no run there (recipe.yaml is absent). A run that `fsl push` sent\n",
    )
    _, _, told = call("predict", "hf:ada/glyphs@v9", *given)
    assert told.startswith("hf:ada/glyphs@v9: the repository has no such revision. ")


def test_a_second_push_leaves_no_checkpoint_of_the_first(hub, call, run: Path):
    hub.commit("ada/glyphs", {"checkpoints/last.safetensors": b"old", "notes.txt": b"mine"})
    call("push", run, "ada/glyphs", "--licence", "mit")
    files = hub.files("ada/glyphs")
    assert "checkpoints/last.safetensors" not in files
    assert files["notes.txt"] == b"mine"


def test_a_private_run_is_for_its_owner(hub, call, run: Path, monkeypatch, tmp_path: Path):
    assert call("push", run, "ada/glyphs", "--licence", "mit", "--private")[0] == 0
    assert Hub().fetch("ada/glyphs").is_dir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "other-cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_eve")
    with pytest.raises(fsl.RunError, match=r"^hf:ada/glyphs: no such repository \(404\)\. A run"):
        Hub().fetch("ada/glyphs")


def test_what_is_to_be_private_does_not_join_what_is_public(hub, call, run: Path):
    before = hub.commit("ada/glyphs", {"README.md": b"for all"})
    assert call("push", run, "ada/glyphs", "--licence", "mit", "--private")[2] == (
        "hf:ada/glyphs: is there and public. A new name, or without --private\n"
    )
    assert hub.sha("ada/glyphs") == before


@pytest.mark.parametrize(
    ("token", "told"),
    [
        ("hf_nobody", "the hub does not know this token, or there is no such repository (401)"),
        ("hf_eve", "the hub does not allow it to this token (403)"),
    ],
)
def test_a_bad_token_is_told_in_one_line(hub, call, run: Path, monkeypatch, token: str, told: str):
    monkeypatch.setenv("HF_TOKEN", token)
    assert call("push", run, "ada/glyphs", "--licence", "mit") == (
        2,
        "",
        f"hf:ada/glyphs: {told}. HF_TOKEN with a token that may write, or `hf auth login`\n",
    )
    assert hub.repositories == {}


def test_without_a_token_nothing_is_asked(hub, call, run: Path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert get_token() is None
    _, _, told = call("push", run, "ada/glyphs", "--licence", "mit")
    assert told == (
        "hf:ada/glyphs: no token. HF_TOKEN with a token that may write, or `hf auth login`\n"
    )
    assert hub.seen == []


@pytest.mark.parametrize("cut", ["/lfs/", "/commit/", "/preupload/"])
def test_an_interrupted_upload_leaves_what_was_there(hub, call, run: Path, cut: str):
    before = hub.commit("ada/glyphs", {"README.md": b"before"})
    hub.cut = (cut,)
    code, _, told = call("push", run, "ada/glyphs", "--licence", "mit")
    assert code == 2
    start = "hf:ada/glyphs: the upload did not end, and nothing of it is visible: "
    assert told.startswith(f"{start}the connection broke (")
    assert told.endswith("). The same command sends it again\n")
    assert len(told.splitlines()) == 1
    assert hub.sha("ada/glyphs") == before
    hub.cut = ()
    assert call("push", run, "ada/glyphs", "--licence", "mit")[0] == 0


def test_an_interrupted_download_is_told_and_goes_on(hub, call, run: Path, pictures: Path):
    call("push", run, "ada/glyphs", "--licence", "mit")
    hub.cut = ("best.safetensors",)
    given = ("--support", pictures, "--query", pictures)
    code, _, told = call("predict", "hf:ada/glyphs", *given)
    assert code == 2
    assert told.splitlines()[-1].startswith("hf:ada/glyphs: ")
    hub.cut = ()
    assert call("predict", "hf:ada/glyphs", *given)[0] == 0


def test_a_fetched_run_needs_no_hub_the_second_time(hub, call, run: Path, pictures, monkeypatch):
    call("push", run, "ada/glyphs", "--licence", "mit")
    first = Hub().fetch("ada/glyphs")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert Hub().fetch("ada/glyphs") == first
    with pytest.raises(fsl.RunError, match=r"^hf:ada/other: the hub cannot be reached .*HF_ENDP"):
        Hub().fetch("ada/other")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("ada/glyphs",), "--licence: absent. How others may use the run, such as mit"),
        (("ada/glyphs", "--licence", "Mine!"), "--licence: 'Mine!'. How others may use the run"),
        (("a b/c", "--licence", "mit"), "hf:a b/c: "),
        (("gs:a/b", "--licence", "mit"), "store 'gs': no installed plugin offers it. "),
    ],
)
def test_a_wrong_command_is_told_in_one_line(hub, call, run: Path, arguments, told: str):
    code, _, error = call("push", run, *arguments)
    assert code == 2
    assert error.startswith(told)
    assert len(error.splitlines()) == 1


def test_a_kept_run_has_nothing_to_predict_with(hub, call, run: Path, tmp_path: Path):
    call("keep", run, "--out", tmp_path / "kept")
    _, _, told = call("push", tmp_path / "kept", "ada/glyphs", "--licence", "mit")
    assert told.endswith("absent. A run with its weights, not a kept one\n")


def test_a_run_elsewhere_is_not_resumed(hub, call):
    assert call("resume", "hf:ada/glyphs")[2] == (
        "hf:ada/glyphs: a run that lies elsewhere. A directory of this machine\n"
    )


def test_without_the_package_it_is_named(call, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("FSL_LOAD_PLUGINS", "")
    _, _, told = call("predict", "hf:ada/glyphs", "--support", tmp_path, "--query", tmp_path)
    assert "fsl-hub" in told
    recipe = tmp_path / "r.yaml"
    recipe.write_text(json.dumps({**RECIPE, "start_from": "hf:ada/glyphs"}))
    assert call("check", recipe)[2].startswith(f"{recipe}:1: start_from.run: store 'hf'")
