"""The options of pytest that check what is installed: `pytest --fsl-adapter NAME`.

pytest loads this module in every project of an environment, so it imports nothing but pytest until
an option is given.
"""

from __future__ import annotations

from pathlib import Path

import pytest

KINDS = ("adapter", "hypergradient", "weighting", "backbone", "episodes")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fsl", "few-shot learning: the conformance kit over what is installed")
    for kind in KINDS:
        group.addoption(
            f"--fsl-{kind}",
            action="append",
            default=[],
            metavar="NAME",
            help=f"check this {kind}, as in a recipe; with options: 'NAME:{{key: value}}'; "
            "may be given several times",
        )
    group.addoption(
        "--fsl-claims",
        metavar="CLAIMS",
        help="what a test class would state, such as '{random: true}'",
    )
    group.addoption(
        "--fsl-compiled", action="store_true", help="check torch.compile as well; it takes minutes"
    )
    group.addoption(
        "--fsl-report",
        metavar="FILE",
        type=Path,
        help="write the table of properties and results here (Markdown)",
    )


def pytest_configure(config: pytest.Config) -> None:
    named = [(kind, text) for kind in KINDS for text in config.getoption(f"--fsl-{kind}")]
    if named:
        from fsl_core.testing.installed import Conformance

        config.pluginmanager.register(Conformance(config, named), "fsl-conformance")
        return
    options = ", ".join(f"--fsl-{kind}" for kind in KINDS)
    for option in ("--fsl-claims", "--fsl-report"):
        if config.getoption(option):
            raise pytest.UsageError(f"{option}: nothing to check. One of {options} beside it")
