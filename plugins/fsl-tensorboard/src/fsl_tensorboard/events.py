"""One event file, written record by record in the calling thread: what is flushed is on disk."""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

FLUSHED_EVERY = 5.0


class EventFile:
    """Scalars, texts, pictures and hyperparameters of one run.

    folder:     where event files of the run are; TensorBoard reads them in order of their names.
    first_step: events of earlier files from this step on are forgotten by TensorBoard.
    """

    def __init__(self, folder: Path, first_step: int):
        # Imported here, so that commands that run nothing need not wait. The package has no types.
        from tensorboardX.event_file_writer import EventsWriter  # type: ignore[import-untyped]
        from tensorboardX.proto import event_pb2, summary_pb2  # type: ignore[import-untyped]

        self._events, self._summaries = event_pb2, summary_pb2
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), filename_suffix=f".{first_step:09d}")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(first_step, session_log=start)
        self.flush()

    def scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        """One record with a value for each of `<group>/<key>`."""
        entry = self._summaries.Summary.Value
        listed = [entry(tag=f"{group}/{k}", simple_value=value) for k, value in values.items()]
        self._write(step, summary=self._summaries.Summary(value=listed))
        if time.monotonic() - self._flushed > FLUSHED_EVERY:
            self.flush()

    def text(self, tag: str, markdown: str, step: int) -> None:
        from tensorboardX.summary import text  # type: ignore[import-untyped]  # it has no types

        self._write(step, summary=text(tag, markdown))

    def picture(self, tag: str, png: bytes, step: int) -> None:
        """A file as it is. Its width and height are the numbers at bytes 16 to 24 of any PNG."""
        width, height = struct.unpack(">II", png[16:24])
        image = self._summaries.Summary.Image(
            encoded_image_string=png, width=width, height=height, colorspace=4
        )
        entry = self._summaries.Summary.Value(tag=tag, image=image)
        self._write(step, summary=self._summaries.Summary(value=[entry]))

    def hyperparameters(
        self, options: dict[str, Any], measured: dict[str, float], step: int
    ) -> None:
        """For the table that compares runs.

        measured: final values of tags that were written as scalars.
        """
        from tensorboardX.summary import hparams

        for summary in hparams(options, measured):
            self._write(step, summary=summary)

    def flush(self) -> None:
        self._writer.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Write what is left. OSError where there is no room for it; the file is closed too."""
        try:
            self._writer.close()
        except OSError:
            # Left open, it would write again when Python collects it, and print what that raises.
            with suppress(OSError):
                self._writer._py_recordio_writer.close()
            raise

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._events.Event(wall_time=time.time(), step=step, **content))
