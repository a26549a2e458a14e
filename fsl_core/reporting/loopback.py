"""Pages that this machine alone can see: one server on the loopback address for each."""

from __future__ import annotations

import json
import secrets
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from fsl_core.errors import RunError

LOOPBACK = "127.0.0.1"


class LoopbackServer:
    """Answers on the loopback address.

    The address holds a random word, so no other page and no other user can guess it, and requests
    that name another host are refused: a foreign page cannot reach it under a name of its own.

    port: 0 takes a free one.
    Raises RunError if the port is taken or needs a permission.
    """

    request: ClassVar[type[Request]]
    """How requests are answered."""
    policy: ClassVar[str]
    """The Content-Security-Policy of its page; {0} is the word."""

    def __init__(self, port: int = 0):
        self.word = secrets.token_urlsafe(16)
        handler = type("Handler", (self.request,), {"served": self})
        try:
            self._server = ThreadingHTTPServer((LOOPBACK, port), handler)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise RunError(
                f"--port {port}: {reason}. Another port, or without --port a free one"
            ) from error
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
            self._server.serve_forever(poll_interval=0.05)  # `close` waits for no longer
        finally:
            self._server.server_close()

    def close(self) -> None:
        self._server.shutdown()


class Request(BaseHTTPRequestHandler):
    """A request to a loopback server, which is `served`."""

    served: Any

    def do_GET(self) -> None:
        self.get()

    def do_POST(self) -> None:
        self.post()

    def get(self) -> None:
        self.refused(None)

    def post(self) -> None:
        self.refused(None)

    def refused(self, path: str | None) -> bool:
        """Whether the request is for another path or host; it is answered then.

        path: after the word; None: there is nothing to be had.
        """
        asked = self.path.partition("?")[0]
        wanted = f"/{self.served.word}/{path}"
        if path is not None and asked == wanted and self.headers.get("Host") == self.served.host:
            return False
        self.send(HTTPStatus.NOT_FOUND, b"not here", "text/plain")
        return True

    def send_page(self, text: str) -> None:
        self.send(HTTPStatus.OK, text.encode(), "text/html; charset=utf-8")

    def send_json(self, status: HTTPStatus, data: dict[str, Any]) -> None:
        self.send(status, json.dumps(data).encode(), "application/json")

    def send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Content-Security-Policy": self.served.policy.format(self.served.word),
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the page shows what happened."""
