"""A page on this machine alone: pictures are dragged in, and what a predictor says is seen."""

from __future__ import annotations

import json
import secrets
import threading
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any

from fsl_core.errors import FslError
from fsl_core.predicting.predictor import AdaptedPredictor
from fsl_core.reporting.pages import rendered
from fsl_core.reporting.predictions import Predictions

LOOPBACK = "127.0.0.1"
LARGEST = 64 * 2**20
"""Bytes of one picture that are taken."""

_POLICY = "default-src 'none'; img-src data:; style-src 'nonce-{0}'; script-src 'nonce-{0}'; "
_POLICY += "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class PictureServer:
    """Answers for one predictor on the loopback address, one picture at a time.

    The address holds a random word, so no other page and no other user can guess it, and requests
    that name another host are refused: a foreign page cannot reach it under a name of its own.

    port: 0 takes a free one.
    Raises OSError if the port is taken.
    """

    def __init__(self, predictor: AdaptedPredictor, port: int = 0):
        self.predictor, self.word = predictor, secrets.token_urlsafe(16)
        self._one_at_a_time = threading.Lock()
        self._server = ThreadingHTTPServer((LOOPBACK, port), _handler(self))
        self._server.daemon_threads = True

    @property
    def host(self) -> str:
        return f"{LOOPBACK}:{self._server.server_port}"

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{self.host}/{self.word}/"

    def serve(self) -> None:
        """Answer until `close` is called, or an exception such as Ctrl-C arrives."""
        try:
            self._server.serve_forever()
        finally:
            self._server.server_close()

    def close(self) -> None:
        self._server.shutdown()

    @cached_property
    def page(self) -> str:
        """The page, with its own address as the word that its script and style are known by."""
        return rendered("serve.html", predictor=self.predictor, nonce=self.word, largest=LARGEST)

    def answer(self, name: str, content: bytes) -> dict[str, Any]:
        """What the predictor says of one picture file, or `error`: why it cannot be read."""
        name = PurePath(name.replace("\\", "/")).name or "picture"
        suffix = PurePath(name).suffix.lower()
        with TemporaryDirectory() as folder, self._one_at_a_time:
            file = Path(folder) / f"picture{suffix if suffix[1:].isalnum() else ''}"
            file.write_bytes(content)
            try:
                pictures = self.predictor.read(folder)
                probabilities = self.predictor.probabilities(pictures.images)
            except FslError as error:
                told = str(error).replace(str(file), name).replace(folder, name)
                return {"name": name, "error": told}
            predictions = Predictions(self.predictor, pictures, probabilities)
            (row,), labelled = predictions.rows, predictions.labelled
        return {**row, "name": name, "nearest": [labelled[j] for j in row["nearest"]]}


def _handler(served: PictureServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self._refused(f"/{served.word}/"):
                return
            self._send(HTTPStatus.OK, served.page.encode(), "text/html; charset=utf-8")

        def do_POST(self) -> None:
            if self._refused(f"/{served.word}/predict"):
                return
            size = self.headers.get("Content-Length", "")
            if not size.isdecimal() or int(size) > LARGEST:
                told = {"error": f"a picture of {size or 'unknown'} bytes. {LARGEST} at most"}
                self._send_json(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, told)
                return
            content = self.rfile.read(int(size))
            self._send_json(HTTPStatus.OK, served.answer(self._name(), content))

        def _name(self) -> str:
            """The file's name, which the page sends as JSON: headers are ASCII alone."""
            try:
                name = json.loads(self.headers.get("X-Name", '""'))
            except ValueError:
                name = ""
            return name if isinstance(name, str) else ""

        def _refused(self, path: str) -> bool:
            """Whether the request is for another path or host; it is answered then."""
            if self.path == path and self.headers.get("Host") == served.host:
                return False
            self._send(HTTPStatus.NOT_FOUND, b"not here", "text/plain")
            return True

        def _send_json(self, status: HTTPStatus, data: dict[str, Any]) -> None:
            self._send(status, json.dumps(data).encode(), "application/json")

        def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
            self.send_response(status)
            headers = {
                "Content-Type": kind,
                "Content-Length": str(len(content)),
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
                "Content-Security-Policy": _POLICY.format(served.word),
            }
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the page shows what happened."""

    return Handler
