"""One process for one run: `python -m fsl_core.sweeping.alone PROGRAM ARGUMENT...`.

For systems on which the server does not fork. The process ends when standard input is closed, so
that it does not outlive the sweep that began it, however that ended.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from importlib import import_module

from fsl_core.sweeping.server import PATIENCE


def main(program_name: str, arguments: list[str]) -> None:
    # The pipe from the sweep moves to a number of its own, and standard input becomes empty: a
    # library that reads standard input must neither wait nor take what says that the sweep ended.
    parent = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    import_module(program_name).run(arguments)


def _end_with(parent: int) -> None:
    """Wait for the end of the sweep. SIGTERM lets the run write a checkpoint first."""
    while os.read(parent, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os._exit(1)  # sys.exit would end this thread alone


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
