"""An adapted predictor as a program of torch.export."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from fsl_core.episode import Predictor
from fsl_core.errors import RunError
from fsl_core.files.writing import write_file
from fsl_core.learner import Learner
from fsl_core.runs.files import refuse_name, writing

TOLERANCE = 1e-4
"""Largest difference of probabilities between the program and the predictor."""

SAVE_INSTEAD = "--save, which keeps the labelled pictures and adapts again"


class Probabilities(nn.Module):
    """What is exported: pictures of values 0 .. 1 in, probabilities of the classes out."""

    def __init__(self, learner: Learner, predict: Predictor):
        super().__init__()
        self.learner, self.predict = learner, predict

    def forward(self, x: Tensor) -> Tensor:
        return self.predict(x).softmax(-1)


def check_exportable(path: Path, learner: Learner) -> None:
    """Raise RunError if no program can be made, whatever torch.export says."""
    if path.suffix != ".pt2":
        raise RunError(f"{path}: ends in {path.suffix or 'nothing'}. torch.export writes .pt2")
    refuse_name(path)
    if learner.adapter.transductive:
        raise RunError(
            f"{_where(path, learner)} adapts to the pictures it predicts. {SAVE_INSTEAD}"
        )


def write_program(path: Path, module: Probabilities, x: Tensor, count: int) -> float:
    """Export a module and compare; the largest difference of probabilities.

    x: pictures of values 0 .. 1, two at least: torch.export takes one row to mean one row always.
    count: pictures of x to compare on.
    Raises RunError if torch.export refuses or the difference exceeds the tolerance.
    """
    where = _where(path, module.learner)
    with torch.no_grad(), warnings.catch_warnings():
        if module.learner.takes_gradients:  # torch.export warns that it detaches its graph
            warnings.simplefilter("ignore")
        try:
            any_number = torch.export.Dim("n", min=1)
            program = torch.export.export(
                module, (x,), dynamic_shapes=({0: any_number},), strict=False
            )
            exported, expected = program.module()(x[:count]), module(x[:count])
            difference = float((exported - expected).abs().max())
        except Exception as error:  # torch.export fails in many ways
            reason = " ".join(str(error).split())[:200]
            raise RunError(f"{where} cannot be exported ({reason}). {SAVE_INSTEAD}") from error
    if not difference <= TOLERANCE:  # nan as well
        raise RunError(
            f"{where}: the exported probabilities differ by {difference:.1e}. {SAVE_INSTEAD}"
        )
    # Into memory first: torch.export names no reason when there is no room on a disk.
    content = io.BytesIO()
    torch.export.save(program, content)
    with writing(path):
        write_file(path, content.getvalue())
    return difference


def _where(path: Path, learner: Learner) -> str:
    return f"{path}: adapter {learner.adapter.name!r}"
