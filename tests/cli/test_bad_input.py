"""Every mistake a user can make ends in one clear line for each fault, without a traceback, and
nothing half-written is left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.parts.command_line import Call, Ended

QUICK = ["-s", "outer.steps=2", "-s", "outer.validate_every=0", "-s", "evaluate.episodes=4"]
PICTURES = "{name: image-folder, root: pictures, n_way: 2, n_shot: 1, n_query: 2, image_size: 16}"
CONV4 = ["-s", "backbone={name: conv4, channels: 4}"]


def refused(ended: Ended, *messages: str, code: int = 2) -> None:
    """It failed with these lines and no others, beside those that say which file was imported."""
    assert ended.code == code, ended
    assert not ended.out
    lines = [line for line in ended.err.splitlines() if not line.startswith("imported ")]
    assert len(lines) == len(messages), ended.err
    for line, message in zip(lines, messages, strict=True):
        assert message in line


def options(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("-s", override)]


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (
            ["adapterr={name: x}"],
            ["-s adapterr: the recipe has no such option. Did you mean 'adapter'?"],
        ),
        (
            ["adapter.temprature=1"],
            ["adapter 'nearest-centroid' has no such option. Did you mean 'temperature'?"],
        ),
        (
            ["episodes.name=blub"],
            ["-s episodes.name: episodes 'blub': no installed plugin offers it. "],
        ),
        (["episodes.spread=wide"], ['-s episodes.spread: found "wide". Expected a valid number']),
        (
            ["episodes.n_wya=1", "backbone.hiden=3"],
            ["Did you mean 'n_way'?", "Did you mean 'hidden'?"],
        ),
        (["adapter=[1, 2]"], ["-s adapter: no `name`. A mapping such as {name: "]),
        (["backbone=conv4"], ["-s backbone: conv4: items of shape (2,). Expected pictures"]),
        (["adapter=null"], ["-s adapter: absent. It is required"]),
        (
            ["adapter.temperature=null"],
            ["-s adapter.temperature: found null. Expected a valid number"],
        ),
        (["outer.optimizer=null"], ["-s outer.optimizer: found null. Expected an object"]),
        (["adapter.temperature=.nan"], ["-s adapter.temperature: found NaN. Expected "]),
        (
            ["adapter.temperature=.inf"],
            ["-s adapter.temperature: found Infinity. Expected a finite number"],
        ),
        (
            ["outer.optimizer.lr=1e400"],
            ["-s outer.optimizer.lr: found Infinity. Expected a finite number"],
        ),
        (
            ["expect={accuracy: {value: .nan, tolerance: 0}}"],
            ["expect.accuracy.value: found NaN. Expected a finite number"],
        ),
        (["seed=1.5"], ["-s seed: found 1.5. Expected a valid integer"]),
        ([f"seed={2**63}"], [f"-s seed: found {2**63}. A number that 64 bits can hold"]),
        (
            [f"outer.steps={10**30}"],
            [f"-s outer.steps: found {10**30}. A number that 64 bits can hold"],
        ),
        (
            ["backbone.hidden=[9000000000000000000]"],
            ["toy.yaml:3: backbone (with -s backbone.hidden): cannot be built: "],
        ),
        (
            ["outer.meta_batch_size=0"],
            ["-s outer.meta_batch_size: found 0. Expected greater than 0"],
        ),
        (
            ["backbone.hidden=[0]"],
            ["-s backbone.hidden: backbone.hidden.0: found 0. Expected greater than 0"],
        ),
        (["backbone.hidden=[]"], ["-s backbone.hidden: found []. Expected at least 1 item"]),
        (
            ["outer.optimizer.betas=[0.9]"],
            ["-s outer.optimizer.betas: outer.optimizer.betas.1: absent. It is required"],
        ),
        (
            ["outer.optimizer.betas=[0.9, 2]"],
            [
                "toy.yaml:6: outer.optimizer (with -s outer.optimizer.betas): Invalid beta parameter at index 1: 2.0"
            ],
        ),
        (
            ["evaluate.n_way=1"],
            ["-s evaluate.n_way: found 1. Expected greater than or equal to 2"],
        ),
        (
            ["adapter={name: explodes}", "evaluate.n_way=4"],
            ["-s evaluate.n_way: adapter.head.weight of adapter 'explodes'"],
        ),
        (
            ["episodes={name: sinusoid}"],
            ["adapter: nearest-centroid: a regression task. Classification"],
        ),
        (
            ["backbone.name=conv4"],
            [
                "toy.yaml:3: backbone.hidden: backbone 'conv4' (-s backbone.name) has no such option. "
            ],
        ),
        (
            ["backbone={name: conv4}"],
            ["-s backbone: conv4: items of shape (2,). Expected pictures"],
        ),
        (["requires=fsl-maml"], ['-s requires: found "fsl-maml". Expected a valid array']),
        (
            ["requires=[1]"],
            ["-s requires: requires.0: found 1. Expected a valid string, such as '\"1\"'"],
        ),
        (
            ["expect={accuracy: {value: 1}}"],
            ["-s expect: expect.accuracy.tolerance: absent. It is required"],
        ),
        (
            ["expect={acuracy: {value: 1, tolerance: 0}}"],
            ["-s expect: expect.acuracy: no such result. Expected accuracy"],
        ),
        (["=5"], ["-s =5: not an override. key.path=value"]),
        (
            ["steps=5", "temperature=2", "n_way=3"],
            [
                "-s steps: the recipe has no such option. Did you mean outer.steps?",
                "-s temperature: the recipe has no such option. Did you mean adapter.temperature?",
                "-s n_way: the recipe has no such option. Did you mean episodes.n_way or evaluate.n_way?",
            ],
        ),
        (
            ["seed", "episodes.spread=", "adapter=[1"],
            [
                "-s seed: not an override. ",
                "-s episodes.spread: no value. null for none",
                "-s adapter: YAML syntax: ",
            ],
        ),
        (
            ["adaptr.temperature=1", "backbone.hiden=3"],
            [
                "-s backbone.hiden: backbone 'mlp' has no such option. Did you mean 'hidden'?",
                "-s adaptr.temperature: adaptr: the recipe has no such option. Did you mean 'adapter'?",
            ],
        ),
        (
            ["outer.schedule.gamma=1"],
            ["-s outer.schedule.gamma: outer.schedule: no `name`. A mapping such as {name: "],
        ),
        (
            ["episodes={name: blobs # 2}"],
            ["-s episodes: '# 2}' would be left out: YAML reads a comment, anchor or tag. Quotes"],
        ),
        (["seed=[1"], ["-s seed: YAML syntax: expected ',' or ']'"]),
        (["seed=*x"], ['-s seed: found "*x". Expected a valid integer']),
        (
            ["outer.schedule={name: multistep}"],
            ["-s outer.schedule: outer.schedule.milestones: absent. It is required"],
        ),
    ],
)
def test_options(call: Call, tmp_path: Path, overrides: list[str], messages: list[str]):
    refused(call("run", "toy.yaml", *QUICK, *options(*overrides)), *messages)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"seed: 0\n\tadapter: x\n",
            "bad.yaml:2: YAML syntax: found character '\\t' that cannot start any token. ",
        ),
        (
            b"seed: 0\n  steps: 3\n",
            "bad.yaml:2: YAML syntax: mapping values are not allowed here. ",
        ),
        (b"outer: {a: {b: 1}\nseed: 0\n", "bad.yaml:2: YAML syntax: expected ',' or '}'"),
        (b"seed: 'a\n", "bad.yaml:2: YAML syntax: found unexpected end of stream. "),
        (
            b"episodes: {n_way: 3, n_way: 4}\n",
            'bad.yaml:1: YAML syntax: found duplicate key "n_way"',
        ),
        (b"---\na: 1\n---\nb: 1\n", "bad.yaml:3: YAML syntax: but found another document"),
        (b"\x89PNG\r\n\x1a\n", "bad.yaml: not UTF-8 text. A recipe file in YAML"),
        (b"\x00\x01", "bad.yaml: YAML syntax: unacceptable character #x0000"),
        (b"# nothing yet\n", "bad.yaml:1: empty. A mapping of sections"),
        (b"seed: !!set x\n", "bad.yaml: YAML: "),
    ],
)
def test_a_file_that_is_no_recipe(call: Call, tmp_path: Path, content: bytes, message: str):
    (tmp_path / "bad.yaml").write_bytes(content)
    refused(call("check", "bad.yaml"), message)


def test_places_where_no_recipe_is(call: Call, tmp_path: Path):
    refused(call("run", tmp_path), f"{tmp_path}: Is a directory. A recipe file in YAML")
    refused(call("run", "toy.yaml/x"), "toy.yaml/x: Not a directory. A recipe file in YAML")


def test_merged_keys_and_keys_that_are_no_words_have_a_line(call: Call, tmp_path: Path):
    text = (tmp_path / "toy.yaml").read_text()
    (tmp_path / "toy.yaml").write_text(
        text.replace("evaluate: {", "evaluate:\n  <<: {seed: 2}\n  ? 7\n  : 7\n  ").replace(
            "10}", "10"
        )
    )
    refused(
        call("check", "toy.yaml"),
        "toy.yaml:15: evaluate.7: section 'evaluate' has no such option. ",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cuda:63"], "--device cuda:63: not available here. "),
        (["--device", "meta"], "--device meta: not available here. "),
        (["--out", "toy.yaml"], "toy.yaml: File exists. A folder with room that can be written to"),
        (
            ["--out", "toy.yaml/run"],
            "toy.yaml/run: Not a directory. A folder with room that can be written to",
        ),
        (["--out", "."], ".: holds other files. An empty or new folder for --out"),
    ],
)
def test_devices_and_folders(call: Call, tmp_path: Path, arguments: list[str], message: str):
    before = set(tmp_path.iterdir())
    refused(call("run", "toy.yaml", *QUICK, *arguments), message)
    assert set(tmp_path.iterdir()) == before


PLUGINS = {
    "RuntimeError: not today": "raise RuntimeError('not today')",
    "SyntaxError: invalid syntax (": "class Broken(:",
    "implements unknown hook 'fsl_register_adaptrs'. Did you mean 'fsl_register_adapters'?": (
        "import fsl_core as fsl\n@fsl.hookimpl\ndef fsl_register_adaptrs(register): ..."
    ),
    "needs hook API 99, this fsl-core has 1. ": "FSL_HOOK_API = 99",
    "FSL_HOOK_API is '1'. The number of a hook API, such as 1": "FSL_HOOK_API = '1'",
    "ModuleNotFoundError: No module named 'nowhere'": "import nowhere",
    "called sys.exit(3). ": "raise SystemExit(3)",
}


@pytest.mark.parametrize("reason", PLUGINS)
def test_a_broken_plugin(call: Call, tmp_path: Path, reason: str):
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "shaky.py").write_text(
        f"from fsl_core import hookimpl\n{PLUGINS[reason]}"
    )
    unneeded = call("check", "toy.yaml", "--plugins-dir", "extra")
    assert unneeded.out.startswith("toy.yaml: ok. ")
    needed = call("run", "toy.yaml", "--plugins-dir", "extra", "-s", "adapter.name=shaky")
    for line in (unneeded.err, needed.err):
        assert f"plugin shaky (extra/shaky.py) failed to load: {reason}" in line
    refused(needed, "--plugins-dir extra: shaky.py", "failed to load", f"shaky ({reason}")
    assert not (tmp_path / "runs").exists()


def test_a_plugin_left_out(call: Call):
    message = "toy.yaml:3: backbone.name: backbone 'mlp': no installed plugin offers it. Not loaded: mlp (--no-plugin)"
    refused(call("run", "toy.yaml", "--no-plugin", "mlp"), message)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in (
        f"{split}/class{c}/{i}.png"
        for split in ("train", "test")
        for c in range(3)
        for i in range(4)
    ):
        file = tmp_path / "pictures" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (60 * int(file.stem), 9, 9)).save(file)
    return tmp_path / "pictures"


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (
            ["episodes.root=absent"],
            ["episodes 'image-folder': root absent does not exist. A folder with"],
        ),
        (
            ["episodes.root=toy.yaml"],
            ["episodes 'image-folder': root toy.yaml is not a folder. A folder with"],
        ),
        (
            ["episodes.root=pictures/test/class0"],
            ["episodes 'image-folder': root pictures/test/class0 has no class folders. "],
        ),
        (
            ["episodes.n_way=5"],
            [f"split {s!r} has 3 classes. n_way: 5 needs at least 5" for s in ("train", "test")],
        ),
        (
            ["evaluate.n_query=9"],
            ["split 'test', class 'class0' has 4 items. n_shot: 1 and n_query: 9 need at least 10"],
        ),
        (
            ["outer.validate_every=1"],
            ["no folder with the classes of validation, only test (3 classes), train (3 classes"],
        ),
        (
            ["episodes.fractions=[1, 2]"],
            ["-s episodes.fractions: episodes.fractions.2: absent. It is required"],
        ),
        (
            ["episodes.image_size=8"],
            ["-s backbone: conv4: pictures of 8x8, of which 4 poolings leave no pixel. "],
        ),
        (
            ["episodes.image_size=1000000"],
            ["-s episodes.image_size: found 1000000. Expected less than or equal to 2048"],
        ),
    ],
)
def test_image_folders(call: Call, pictures: Path, overrides: list[str], messages: list[str]):
    refused(
        call("run", "toy.yaml", *QUICK, *CONV4, *options(f"episodes={PICTURES}", *overrides)),
        *messages,
    )
    assert not (pictures.parent / "runs").exists()


def test_images_that_cannot_be_read_are_named_all_together(call: Call, pictures: Path):
    cut = pictures / "test" / "class1" / "2.png"
    cut.write_bytes(cut.read_bytes()[:60])
    (pictures / "train" / "class0" / "1.png").write_text("hello")
    refused(
        call("run", "toy.yaml", *QUICK, *CONV4, "-s", f"episodes={PICTURES}"),
        "pictures/train/class0/1.png: not a readable image",
        "pictures/test/class1/2.png: not a readable image (image file is truncated). ",
    )
    (pictures / "train" / "class0" / "1.png").unlink()
    (pictures / "train" / "class3").mkdir()
    cut.unlink()
    refused(
        call("run", "toy.yaml", *QUICK, *CONV4, "-s", f"episodes={PICTURES}"),
        "pictures/train/class3: no images in this class folder. ",
    )
    assert not (pictures.parent / "runs").exists()


def test_omniglot_absent_or_damaged(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    omniglot = [
        "run",
        "toy.yaml",
        *QUICK,
        *CONV4,
        *options("episodes={name: omniglot, download: false}"),
    ]
    files = "oth zip files of https://github.com/brendenlake/omniglot"
    ended = call(*omniglot, "-s", "episodes.root=/nonexistent")
    refused(ended, "episodes 'omniglot': /nonexistent: named by option root, but no such folder. ")
    assert files in ended.err
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setenv("FSL_DATA", str(data))
    ended = call(*omniglot)
    refused(
        ended,
        f"episodes 'omniglot': no images_background.zip and no images_evaluation.zip in {data} or {data}/omniglot-py",
    )
    assert files in ended.err

    with zipfile.ZipFile(data / "images_background.zip", "w") as archive:
        archive.writestr("images_background/Latin/character01/1.png", "x")
    refused(call(*omniglot), f"{data}/images_background.zip: md5 ")
    (data / "images_background.zip").unlink()

    picture = data / "images_background" / "Latin" / "character01" / "1.png"
    picture.parent.mkdir(parents=True)
    picture.write_text("x")
    (data / "images_evaluation").mkdir()
    refused(
        call(*omniglot),
        f"{picture}: not a readable image (of no known format). Unpack the zip file",
    )
    picture.parent.parent.rename(data / "images_background" / "Own")
    refused(
        call(*omniglot),
        f"{data}/images_background/Own/character01/1.png: not a character of Omniglot. ",
    )
    assert not (tmp_path / "runs").exists()


def test_cifar_fs_absent_or_damaged(call: Call, tmp_path: Path):
    cifar = [
        "run",
        "toy.yaml",
        *QUICK,
        *CONV4,
        *options("episodes={name: cifar-fs, download: false}"),
    ]
    refused(
        call(*cifar, "-s", "episodes.root=/nonexistent"),
        "episodes 'cifar-fs': /nonexistent: named by option root, but no such folder. ",
    )
    grid = tmp_path / "data" / "cifarfs" / "train" / "apple.webp"
    grid.parent.mkdir(parents=True)
    rooted = [*cifar, "-s", "episodes.root=data"]
    refused(
        call(*rooted),
        "episodes 'cifar-fs': no class files or folders, and no whole cifar-100-python, in data (",
    )
    grid.write_text("x")
    refused(
        call(*rooted),
        "episodes 'cifar-fs': data/cifarfs: 1 of 64 classes, not aquarium_fish, bear, bee …. All of them",
        "episodes 'cifar-fs': no class files or folders",
    )
    refused(
        call(*rooted, "-s", "episodes.augment=crop"),
        "-s episodes.augment: found \"crop\". Expected 'none', 'flip' or 'crop-flip'",
    )
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs as they were when they had just ended, and their plugin: each test damages a copy."""
    return tmp_path_factory.mktemp("runs")


def as_it_ended(runs: Path, call: Call, out: str, *arguments: str) -> None:
    """A finished run in the folder `out`; only the first test of a process trains it."""
    if not (runs / out).exists():
        for name in ("toy.yaml", "fslplugin.py"):  # of the first test, whose folder goes with it
            shutil.copyfile(name, runs / name)
        assert call("run", runs / "toy.yaml", *arguments, "--out", runs / out).code == 0
    shutil.copytree(runs / out, out)


@pytest.fixture
def finished(call: Call, runs: Path, tmp_path: Path) -> Path:
    as_it_ended(runs, call, "out", *options("outer.steps=6", "evaluate.episodes=4"))
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "result.json",
            b"",
            "out/result.json: not JSON: Expecting value (line 1). Delete out/result.json: `fsl resume",
        ),
        ("result.json", b'{"accuracy": 0.', "out/result.json: not JSON: "),
        (
            "environment.json",
            None,
            "out/environment.json: No such file or directory. The file as it was, or a new run",
        ),
        ("environment.json", b"[1]", "out/environment.json: a list, not a JSON object. "),
        ("environment.json", b"\xff", "out/environment.json: not UTF-8 text. "),
        ("recipe.yaml", b"seed: [", "out/recipe.yaml:1: YAML syntax: "),
        ("recipe.yaml", b"", "out/recipe.yaml:1: empty. "),
    ],
)
def test_damaged_records(
    call: Call, finished: Path, name: str, content: bytes | None, message: str
):
    (finished / name).unlink() if content is None else (finished / name).write_bytes(content)
    refused(call("resume", "out"), message)
    if name != "recipe.yaml":
        refused(call("report", "out"), message)


@pytest.mark.parametrize(
    "content", [b'{"step": 1, "lo', b"\xff\xfe", None], ids=["cut", "binary", "absent"]
)
@pytest.mark.parametrize("name", ["metrics.jsonl", "episodes.csv"])
def test_damaged_curves(call: Call, finished: Path, name: str, content: bytes | None):
    """`fsl report` names the file, and what it advises mends the run."""
    if content is None:
        (finished / name).unlink()
    else:
        (finished / name).write_bytes(content)
    reported = call("report", "out")
    if (name, content) != ("episodes.csv", b'{"step": 1, "lo'):  # that is a table, if a strange one
        refused(reported, f"out/{name}: ")
    assert "Traceback" not in reported.err
    (finished / "result.json").unlink()
    assert call("resume", "out").code == 0
    assert call("report", "out").code == 0


@pytest.mark.parametrize("which", ["last", "best"])
@pytest.mark.parametrize("kept", [0, 100, -4])
def test_truncated_checkpoints(call: Call, finished: Path, which: str, kept: int):
    """Both checkpoints lead to the same end, so that the loss of one costs no more than the steps
    after the other."""
    result = json.loads((finished / "result.json").read_text())
    path = finished / "checkpoints" / f"{which}.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    message = f"out/checkpoints/{which}.safetensors: damaged checkpoint ("
    refused(call("eval", "out", "--checkpoint", which), message)
    (finished / "result.json").unlink()
    refused(call("resume", "out"), message)
    path.unlink()
    assert call("resume", "out").code == 0
    if which == "last":
        assert json.loads((finished / "result.json").read_text())["accuracy"] == result["accuracy"]


def test_a_run_directory_in_use(call: Call, finished: Path):
    first = ["run", "toy.yaml", *options("outer.steps=6", "evaluate.episodes=4"), "--out", "out"]
    refused(
        call(*first),
        "out: holds a finished run of this recipe. `fsl resume out` shows its result, and another --out",
    )
    refused(
        call(*first, "-s", "seed=1"),
        "out: holds a run of another recipe (seed: 0 → 1). Another --out",
    )
    (finished / "result.json").unlink()
    refused(
        call(*first), "out: holds an unfinished run of this recipe. `fsl resume out` continues it"
    )
    (finished / "recipe.yaml").write_text("seed: [")
    refused(call(*first), "out/recipe.yaml:1: YAML syntax: ")


@pytest.fixture
def trained(call: Call, runs: Path, pictures: Path) -> Path:
    """A run on pictures, with class folders to predict from."""
    as_it_ended(runs, call, "trained", *QUICK, *CONV4, *options(f"episodes={PICTURES}"))
    (pictures.parent / "empty").mkdir()
    return pictures.parent


PREDICT = ["predict", "trained", "--support", "pictures/train", "--query", "pictures/test"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["predict", "trained", "--query", "pictures/test"],
            "--support: absent. A folder with one folder of labelled pictures",
        ),
        (
            ["predict", "absent", *PREDICT[2:]],
            "absent: no run here, and nothing else. A directory ",
        ),
        (
            ["predict", "toy.yaml", "--query", "pictures"],
            "toy.yaml: not a whole file of `fsl predict --save` (",
        ),
        (
            ["predict", "toy.yaml", *PREDICT[2:], "--invert"],
            "toy.yaml: a file, and --support, --invert. ",
        ),
        (
            [*PREDICT, "--checkpoint", "first"],
            "--checkpoint first: no such checkpoint. best or last",
        ),
        ([*PREDICT, "--device", "cuda:63"], "--device cuda:63: not available here. "),
        ([*PREDICT, "--support", "absent"], "absent: does not exist. A folder of pictures"),
        ([*PREDICT, "--support", "toy.yaml"], "toy.yaml: is not a folder. A folder of pictures"),
        (
            [*PREDICT, "--support", "empty"],
            "empty: 0 class folders. At least two folders of pictures",
        ),
        (
            [*PREDICT, "--support", "pictures/train/class0"],
            "pictures/train/class0: 0 class folders. At least two",
        ),
        ([*PREDICT, "--query", "absent"], "absent: does not exist. A folder of pictures"),
        (
            [*PREDICT, "--query", "empty"],
            "empty: no pictures. At least one file such as .jpg or .png",
        ),
        ([*PREDICT, "--out", "toy.yaml/x.csv"], "toy.yaml is not a folder. A file in a folder"),
        ([*PREDICT, "--out", "x.html"], "--out x.html: ends in .html. A table in CSV, in a file"),
        (
            [*PREDICT, "--export", "m.zip"],
            "--export m.zip: ends in .zip. A program of torch.export or ONNX, in a file such",
        ),
        (
            [*PREDICT, "--out", "trained/episodes.csv"],
            "--out trained/episodes.csv: a file of the run trained. Another name",
        ),
        ([*PREDICT, "--save", "empty"], "--save empty: a folder. A file, such as "),
    ],
)
def test_predictions(call: Call, trained: Path, arguments: list[str], message: str):
    ended = call(*arguments)
    lines = [x for x in ended.err.splitlines() if not x.startswith(("note: ", "imported "))]
    assert ended.code == 2
    assert not ended.out
    assert len(lines) == 1
    assert message in lines[0]


def test_files_are_refused_before_the_work(
    call: Call, trained: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("fsl_core.predicting.adapting.adapt_to_folder", None)
    before = (trained / "trained" / "episodes.csv").read_text()
    ended = call(*PREDICT, "--out", "trained/episodes.csv", "--html", "x.csv")
    refused(ended, "--out trained/episodes.csv: ", "--html x.csv: ends in .csv. ")
    assert (trained / "trained" / "episodes.csv").read_text() == before


def test_a_page_of_a_comparison_is_refused_before_the_work(call: Call):
    refused(call("compare", "a", "b", "--html", "x.csv"), "--html x.csv: ends in .csv. ")


def test_folders_of_outputs_are_made(call: Call, trained: Path):
    assert call(*PREDICT, "--out", "deep/er/x.csv", "--html", "deep/x.html").code == 0
    assert (trained / "deep" / "er" / "x.csv").is_file()
    assert (trained / "deep" / "x.html").is_file()


def test_pictures_that_cannot_be_predicted(call: Call, trained: Path):
    query = trained / "pictures" / "test"
    (query / "class9").mkdir()
    shutil.copy(query / "class0" / "1.png", query / "class9")
    refused(
        call(*PREDICT),
        "pictures/test: class folders and a folder 'class9', which is not a class. Only folders ",
    )
    (query / "class9" / "1.png").rename(query / "1.png")
    refused(call(*PREDICT), "pictures/test: class folders and pictures outside of class folders. ")
    (query / "1.png").unlink()
    (query / "class1" / "2.png").write_text("hello")
    refused(call(*PREDICT), "pictures/test/class1/2.png: not a readable image (")
    (trained / "pictures" / "train" / "class8").mkdir()
    refused(call(*PREDICT), "pictures/train/class8: no images in this class folder. ")


def test_runs_that_take_no_pictures_and_damaged_files(call: Call, trained: Path, finished: Path):
    message = "out: a run of classification with items of shape (2,). A run that classifies square pictures"
    refused(call("predict", "out", *PREDICT[2:]), message)
    assert call(*PREDICT, "--save", "kept").code == 0
    kept = trained / "kept"
    kept.write_bytes(kept.read_bytes()[:-50])
    refused(
        call("predict", "kept", "--query", "pictures/test"),
        "kept: not a whole file of `fsl predict --save` (",
    )


def test_a_saved_predictor_without_its_plugin(call: Call, trained: Path):
    assert call(*PREDICT, "--save", "kept").code == 0
    ended = call("predict", "kept", "--query", "pictures/test", "--no-plugin", "conv4")
    refused(
        ended,
        "kept: recipe:",
    )
    assert (
        "backbone 'conv4': no installed plugin offers it. Not loaded: conv4 (--no-plugin)"
        in ended.err
    )


def test_a_loss_that_is_not_finite_ends_with_1(call: Call):
    ended = call("run", "toy.yaml", *QUICK, "-s", "adapter={name: explodes, at_progress: 0.5}")
    refused(ended, "outer step 2, episode 2: the loss is nan. ", code=1)


def process(*arguments: str, **options: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "FSL_LOAD_PLUGINS": "none"}
    command = [sys.executable, "-m", "fsl_core", *arguments]
    return subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE, **options)


def test_a_reader_that_leaves_early(toy_recipe: Path, tmp_path: Path):
    listed = process("schema", cwd=tmp_path, stdout=subprocess.PIPE)
    listed.stdout.close()
    _, err = listed.communicate(timeout=600)
    assert not err
