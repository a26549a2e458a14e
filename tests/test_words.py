"""Text for people: nothing in a name reaches a terminal or a page as an order."""

from __future__ import annotations

import sys

import pytest

from fsl_core import cli
from fsl_core.cli.catalogue import print_table
from fsl_core.errors import RunError
from fsl_core.words import printable


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
