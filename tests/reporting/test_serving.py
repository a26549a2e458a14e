"""The page that pictures are dragged into: what it answers, to whom, and how it looks."""

from __future__ import annotations

import http.client
import io
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fsl_core as fsl
from fsl_core.reporting.serving import LARGEST, PictureServer

RECIPE = {
    "episodes": {"name": "glyphs", "n_way": 3, "n_shot": 1, "n_query": 1},
    "backbone": {"name": "conv4", "channels": 8, "norm": "group"},
    "adapter": {"name": "nearest-centroid"},
    "outer": {"steps": 0},
    "evaluate": {"episodes": 2},
}
DROP = """<script nonce="{nonce}">
addEventListener("load", async () => {{
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 28;
  canvas.getContext("2d").fillRect(0, 0, 28, 28);
  const blob = await new Promise(done => canvas.toBlob(done));
  const dropped = new DataTransfer();
  dropped.items.add(new File([blob], "eine Tür.png"));
  dropped.items.add(new File(["nothing"], "broken.png"));
  document.body.dispatchEvent(new DragEvent("drop", {{dataTransfer: dropped, bubbles: true}}));
}});
</script>"""


def bar(angle: float) -> bytes:
    """A PNG of a white bar on black."""
    x, y = np.meshgrid(np.linspace(-1, 1, 40), np.linspace(-1, 1, 30))
    ink = np.abs(x * np.cos(angle) + y * np.sin(angle)) < 0.3
    file = io.BytesIO()
    Image.fromarray((255 * ink).astype(np.uint8)).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> fsl.AdaptedPredictor:
    folder = tmp_path_factory.mktemp("served")
    for c, name in enumerate(["flat", "<b>steep", "upright"]):
        for i in range(2):
            file = folder / "labelled" / name / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(bar(c * 0.8 + 0.02 * i))
    fsl.run(RECIPE, out=folder / "run")
    return fsl.adapt_to_folder(folder / "run", folder / "labelled")


@pytest.fixture
def server(predictor: fsl.AdaptedPredictor) -> Iterator[PictureServer]:
    served = PictureServer(predictor)
    thread = threading.Thread(target=served.serve)
    thread.start()
    yield served
    served.close()
    thread.join(600)


def ask(
    server: PictureServer,
    path: str = "predict",
    body: bytes | None = None,
    **headers: str,
) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(server.host, timeout=600)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("POST" if body is not None else "GET", f"/{server.word}/{path}", body, given)
    return connection.getresponse()


def test_a_picture_is_answered_as_predict_would(server, predictor, tmp_path: Path):
    (tmp_path / "new.png").write_bytes(bar(0.81))
    expected = predictor.probabilities(predictor.read(tmp_path / "new.png").images)[0]
    said = json.loads(ask(server, body=bar(0.81), X_Name='"../a/new.png"').read())
    assert said["name"] == "new.png"
    assert said["predicted"] == "<b>steep"
    assert {name: p for p, name in said["ranked"]} == pytest.approx(
        dict(zip(predictor.classes, expected.tolist(), strict=True))
    )
    assert [name for name, _ in said["nearest"]][:2] == ["<b>steep", "<b>steep"]
    assert said["image"].startswith("data:image/png;base64,")


def test_what_is_no_picture_is_one_line_without_a_path(server):
    said = json.loads(ask(server, body=b"nothing", X_Name='"cup.png"').read())
    assert said["name"] == "cup.png"
    assert said["error"].startswith("cup.png: ")
    assert "/" not in said["error"]
    assert "predicted" not in said


def test_too_large_a_picture_is_not_read(server):
    connection = http.client.HTTPConnection(server.host, timeout=600)
    connection.putrequest("POST", f"/{server.word}/predict")
    connection.putheader("Content-Length", str(LARGEST + 1))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read())["error"] == (
        f"a picture of {LARGEST + 1} bytes. {LARGEST} at most"
    )


@pytest.mark.parametrize("path", ["/", "/predict", "/../", "/x/predict"])
def test_nothing_without_the_word(server, path: str):
    for method in ("GET", "POST"):
        connection = http.client.HTTPConnection(server.host, timeout=600)
        connection.request(method, path, b"" if method == "POST" else None)
        assert connection.getresponse().status == 404


def test_nothing_under_another_name(server):
    """A page elsewhere may point a name of its own at the loopback address."""
    assert ask(server, "", Host="evil.example").status == 404
    assert ask(server, "").status == 200


def test_it_listens_on_the_loopback_address_alone(server):
    assert server.address.startswith("http://127.0.0.1:")


def test_the_page_fetches_nothing_and_shows_names_as_text(server):
    answer = ask(server, "")
    policy, page = answer.headers["Content-Security-Policy"], answer.read().decode()
    assert policy.startswith("default-src 'none'")
    assert "&lt;b&gt;steep" in page
    assert "<b>steep" not in page
    assert not re.findall(r"https?://", page)


def test_pictures_dropped_on_the_page_are_shown_with_their_prediction(server, tmp_path: Path):
    """In Chromium: one picture with a name beyond ASCII, and one file that is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((found for name in names if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no chromium on this machine, so no page was looked at")
    server.page = server.page.replace("</html>", DROP.format(nonce=server.word) + "</html>")
    options = "--headless --no-sandbox --disable-gpu --disable-background-networking --dump-dom"
    # virtual time stands still while an answer is awaited, so a busy machine is no fault
    command = [browser, *options.split(), f"--user-data-dir={tmp_path}"]
    command.append("--virtual-time-budget=5000")
    drawn = subprocess.run(
        [*command, server.address], capture_output=True, text=True, timeout=600, check=True
    ).stdout
    cards = re.search(r'<div id="found".*?<script', drawn, re.DOTALL)
    assert cards, drawn[-500:]
    shown = cards[0]
    assert "eine Tür.png" in shown
    assert shown.count("data:image/png") == 4  # it, and three that are alike
    assert shown.count("<progress") == 3
    assert "not read" in shown
    assert 'class="card failed"' in shown
