"""A store: a place apart from this machine where trained runs are kept and fetched from."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class Store:
    """Keeps runs under addresses: `hf:user/name` is `user/name` in the store with the name `hf`.

    Subclasses set `name` and write `fetch` and `push`. Both raise FslError, in one line that says
    what would fit. What is kept is data: a store neither sends nor fetches a program.
    """

    name: ClassVar[str]

    def fetch(self, address: str) -> Path:
        """The folder on this machine with the run at an address, fetched if need be.

        It has the files that `push` was given, and nobody writes to it.
        """
        raise NotImplementedError(
            f"{type(self).__name__}.fetch: not written. A method fetch(self, address) -> Path"
        )

    def push(self, folder: Path, address: str, licence: str, private: bool = False) -> str:
        """Send the run in a folder to an address, all of it or nothing; returns where to see it.

        folder:  recipe, environment, metrics, episodes, result and one checkpoint, no more.
        licence: under which others may use it, such as `mit`.
        private: only its owner may fetch it.
        """
        raise NotImplementedError(
            f"{type(self).__name__}.push: not written. A method "
            "push(self, folder, address, licence, private) -> str"
        )
