"""What a run was trained on: the classes of each split and a digest of their items."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fsl_core.data.folders import PassedOver, counted, nfc
from fsl_core.data.source import EpisodeSource, Split, SplitContents
from fsl_core.errors import DataError
from fsl_core.runs.files import DATA, Record, Whole, is_file, read_json, write_atomically
from fsl_core.text import printable


class _Split(Record):
    digest: str | None
    classes: dict[str, Whole]


class _Data(Record):
    """What data.json holds."""

    splits: dict[str, _Split]


NAMED = 10
"""How many classes a message names; of further ones it says how many there are."""

AS_IT_WAS = "The data as it was, or a new run"


def keep_data_record(
    directory: Path | None,
    source: EpisodeSource,
    splits: Iterable[Split],
    begun: bool,
    further: Mapping[str, EpisodeSource] = {},
) -> list[str]:
    """Write what the splits in use are made of, if training begins and nothing is written yet.

    directory: None if a run keeps nothing.
    begun:     steps have been done.
    further:   other sources that the run is judged on, by label.

    Returns what a user should know about the data.
    """
    contents = _contents(source, splits, further)
    told = counted(passed_over(contents.values()))
    notes = [f"data: passed over: {told}. `fsl check --data` lists them"] if told else []
    if shared := _shared(*(_by_nfc(contents[s]) for s in ("train", "test") if s in contents)):
        notes.append(
            f"data: train and test share {shared} classes. Scores are for new items of classes "
            "that were trained on, not for new classes"
        )
    if directory is not None and not (directory / DATA).is_file():
        if begun:
            notes.append(f"data: no {DATA}, so its data may have changed since training began")
        else:
            write_atomically(directory / DATA, json.dumps(_record(contents), indent=1) + "\n")
    return notes


def refuse_other_data(
    directory: Path,
    source: EpisodeSource,
    splits: Iterable[Split],
    further: Mapping[str, EpisodeSource] = {},
) -> None:
    """Raise DataError, naming what changed, if training began with other data.

    further: as for `keep_data_record`.
    """
    recorded = _read(directory)
    if recorded is not None:
        own = tuple(splits)
        contents = _contents(source, own, further)
        _refuse_trained_on(directory, source, recorded, {split: contents[split] for split in own})
        if changes := _changes(recorded, contents):
            what = f"its data changed since training began: {changes}"
            raise DataError(f"{directory}: {what}. {AS_IT_WAS}")


def data_changes(directory: Path, source: EpisodeSource, split: Split) -> str:
    """How a split differs from what the run began with; empty if it is equal or not known.

    Raises DataError if it now holds classes that the run was trained on.
    """
    recorded = _read(directory)
    if recorded is None:
        return ""
    contents = _contents(source, [split], {})
    _refuse_trained_on(directory, source, recorded, contents)
    return _changes(recorded, contents)


def shared_classes(directory: Path | None) -> int:
    """How many classes of the test split a run was trained on, as it recorded them.

    0 if nothing is recorded.
    """
    recorded = _read(directory) if directory is not None else None
    of_splits = [recorded[s]["classes"] for s in ("train", "test") if recorded and s in recorded]
    return _shared(*of_splits)


def _shared(*classes: Mapping[str, int]) -> int:
    """The number of classes that both of two splits have; 0 of a split alone."""
    return len(set(classes[0]) & set(classes[1])) if len(classes) == 2 else 0


def passed_over(contents: Iterable[SplitContents]) -> list[PassedOver]:
    """What is passed over in some splits; once, even if it lies beside several of them."""
    return list({item.path: item for found in contents for item in found.passed_over}.values())


def _contents(
    source: EpisodeSource, splits: Iterable[Split], further: Mapping[str, EpisodeSource]
) -> dict[str, SplitContents]:
    """What is in use: the splits of the source, and `test on <label>` of further ones."""
    own: dict[str, SplitContents] = {split: source.inspect(split) for split in splits}
    return own | {f"test on {label}": each.inspect("test") for label, each in further.items()}


def _record(contents: Mapping[str, SplitContents]) -> dict[str, Any]:
    splits = {
        split: {"digest": found.digest, "classes": _by_nfc(found)}
        for split, found in contents.items()
    }
    return {"splits": splits, "passed_over": len(passed_over(contents.values()))}


def _read(directory: Path) -> dict[str, dict[str, Any]] | None:
    """What each split was made of; None for a run that does not know."""
    path = directory / DATA
    return read_json(path, _Data)["splits"] if is_file(path) else None


def _refuse_trained_on(
    directory: Path,
    source: EpisodeSource,
    recorded: Mapping[str, Any],
    contents: Mapping[str, SplitContents],
) -> None:
    """Raise DataError if a class of the training split has come into another split since.

    A class that was in both from the start is meant to be there: some sources divide the items of
    a class among the splits.
    """
    trained = set(recorded["train"]["classes"]) if "train" in recorded else set()
    for split, found in contents.items():
        shared = trained & set(_by_nfc(found)) if split != "train" else set()
        if shared and split in recorded:
            shared -= set(recorded[split]["classes"])
        elif shared:
            # The run did not use this split; classes that both splits have now are meant to be.
            shared -= set(_by_nfc(source.inspect("train", digest=False)))
        if shared:
            what = f"split {split!r} now holds {_listed(shared)}, which the run was trained on"
            raise DataError(f"{directory}: {what}. {AS_IT_WAS}")


def _changes(recorded: Mapping[str, Any], contents: Mapping[str, SplitContents]) -> str:
    changed = {
        split: _difference(recorded[split]["classes"], _by_nfc(now))
        for split, now in contents.items()
        if split in recorded and recorded[split]["digest"] != now.digest
    }
    return "; ".join(f"{split} {difference}" for split, difference in changed.items())


def _difference(before: Mapping[str, int], now: Mapping[str, int]) -> str:
    names = {
        "lost": set(before) - set(now),
        "gained": set(now) - set(before),
        "has another number of items in": {
            name for name in set(before) & set(now) if before[name] != now[name]
        },
    }
    parts = [f"{what} {_listed(which)}" for what, which in names.items() if which]
    return ", ".join(parts) or "has other items in the same classes"


def _listed(names: Iterable[str]) -> str:
    ordered = [printable(name) for name in sorted(names)]
    more = f" and {len(ordered) - NAMED} more" if len(ordered) > NAMED else ""
    return f"class{'es' if len(ordered) > 1 else ''} {', '.join(ordered[:NAMED])}{more}"


def _by_nfc(contents: SplitContents) -> dict[str, int]:
    return {nfc(name): count for name, count in contents.classes.items()}
