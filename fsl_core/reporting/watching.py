"""A page on this machine alone that shows how runs go."""

from __future__ import annotations

import threading
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from fsl_core.reporting.following import Following
from fsl_core.reporting.loopback import LoopbackServer, Request
from fsl_core.reporting.pages import rendered

REFRESHED_EVERY = 2
"""Seconds between two looks of the page."""


class _Request(Request):
    served: WatchServer

    def get(self) -> None:
        path, _, query = self.path.partition("?")
        if path.endswith("/data"):
            if not self.refused("data"):
                self.send_json(HTTPStatus.OK, self.served.told(query))
        elif not self.refused(""):
            self.send_page(self.served.page)


class WatchServer(LoopbackServer):
    """Shows a run, or the runs of a folder, to this machine.

    port: 0 takes a free one.
    Raises RunError if the folder holds no run, or the port cannot be had.
    """

    request = _Request
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'nonce-{0}'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

    def __init__(self, folder: Path, port: int = 0):
        self._following, self._one_at_a_time = Following(folder), threading.Lock()
        super().__init__(port)

    @property
    def page(self) -> str:
        return rendered(
            "watch.html",
            title=self._following.title,
            nonce=self.word,
            seconds=REFRESHED_EVERY,
        )

    def told(self, query: str) -> dict[str, Any]:
        """What is new. query: `runs=0,2` asks for the curves of these; else the page is offered
        those that run."""
        asked = parse_qs(query, keep_blank_values=True).get("runs")
        with self._one_at_a_time:
            self._following.look()
            if asked is None:
                return self._following.told()
            return self._following.told([int(n) for n in asked[-1].split(",") if n.isdecimal()])
