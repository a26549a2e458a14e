"""Text for people: nothing in a name reaches a terminal or a page as an order."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import pytest

from fsl_core import cli
from fsl_core.cli.tables import print_table
from fsl_core.errors import RunError
from fsl_core.files.spreadsheets import CsvWriter
from fsl_core.text import LONGEST_NAME, name_of, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name-1.png", "plain name-1.png"),
        ("\x1b]0;owned\x07\x1b[2J", r"\x1b]0;owned\x07\x1b[2J"),
        ("back\x08space\rreturn\x00\x7f", r"back\x08space\rreturn\x00\x7f"),
        ("\x9b31mc1", r"\x9b31mc1"),
        ("exe\u202egnp.txt \u2066x\u2069", r"exe\u202egnp.txt \u2066x\u2069"),
        ("one\ntwo\tthree", r"one\ntwo\tthree"),
        ("line\u2028separator", r"line\u2028separator"),
        ("caf\udce9", r"caf\xe9"),
        ("\ud800", r"\ud800"),
        (
            "模型 größe ñ \u0646\u200c\u0647 \u00a0\u3000",
            "模型 größe ñ \u0646\u200c\u0647 \u00a0\u3000",
        ),
    ],
)
def test_what_is_shown_of_a_name(text: str, shown: str):
    assert printable(text) == shown
    assert shown.encode()


def test_lines_stay_where_they_are_meant():
    assert printable("one\n\ttwo\r\x1b", lines=True) == "one\n\ttwo\\r\\x1b"


def test_a_message_obeys_no_name(monkeypatch: pytest.MonkeyPatch, capsys):
    def fail() -> None:
        raise RunError("first \x1b[2J\nsecond \u202e")

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(sys, "argv", ["fsl"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "first \\x1b[2J\nsecond \\u202e\n"


def test_a_table_obeys_no_name(capsys):
    print_table(["name \x1b[1m", "[bold]x"], [["\x1b[31mred", "[/red] \udce9"]])
    told = capsys.readouterr().out
    assert "\x1b" not in told
    for shown in (r"name \x1b[1m", "[bold]x", r"\x1b[31mred", r"[/red] \xe9"):
        assert shown in told


def written(cells: list, raw: bool = False) -> list[str]:
    table = io.StringIO()
    CsvWriter(table, raw).writerow(cells)
    (row,) = csv.reader(io.StringIO(table.getvalue(), newline=""))
    return row


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3+cmd", "'-2+3+cmd"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\t=1", r"\t=1"),
        ("\r=1", r"\r=1"),
        ("＝1", "'＝1"),  # noqa: RUF001
        ("-", "'-"),
        ("-inf", "'-inf"),
        ("cat-1=x", "cat-1=x"),
        ("a\nb,\x1b", r"a\nb,\x1b"),
        ("'quoted'", "'quoted'"),
        ("-3", "-3"),
        ("+0.5", "+0.5"),
        ("-.5e-3", "-.5e-3"),
        (-0.25, "-0.25"),
        (-3, "-3"),
        ("", ""),
        (None, ""),
    ],
)
def test_a_cell_is_no_formula_and_a_number_stays_one(cell, shown: str):
    assert written([cell, "x"]) == [shown, "x"]


def test_raw_cells_are_as_they_were():
    cells = ["=1+1", "\t=1", "a\nb", "-0.5", "caf\xe9"]
    assert written(cells, raw=True) == cells


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("recipes/glyphs/5w1s-maml.yaml", "5w1s-maml"),
        ("a.b.YML", "a.b"),
        ("notes.txt", "notes.txt"),
        ("..yaml", "recipe"),
        (".yaml", "recipe"),
        ("-.yaml", "recipe"),
        (" .yaml", "recipe"),
        ("-rf.yaml", "-rf"),
        ("two words 'quoted'.yaml", "two words 'quoted'"),
        ('a\nb\x1b"c:.yaml', "a_b__c_"),
        ("größe 模型.yaml", "größe 模型"),
    ],
)
def test_a_name_that_a_folder_can_have(file: str, name: str):
    assert name_of(Path(file)) == name


def test_long_names_are_shortened_and_stay_apart():
    names = [name_of(Path(f"{'模' * 80}{end}.yaml")) for end in "ab"]
    assert len({*names}) == 2
    assert all(len(name.encode()) <= LONGEST_NAME for name in names)
    assert all(name.startswith("模" * 30) for name in names)


@pytest.mark.parametrize(
    "command",
    [
        *("run NAME", "check NAME", "sweep NAME", "resume NAME", "eval NAME", "report NAME"),
        *("compare NAME a", "schema --plugins-dir NAME", "predict NAME --query . --support x"),
    ],
)
def test_a_name_too_long_for_a_file(command: str, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fsl", *command.replace("NAME", "a" * 300).split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert len(told.splitlines()) == 1
    assert "too long" in told
