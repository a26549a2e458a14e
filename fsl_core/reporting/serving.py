"""A page on this machine alone: pictures are dragged in, and what a predictor says is seen."""

from __future__ import annotations

import json
import threading
from functools import cached_property
from http import HTTPStatus
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any

from fsl_core.errors import FslError
from fsl_core.predicting.predictor import AdaptedPredictor
from fsl_core.reporting.loopback import LoopbackServer, Request
from fsl_core.reporting.pages import rendered
from fsl_core.reporting.predictions import Predictions

LARGEST = 64 * 2**20
"""Bytes of one picture that are taken."""


class _Request(Request):
    served: PictureServer

    def get(self) -> None:
        if not self.refused(""):
            self.send_page(self.served.page)

    def post(self) -> None:
        if self.refused("predict"):
            return
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or int(size) > LARGEST:
            told = {"error": f"a picture of {size or 'unknown'} bytes. {LARGEST} at most"}
            self.send_json(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, told)
            return
        content = self.rfile.read(int(size))
        self.send_json(HTTPStatus.OK, self.served.answer(self._name(), content))

    def _name(self) -> str:
        """The file's name, which the page sends as JSON: headers are ASCII alone."""
        try:
            name = json.loads(self.headers.get("X-Name", '""'))
        except ValueError:
            name = ""
        return name if isinstance(name, str) else ""


class PictureServer(LoopbackServer):
    """Answers for one predictor, one picture at a time."""

    request = _Request
    policy = (
        "default-src 'none'; img-src data:; style-src 'nonce-{0}'; script-src 'nonce-{0}'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

    def __init__(self, predictor: AdaptedPredictor, port: int = 0):
        super().__init__(port)
        self.predictor, self._one_at_a_time = predictor, threading.Lock()

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
