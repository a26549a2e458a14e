"""`fsl label` and `fsl predict --backbone`: predictions without a run, as a user meets them."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fsl_core as core
from fsl_core.data.vision import torchvision
from tests.parts import bars
from tests.parts.command_line import Call, Ended

NETWORK = "shufflenet_v2_x0_5"
PLUGIN = '''
import torch
import fsl_core as fsl


class Tiny(fsl.PretrainedBackbone):
    """Means of coloured patches: it has nothing to learn."""

    name = "tiny"

    def __init__(self, task: fsl.TaskShape, frozen: bool, stride: int = 3):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 5, stride), torch.nn.ReLU())
        wanted = fsl.Preprocessing(24, [0.5] * 3, [0.25] * 3)
        super().__init__(task.input_shape, net, wanted, frozen=frozen)


class Equal(fsl.Adapter):
    name = "equal"

    def __init__(self, task: fsl.TaskShape):
        super().__init__()

    def adapt(self, backbone, support):
        return lambda x: backbone(x)


@fsl.hookimpl
def fsl_register_backbones(register):
    register(Tiny)


@fsl.hookimpl
def fsl_register_adapters(register):
    register(Equal)
'''
TINY = ["predict", "--backbone", "tiny", "--plugins-dir", "plugins", "--support", "examples"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of start values, so that nothing is fetched."""
    torch.manual_seed(0)
    net = torchvision().models.get_model(NETWORK, weights=None)
    file = tmp_path_factory.mktemp("weights") / "shufflenet.pth"
    torch.save(net.state_dict(), file)
    return file


@pytest.fixture
def tiny(in_process: Call, tmp_path: Path) -> Call:
    """In a folder with examples, new pictures, and a plugin with a small network."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "tiny.py").write_text(PLUGIN)
    bars.make(tmp_path / "examples", {"amber": 4, "blue": 6, "green": 3})
    bars.make(tmp_path / "sorted", {"amber": 2, "blue": 2, "green": 2}, turned=0.2)
    for kind, colour in bars.KINDS.items():
        bars.draw(tmp_path / "new" / f"{kind}.png", colour, 0.3, side=55)
    return in_process


def rows(table: str) -> list[dict[str, str]]:
    return [*csv.DictReader(io.StringIO(table))]


def refused(ended: Ended, message: str) -> None:
    """One line on stderr, beside what says which files and adapters are used."""
    lines = [x for x in ended.err.splitlines() if not x.startswith(("--plugins-dir", "imported "))]
    assert ended.code == 2, ended
    assert not ended.out
    assert len(lines) == 1, ended.err
    assert message in lines[0]


def test_label(tiny: Call, weights: Path, tmp_path: Path):
    files = ["--out", "new.csv", "--html", "new.html"]
    ended = tiny(
        *["label", "--examples", "examples", "--new", "new", *files],
        *["--network", NETWORK, "--weights", weights],
    )
    assert ended.code == 0, ended.err
    assert re.fullmatch(r"3 pictures: 1 \w+, 1 \w+, 1 \w+\n", ended.out)
    found = rows((tmp_path / "new.csv").read_text())
    assert [row["file"] for row in found] == ["amber.png", "blue.png", "green.png"]
    assert [row["predicted"] for row in found] == ["amber", "blue", "green"]
    assert f"network: weights of {weights} (sha256 " in ended.err
    assert re.search(
        r"^adapter \S+ .*: \d\.\d\d of 13 labelled pictures are right if they are left out "
        r"\(95 % interval \d\.\d\d to \d\.\d\d; chance 0\.46\)$",
        ended.err,
        re.MULTILINE,
    )
    assert ended.err.count("also tried: ") == 1
    assert (tmp_path / "new.html").read_text().count("data:image/png") == 3 + 13


def test_predict_without_a_run(tiny: Call):
    ended = tiny(*TINY, "--query", "sorted")
    assert ended.code == 0, ended.err
    assert [row["class"] for row in rows(ended.out)] == [
        row["predicted"] for row in rows(ended.out)
    ]
    assert ended.err.splitlines()[-4:] == [
        "accuracy 1.0000 (6 pictures)",
        "  amber: 1.00 of 2",
        "  blue: 1.00 of 2",
        "  green: 1.00 of 2",
    ]
    assert re.search(r"^--unknown-below 0\.\d\d would leave out 5 % of ", ended.err, re.MULTILINE)


def test_an_adapter_by_name_and_one_picture(tiny: Call):
    ended = tiny(*TINY, "--query", "new/blue.png", "--adapter", "linear-probe")
    assert [(row["file"], row["predicted"]) for row in rows(ended.out)] == [("blue.png", "blue")]
    assert "adapter linear-probe: " in ended.err
    assert "also tried" not in ended.err


def test_kept_and_used_again(tiny: Call):
    first = tiny(*TINY, "--query", "new", "--save", "kept.safetensors")
    again = tiny("predict", "kept.safetensors", "--query", "new")
    assert again.code == 0, again.err
    assert again.out == first.out


def test_unknown_below(tiny: Call, tmp_path: Path):
    plain = tiny(*TINY, "--query", "sorted", "--adapter", "linear-probe")
    sure = sorted(max(float(row[f"p_{kind}"]) for kind in bars.KINDS) for row in rows(plain.out))
    below = (sure[1] + sure[2]) / 2
    told = ["--unknown-below", f"{below:.6f}", "--html", "page.html"]
    ended = tiny(*TINY, "--query", "sorted", "--adapter", "linear-probe", *told)
    assert [row["predicted"] for row in rows(ended.out)].count("unknown") == 2
    assert "accuracy 1.0000 (6 pictures, 2 unknown)" in ended.err
    assert "<th>unknown</th>" in (tmp_path / "page.html").read_text()


def test_a_class_called_unknown(tiny: Call, tmp_path: Path):
    (tmp_path / "examples" / "amber").rename(tmp_path / "examples" / "unknown")
    ended = tiny(*TINY, "--query", "new", "--unknown-below", "0.5")
    assert ended.code == 2
    assert not ended.out
    assert ended.err.splitlines()[-1] == (
        "--unknown-below: there is a class 'unknown'. Another name for it"
    )
    assert tiny(*TINY, "--query", "new").code == 0


def test_a_warning_where_labels_say_nothing(tiny: Call, tmp_path: Path):
    noise = np.random.default_rng(0)
    for kind in ("heads", "tails"):
        (tmp_path / "coins" / kind).mkdir(parents=True)
        for i in range(6):
            pixels = noise.integers(0, 256, (30, 30, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "coins" / kind / f"{i}.png")
    ended = tiny(*TINY[:-1], "coins", "--query", "new")
    assert ended.code == 0
    assert "warning: that may be chance. More or clearer labelled pictures" in ended.err
    assert "would leave out" not in ended.err


def test_one_example_of_each(tiny: Call, tmp_path: Path):
    bars.make(tmp_path / "few", {"amber": 1, "blue": 1})
    ended = tiny(*TINY[:-1], "few", "--query", "new")
    assert ended.code == 0
    assert "each class has one labelled picture, so nothing says how good it is. Two" in ended.err


def test_a_run_of_drawings_and_photographs(tiny: Call, tmp_path: Path):
    recipe = {
        "episodes": {"name": "glyphs", "n_way": 3, "n_shot": 1, "n_query": 1},
        "backbone": {"name": "conv4", "channels": 8, "norm": "group"},
        "adapter": {"name": "nearest-centroid"},
        "outer": {"steps": 0},
        "evaluate": {"episodes": 2},
    }
    core.run(recipe, out=tmp_path / "run", progress=False)
    shades = np.random.default_rng(0).integers(60, 200, (40, 40, 3), np.uint8)
    Image.fromarray(shades).save(tmp_path / "photograph.png")
    given = ["predict", "run", "--support", "examples", "--query"]
    warned = tiny(*given, "photograph.png")
    assert warned.code == 0
    assert (
        "warning: the run learned light strokes on black of 28 x 28 pixels, and these look like "
        "photographs. `fsl predict --backbone resnet18` suits them better" in warned.err
    )
    Image.new("RGB", (40, 40), "black").save(tmp_path / "drawing.png")
    assert "photographs" not in tiny(*given, "drawing.png").err


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (24, 24)])
@pytest.mark.parametrize("mode", ["L", "1", "RGBA"])
def test_grey_and_tiny_pictures_are_predicted(tiny: Call, tmp_path: Path, size, mode):
    Image.new(mode, size, 1).save(tmp_path / "x.png")
    ended = tiny(*TINY, "--query", "x.png", "--adapter", "nearest-centroid")
    assert ended.code == 0, ended.err
    assert len(rows(ended.out)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "out", "--backbone", "conv4"], "out: a run, and --backbone conv4. One of the"),
        (["predict", "--query", "new"], "predict: no RUN and no --backbone. A trained run, or a"),
        (["predict", "out", "--adapter", "x"], "--adapter: belongs to --backbone. Without it"),
        (["predict", "out", "--weights", "x"], "--weights: belongs to --backbone. Without it"),
        (["predict", "--backbone", "x", "--checkpoint", "best"], "--checkpoint: belongs to RUN."),
        (["predict", "--backbone", "tiny", "--query", "new"], "--support: absent. A folder with"),
        (["label", "--examples", "examples"], "--new: absent. A folder of pictures, one picture"),
        (["label", "--new", "new"], "--examples: absent. A folder with one folder of labelled"),
        (
            ["label", "--examples", "examples", "--new", "new", "--network", "resnet81"],
            "--network resnet81: neither a backbone nor a network of torchvision. Did you mean "
            "'resnet18'?",
        ),
        ([*TINY, "--query", "none"], "none: does not exist. A folder of pictures, or one picture"),
        ([*TINY[:-1], "none", "--query", "new"], "none: does not exist. A folder of pictures"),
        ([*TINY[:-1], "new", "--query", "new"], "new: 0 class folders. At least two folders of"),
        ([*TINY, "--query", "new", "--adapter", "linear-prob"], "Did you mean 'linear-probe'?"),
        ([*TINY, "--query", "new", "--adapter", "equal"], "--adapter equal: takes as many"),
        ([*TINY, "--query", "new", "--weights", "w.pth"], "tiny' has no such option."),
        (
            ["predict", "--backbone", "conv4", "--support", "examples", "--query", "new"],
            "frozen: features of an item depend on the items beside it",
        ),
    ],
)
def test_mistakes_are_one_line(tiny: Call, arguments: list[str], message: str):
    refused(tiny(*arguments), message)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("other.pth", r"1 tensors fit neither by name \(no conv1\.0\.weight\) nor by"),
        ("absent.pth", r"absent\.pth"),
        ("text.pth", r"text\.pth: not read \("),
    ],
)
def test_weights_that_do_not_fit_are_one_line(tiny: Call, tmp_path: Path, file: str, message: str):
    torch.save({"stem.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("hello")
    given = ["label", "--examples", "examples", "--new", "new", "--network", NETWORK]
    ended = tiny(*given, "--weights", file)
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert re.search(message, line), line


def test_no_weights_and_no_network_is_one_line(tiny: Call, tmp_path: Path, monkeypatch):
    def unreachable(*_):
        raise core.DataError("download.pytorch.org: no answer")

    monkeypatch.setattr("fsl_core.builtin.torchvision_models.download", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    ended = tiny("label", "--examples", "examples", "--new", "new")
    refused(ended, "weights: resnet18: download.pytorch.org: no answer. Fetch https://download.")
    assert "resnet18-f37072fd.pth and put it at " in ended.err
    (tmp_path / "empty").mkdir()  # the examples are looked at first
    ended = tiny("label", "--examples", "empty", "--new", "new")
    refused(ended, "empty: 0 class folders. At least two folders of pictures")


def test_damaged_examples_are_told_at_once_or_left_out(tiny: Call, tmp_path: Path):
    (tmp_path / "examples" / "amber" / "0.png").write_text("hello")
    (tmp_path / "new" / "blue.png").write_text("hello")
    refused(tiny(*TINY, "--query", "new"), "examples/amber/0.png: not a readable image (")
    ended = tiny(*TINY, "--query", "new", "--skip-unreadable")
    assert ended.code == 0
    assert "of 12 labelled pictures" in ended.err
    assert rows(ended.out)[-1]["note"]
