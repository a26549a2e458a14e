"""A choice is kept once, by whoever is first, and nothing but a whole file is read again."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fsl_core.engine.choice import Choice
from fsl_core.engine.execution import Execution
from fsl_core.engine.kept import ChoiceFile

KEY = {"machine": {"threads": 2}, "components": {"adapter": {"options": {"inner_lr": 0.4}}}}
LOOP = Choice(Execution(), "one task at a time was fastest", {"loop": 1.0, "compiled": None})
VMAP = Choice(Execution("vmap", chunk=3), "all tasks as one batch were fastest", {"vmap": 0.5})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_first_writer_wins():
    assert ChoiceFile(KEY).read() is None
    assert ChoiceFile(KEY).keep(LOOP).choice == LOOP
    assert ChoiceFile(KEY).keep(VMAP).choice == LOOP
    assert ChoiceFile(KEY).read().choice == LOOP


def test_writers_at_once_end_with_one_choice():
    def write(number: int) -> Choice:
        mine = Choice(Execution("vmap", chunk=number), "mine", {})
        return ChoiceFile(KEY).keep(mine).choice

    with ThreadPoolExecutor(8) as pool:
        found = set(map(str, pool.map(write, range(1, 17))))
    assert found == {str(ChoiceFile(KEY).read().choice)}


def test_a_choice_can_be_replaced():
    ChoiceFile(KEY).keep(LOOP)
    assert ChoiceFile(KEY).keep(VMAP, replace=True).choice == VMAP
    assert ChoiceFile(KEY).read().choice == VMAP


def test_another_recipe_or_machine_has_another_file(cache: Path):
    ChoiceFile(KEY).keep(LOOP)
    assert ChoiceFile(KEY | {"machine": {"threads": 1}}).read() is None
    assert ChoiceFile(dict(reversed(KEY.items()))).read().choice == LOOP
    assert len(list((cache / "execution").glob("*.json"))) == 1


def damages() -> dict[str, object]:
    deep = "[" * 100_000
    kept = {**LOOP.as_dict(), "measured_on": "2026-11-25", "settled_for": KEY}
    other = {"settled_for": {"machine": "another"}}
    changes = {
        "other key": other,
        "no mode": {"mode": None},
        "other mode": {"mode": "x"},
        "no workers": {"workers": 0},
        "no date": {"measured_on": "yesterday"},
        "number as date": {"measured_on": 3},
        "no reason": {"reason": 1},
    }
    texts = {"empty": "", "cut": json.dumps(kept)[:-9], "null": "null", "list": "[]", "deep": deep}
    return texts | {name: json.dumps(kept | change) for name, change in changes.items()}


@pytest.mark.parametrize("damage", damages())
def test_a_damaged_file_is_none_and_is_written_again(damage: str):
    file = ChoiceFile(KEY)
    file.keep(VMAP)
    file.path.write_text(damages()[damage])
    assert file.read() is None
    assert file.keep(LOOP).choice == LOOP
    assert file.read().choice == LOOP


def test_what_a_killed_process_left_is_no_obstacle(tmp_path: Path):
    file = ChoiceFile(KEY)
    file.check_writable()
    file.path.with_suffix(".partial").symlink_to(tmp_path / "elsewhere")
    file.keep(LOOP)
    assert file.read().choice == LOOP
    assert not (tmp_path / "elsewhere").exists()


def test_where_nothing_can_be_written_it_is_an_os_error(cache: Path):
    cache.write_text("a file where the folder should be")
    assert ChoiceFile(KEY).read() is None
    for call in (ChoiceFile(KEY).check_writable, lambda: ChoiceFile(KEY).keep(LOOP)):
        with pytest.raises(OSError, match="cache"):
            call()
