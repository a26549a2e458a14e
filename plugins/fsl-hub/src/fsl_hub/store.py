"""Runs as model repositories of the Hugging Face Hub, or of a server that speaks like it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import fsl_core as fsl

if TYPE_CHECKING:
    from huggingface_hub import HfApi

FILES = (
    "recipe.yaml",
    "environment.json",
    "metrics.jsonl",
    "episodes.csv",
    "result.json",
    "checkpoints/best.safetensors",
    "checkpoints/last.safetensors",
)
"""All that is pushed beside the card, and all that is fetched: data."""


class Hub(fsl.Store):
    """The Hugging Face Hub. An address is `user/name`, or `user/name@revision` to fetch.

    HF_TOKEN, or `hf auth login`, says who you are; HF_ENDPOINT names another server.
    """

    name = "hf"

    def fetch(self, address: str) -> Path:
        repository, _, revision = address.partition("@")
        with _told(f"hf:{address}", "A run that `fsl push` sent, and that you may read"):
            found = _api().snapshot_download(
                repository, revision=revision or None, allow_patterns=[*FILES]
            )
        folder = Path(found)
        if not (folder / "recipe.yaml").is_file():
            raise fsl.RunError(
                f"hf:{address}: no run there (recipe.yaml is absent). A run that `fsl push` sent"
            )
        return folder

    def push(self, folder: Path, address: str, licence: str, private: bool = False) -> str:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, get_token

        from fsl_hub.card import card

        where = f"hf:{address}"
        if get_token() is None:
            raise fsl.RunError(f"{where}: no token. {_WHO}")
        api, names = _api(), [name for name in FILES if (folder / name).is_file()]
        text = card(folder, address, licence).encode()
        added = [CommitOperationAdd(name, folder / name) for name in names]
        added.append(CommitOperationAdd("README.md", text))
        with _told(where, _WHO):
            api.create_repo(address, private=private or None, exist_ok=True)
            public = private and not api.model_info(address).private
        if public:
            raise fsl.RunError(f"{where}: is there and public. A new name, or without --private")
        with _told(f"{where}: the upload did not end, and nothing of it is visible", _AGAIN):
            stale = set(FILES).difference(names).intersection(api.list_repo_files(address))
            gone = [CommitOperationDelete(name) for name in stale]
            told = f"Run of fsl-core: {folder.name}"
            api.create_commit(address, [*added, *gone], commit_message=told)
        return f"{api.endpoint}/{address}"


_WHO = "HF_TOKEN with a token that may write, or `hf auth login`"
_AGAIN = "The same command sends it again"


def _api() -> HfApi:
    """Imported here, so that commands that fetch nothing need not wait."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()
    return HfApi(os.environ.get("HF_ENDPOINT"), library_name="fsl-core")


@contextmanager
def _told(where: str, fitting: str) -> Iterator[None]:
    """Within this context, whatever goes wrong on the hub or on the way is told in one line."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise fsl.RunError(f"{where}: {_meaning(status, error)}. {fitting}") from error
    except errors.LocalEntryNotFoundError as error:
        cause = error.__cause__ or error
        raise fsl.RunError(
            f"{where}: the hub cannot be reached ({_line(cause)}), and no copy is on this "
            "machine. A connection, or HF_ENDPOINT"
        ) from error
    except (errors.HTTPError, OSError, RuntimeError) as error:  # RuntimeError: of large files
        cause = error.__cause__ or error
        raise fsl.RunError(f"{where}: the connection broke ({_line(cause)}). {fitting}") from error
    except ValueError as error:
        raise fsl.RunError(f"{where}: {_line(error)}. An address such as user/name") from error


def _meaning(status: int, error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision"
    return {
        401: "the hub does not know this token, or there is no such repository (401)",
        403: "the hub does not allow it to this token (403)",
        404: "no such repository (404)",
    }.get(status, f"the hub answers {status} ({_line(error)})")


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(".")
