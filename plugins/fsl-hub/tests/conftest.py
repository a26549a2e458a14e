"""A stand-in of the hub's HTTP interface on loopback: as much of it as pushing and fetching ask."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_ada"
READER = "hf_eve"
"""A token that is known, and may not write."""


@dataclass
class StandIn:
    """Repositories by name, each a list of commits: files by path, of which the last is `main`.

    cut: paths of requests whose connection is closed in the middle; they are noted in `seen`.
    """

    repositories: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    objects: dict[str, bytes] = field(default_factory=dict)
    cut: tuple[str, ...] = ()
    seen: list[str] = field(default_factory=list)
    url: str = ""

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        self.repositories.setdefault(name, []).append(files)
        return self.sha(name)

    def sha(self, name: str, number: int = -1) -> str:
        commits = self.repositories[name]
        return f"{(number % len(commits)) + 1 if commits else 0:040x}"

    def files(self, name: str, revision: str = "main") -> dict[str, bytes] | None:
        commits = self.repositories[name]
        if revision == "main":
            return commits[-1] if commits else {}
        found = [i for i in range(len(commits)) if self.sha(name, i) == revision]
        return commits[found[0]] if found else None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandIn

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def answer(self, status: int, content: Any = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def handle_one(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.seen.append(f"{self.command} {path}")
        length = int(self.headers.get("Content-Length") or 0)
        if any(part in path for part in self.hub.cut):
            self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.close()
            return
        body = self.rfile.read(length)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", TOKEN, READER):
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif self.command in ("POST", "PUT") and token != TOKEN and "/lfs/" not in path:
            self.refuse(403, "", "Forbidden: this token may not write")
        else:
            self.route(path.strip("/").split("/"), body, token)

    do_GET = do_HEAD = do_POST = do_PUT = handle_one  # noqa: N815 (as http.server calls it)

    def route(self, parts: list[str], body: bytes, token: str) -> None:
        hub = self.hub
        if parts == ["api", "repos", "create"]:
            told = json.loads(body)
            name = f"{told.get('organization') or 'ada'}/{told['name']}"
            fresh = name not in hub.repositories
            hub.repositories.setdefault(name, [])
            hub.private |= {name} if fresh and told.get("visibility") == "private" else set()
            where = {"url": f"{hub.url}/{name}", "name": name, "id": name}
            self.answer(200 if fresh else 409, where)
        elif parts == ["api", "validate-yaml"]:
            self.answer(200, {"warnings": [], "errors": []})
        elif parts[:1] == ["lfs"]:
            good = hashlib.sha256(body).hexdigest() == parts[1]
            if good:
                hub.objects[parts[1]] = body
            self.answer(200 if good else 400, {})
        elif parts[:2] == ["api", "models"]:
            self.of_repository("/".join(parts[2:4]), parts[4:], body, token)
        else:
            name = "/".join(parts[:2]).removesuffix(".git")
            self.of_repository(name, parts[2:], body, token)

    def of_repository(self, name: str, rest: list[str], body: bytes, token: str) -> None:
        hub = self.hub
        if name not in hub.repositories or (name in hub.private and token != TOKEN):
            self.refuse(401 if not token else 404, "RepoNotFound", "Repository not found")
            return
        if rest[:1] == ["preupload"]:
            files = json.loads(body)["files"]
            self.answer(200, {"files": [self.mode(file["path"]) for file in files]})
        elif rest == ["info", "lfs", "objects", "batch"]:
            wanted = json.loads(body)["objects"]
            objects = [
                {**w, "actions": {"upload": {"href": f"{hub.url}/lfs/{w['oid']}"}}} for w in wanted
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})
        elif rest[:1] == ["commit"]:
            self.answer(200, self.commit(name, body))
        elif rest[:1] == ["resolve"]:
            self.file(name, rest[1], "/".join(rest[2:]))
        else:
            revision = rest[1] if len(rest) > 1 else "main"
            if (files := hub.files(name, revision)) is None:
                self.refuse(404, "RevisionNotFound", "Invalid rev id")
            elif rest[:1] == ["tree"]:
                self.answer(200, [self.entry(*item) for item in files.items()])
            else:
                told = [{"rfilename": path} for path in files]
                of = {"id": name, "sha": hub.sha(name), "private": name in hub.private}
                self.answer(200, {**of, "siblings": told, "tags": []})

    def mode(self, path: str) -> dict[str, Any]:
        large = path.endswith(".safetensors")
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def entry(self, path: str, content: bytes) -> dict[str, Any]:
        oid = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": path, "size": len(content), "oid": oid}

    def commit(self, name: str, body: bytes) -> dict[str, Any]:
        hub = self.hub
        files = dict(hub.files(name) or {})
        for line in body.splitlines():
            told = json.loads(line)
            value = told["value"]
            if told["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif told["key"] == "lfsFile":
                files[value["path"]] = hub.objects[value["oid"]]
            elif told["key"] == "deletedFile":
                del files[value["path"]]
        sha = hub.commit(name, files)
        return {"success": True, "commitUrl": f"{hub.url}/{name}/commit/{sha}", "commitOid": sha}

    def file(self, name: str, revision: str, path: str) -> None:
        files = self.hub.files(name, revision)
        if files is None or path not in files:
            self.refuse(404, "EntryNotFound", "Entry not found")
            return
        tag = hashlib.sha256(files[path]).hexdigest()
        self.answer(200, files[path], ETag=f'"{tag}"', X_Repo_Commit=revision)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A running stand-in, which this process takes for the hub, with the token of a user."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    stand_in = StandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": stand_in}))
    stand_in.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)  # between attempts
    yield stand_in
    server.shutdown()
    thread.join()
    server.server_close()
