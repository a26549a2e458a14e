"""`fsl plugins --available`, against a package index on loopback."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fsl_core.cli import available
from fsl_core.cli.available import Available, Index, find_available, index_of_pip
from fsl_core.errors import PluginError

PACKAGES = {
    "fsl-core": ("fsl-plugin", "1.0", "core itself"),
    "FSL_Spread": ("meta-learning, fsl-plugin", "0.2", "an adapter\x1b[2J"),
    "fsl-mri": ("fsl brain", "9.1", "something else of this prefix"),
    "fsl-none": (None, "1", None),
    "fsl-gone": None,
    "other": ("fsl-plugin", "1", "another prefix"),
}


class Stand(BaseHTTPRequestHandler):
    """An index: the list of names, and the JSON of each package."""

    seen: list[tuple[str, str]]
    listing = json.dumps({"projects": [{"name": name} for name in PACKAGES]})

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization", "")))
        if self.path == "/simple/":
            assert self.headers["Accept"] == available.JSON
            self.answer(200, self.listing)
            return
        name = self.path.removeprefix("/pypi/").removesuffix("/json")
        told = {available._normal(n): info for n, info in PACKAGES.items()}[name]
        if told is None:
            self.answer(404, "gone")
            return
        keywords, version, summary = told
        info = {"keywords": keywords, "version": version, "summary": summary}
        self.answer(200, json.dumps({"info": info}))

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Stand]]:
    handler = type("Handler", (Stand,), {"seen": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        handler.address = f"127.0.0.1:{server.server_port}"
        monkeypatch.setenv("PIP_INDEX_URL", f"http://{handler.address}/simple/")
        yield handler
        server.shutdown()
        thread.join()


def test_packages_with_the_keyword_are_found(stand: type[Stand]):
    found, silent = find_available()
    assert found == [Available("fsl-spread", "0.2", "an adapter\\x1b[2J", "")]
    assert silent == ["fsl-gone"]
    asked = {path for path, _ in stand.seen}
    assert asked == {
        "/simple/",
        *(f"/pypi/fsl-{name}/json" for name in ("spread", "mri", "none", "gone")),
    }


@pytest.mark.usefixtures("stand")
def test_the_command(in_process):
    ended = in_process("plugins", "--available")
    assert ended.code == 0
    assert ended.err == "note: the index says nothing of fsl-gone\n"
    heading, row = ended.out.splitlines()
    assert heading.split() == ["package", "version", "installed", "what"]
    assert row.split()[:3] == ["fsl-spread", "0.2", "-"]
    (told,) = json.loads(in_process("plugins", "--available", "--json").out)
    assert (told["name"], told["version"], told["installed"]) == ("fsl-spread", "0.2", "")


def test_a_password_is_sent_and_not_shown(stand: type[Stand], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:pa%40ss@{stand.address}/simple")
    find_available()
    assert {sent for _, sent in stand.seen} == {"Basic bWU6cGFAc3M="}
    stand.listing = "<html>"
    with pytest.raises(PluginError) as caught:
        find_available()
    assert "pa" not in str(caught.value).replace("package", "")


@pytest.mark.parametrize(
    ("listing", "reason"),
    [
        ("<html>", "no JSON"),
        ("[]", "not a list of projects"),
        ("{}", "not a list of projects"),
        ('{"projects": [{}]}', "not a list of projects"),
    ],
)
def test_an_index_that_speaks_otherwise(stand: type[Stand], listing: str, reason: str):
    stand.listing = listing
    with pytest.raises(PluginError) as caught:
        find_available()
    assert str(caught.value) == (
        f"--available: http://{stand.address}/simple: {reason}. A network connection, or an index "
        "that speaks JSON, with PIP_INDEX_URL"
    )


def test_an_answer_has_bounds(stand: type[Stand], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(available, "LARGEST", 10)
    with pytest.raises(PluginError, match=r"simple: more than 0 MB\."):
        find_available()
    monkeypatch.setattr(available, "LARGEST", 10**6)
    monkeypatch.setattr(available, "AT_MOST", -1)
    with pytest.raises(PluginError, match=r"simple: not read within -1 s\."):
        find_available()


def test_without_a_network_it_is_one_line(in_process, monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    ended = in_process("plugins", "--available")
    assert (ended.code, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert line.startswith(f"--available: http://127.0.0.1:{port}/simple: ")
    assert line.endswith("A network connection, or an index that speaks JSON, with PIP_INDEX_URL")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "simple", "https://"])
def test_addresses_that_are_none(url: str):
    with pytest.raises(PluginError, match=r"--available: index .*\. An address with https://"):
        Index.of(url)


def test_the_index_of_pip(monkeypatch: pytest.MonkeyPatch, tmp_path):
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nindex-url = https://index.example/simple\n")
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    assert index_of_pip() == "https://index.example/simple"
    monkeypatch.setattr(available.sys, "executable", str(tmp_path / "absent"))
    assert index_of_pip() == available.BY_DEFAULT
