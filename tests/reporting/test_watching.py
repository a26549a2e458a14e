"""`fsl watch`: what its page is told of runs, from files alone, while they are written."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsl_core.errors import RunError
from fsl_core.reporting import following
from fsl_core.reporting.following import POINTS, Curve, Following
from fsl_core.reporting.watching import WatchServer
from fsl_core.runs import run as runs

WRITTEN = 6
"""Lines of the metrics of a run that trains."""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept") / "out"


@pytest.fixture
def trained(kept: Path, call, tmp_path: Path) -> Path:
    """A copy of a run that is trained once."""
    if not kept.is_dir():
        assert call("run", "toy.yaml", "--out", kept).code == 0
    return Path(shutil.copytree(kept, tmp_path / "out"))


@pytest.fixture
def begun(trained: Path) -> Path:
    """A run as it is while it trains, with the last line half written."""
    (trained / "result.json").unlink()
    path = trained / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:WRITTEN]) + lines[WRITTEN][:9])
    return trained


def records(directory: Path) -> list[dict]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[:WRITTEN]]


def only(folder: Path) -> dict:
    (row,) = Following(folder).told()["runs"]
    return row


def test_a_run_that_trains(begun: Path):
    followed = Following(begun)
    told = followed.told()
    (row,) = told["runs"]
    assert (row["name"], row["state"], row["steps"]) == ("out", "running", 12)
    assert row["step"] == records(begun)[-1]["step"]
    assert 0 < row["left"] < 60
    assert (told["told"], told["ended"], told["shown"]) == ("1 running", False, [0])
    loss, accuracy = told["charts"]
    steps = [record for record in records(begun) if "split" not in record]
    assert loss["lines"][0]["points"] == [(r["step"], r["loss"]) for r in steps]
    assert accuracy["lines"][0]["points"] == [(r["step"], r["accuracy"]) for r in steps]


def test_what_is_written_later_is_added(begun: Path):
    followed = Following(begun)
    with (begun / "metrics.jsonl").open("r+") as file:
        text = file.read()
        file.seek(text.rindex("\n") + 1)
        file.write('{"step": 7, "loss": 0.5, "accuracy": 0.75, "seconds": 0.1}\n')
        file.write('{"step": 7, "split": "validation", "accuracy": 0.5, "interval": 0.1}\n')
        file.write('{"step": 8, "loss": NaN, "accuracy": 1.0, "seconds": 0.1}\n{"step"')
        file.truncate()
    followed.look()
    told = followed.told()
    (row,) = told["runs"]
    best = max(r["accuracy"] for r in [*records(begun), {"accuracy": 0.5}] if "loss" not in r)
    assert (row["step"], row["loss"], row["best"]) == (8, 0.5, best)
    assert told["charts"][1]["points"][0]["points"][-1] == (7, 0.5, 0.1)
    json.dumps(told, allow_nan=False)


def test_a_resume_that_goes_back(begun: Path):
    followed = Following(begun)
    lines = (begun / "metrics.jsonl").read_text().splitlines(keepends=True)
    (begun / "new").write_text("".join(lines[:3]))
    (begun / "new").rename(begun / "metrics.jsonl")
    followed.look()
    assert followed.told()["runs"][0]["step"] == records(begun)[2]["step"]


def test_a_run_that_has_ended(trained: Path):
    told = Following(trained).told()
    (row,) = told["runs"]
    assert row["state"] == "finished"
    assert row["detail"].startswith("test accuracy 0.")
    assert told["ended"]


def test_a_run_that_is_silent(begun: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(following, "SILENCE", -1)
    row = only(begun)
    assert (row["state"], row["left"]) == ("stopped", None)
    assert row["detail"].startswith("nothing written for ")


def test_a_damaged_result(trained: Path):
    (trained / "result.json").write_text("{")
    row = only(trained)
    assert row["state"] == "unreadable"
    assert "result.json: not JSON" in row["detail"]


def test_a_folder_of_runs_and_sweeps(call, trained: Path, tmp_path: Path):
    folder = tmp_path / "all"
    assert (
        call("sweep", "toy.yaml", "-s", "matrix={seed: [0, 1]}", "--prepare", "--out", "all/s").code
        == 0
    )
    shutil.copytree(trained, folder / "one")
    (folder / "one" / "failed.txt").write_text("it\nexploded")
    (folder / "notes").mkdir()
    rows = Following(folder).told()["runs"]
    assert [(row["name"], row["state"]) for row in rows] == [
        ("one", "finished"),
        ("s / seed-0", "waiting"),
        ("s / seed-1", "waiting"),
    ]
    (folder / "one" / "result.json").unlink()
    assert Following(folder).told()["runs"][0]["detail"] == "it exploded"


def test_curves_are_thinned_to_means():
    curve = Curve()
    for step in range(1, 10_001):
        curve.add(step, float(step))
    points = curve.points()
    assert POINTS <= len(points) <= 2 * POINTS
    assert points[-1][0] == 10_000
    assert points[0] == (curve.size, (1 + curve.size) / 2)
    weights = [count for _, count, _ in curve.bins]
    assert sum(weights) == 10_000


def test_nothing_is_written(begun: Path):
    def state() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in sorted(begun.rglob("*"))}

    before = state()
    followed = Following(begun)
    followed.look()
    followed.told()
    assert state() == before


@pytest.mark.parametrize(
    ("name", "found"), [("absent", "no such folder"), ("empty", "no runs here")]
)
def test_a_folder_without_runs(tmp_path: Path, name: str, found: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError) as caught:
        Following(tmp_path / name)
    told = f"{tmp_path / name}: {found}. A run, a sweep, a search, or a folder of runs"
    assert str(caught.value) == told


@pytest.fixture
def server(begun: Path) -> Iterator[WatchServer]:
    strange = begun.rename(begun.with_name("<b onclick=alert(1)>"))
    served = WatchServer(strange.parent)
    thread = threading.Thread(target=served.serve)
    thread.start()
    yield served
    served.close()
    thread.join()


def fetched(server: WatchServer, path: str, host: str | None = None) -> tuple[int, str, dict]:
    connection = http.client.HTTPConnection(server.host)
    connection.request("GET", path, headers={"Host": host or server.host})
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), dict(answer.getheaders())


def test_the_page_and_its_data(server: WatchServer):
    status, page, headers = fetched(server, f"/{server.word}/")
    assert status == 200
    assert f'<script nonce="{server.word}">' in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "onclick" not in page
    status, data, headers = fetched(server, f"/{server.word}/data")
    (row,) = json.loads(data)["runs"]
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert row["name"] == "<b onclick=alert(1)>"  # the page shows it as a text
    none = json.loads(fetched(server, f"/{server.word}/data?runs=")[1])
    assert none["shown"] == []
    some = json.loads(fetched(server, f"/{server.word}/data?runs=0,7,x")[1])
    assert some["shown"] == [0]


@pytest.mark.parametrize("path", ["/", "/data", "/{0}/report.html", "/{0}/../data", "/{0}x/"])
def test_other_addresses_are_refused(server: WatchServer, path: str):
    assert fetched(server, path.format(server.word))[0] == 404


def test_other_hosts_are_refused(server: WatchServer):
    assert fetched(server, f"/{server.word}/", host="example.org")[0] == 404
    assert server.host.startswith("127.0.0.1:")


def test_a_port_in_use(trained: Path, call):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = call("watch", trained, "--port", port)
    told = f"--port {port}: address already in use. Another port, or without --port a free one\n"
    assert ended == (2, "", told)


def test_a_folder_without_runs_on_the_command_line(call):
    told = "absent: no such folder. A run, a sweep, a search, or a folder of runs\n"
    assert call("watch", "absent") == (2, "", told)


def test_a_slow_run_is_seen(call, monkeypatch: pytest.MonkeyPatch):
    """Metrics are written after seconds, not only after a hundred steps."""
    monkeypatch.setattr(runs, "WRITTEN_EVERY", 0)
    seen = []
    write = runs.Run.flush_metrics
    monkeypatch.setattr(runs.Run, "flush_metrics", lambda run: seen.append(run.step) or write(run))
    assert call("run", "toy.yaml", "-s", "outer.validate_every=0").code == 0
    assert len(seen) >= 12


ALSO_IN_THE_BACKGROUND = """
import signal
from fsl_core.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
main()
"""


def test_ctrl_c_ends_it_well(trained: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", ALSO_IN_THE_BACKGROUND, "watch", trained],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    assert line.startswith("open http://127.0.0.1:")
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    printed, told = process.communicate(timeout=60)
    assert (process.returncode, printed, told) == (0, "", "ended\n")
