"""An adapted predictor as a program of torch.export or of ONNX."""

from __future__ import annotations

import io
import warnings
from importlib.util import find_spec
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

SUFFIXES = (".pt2", ".onnx")
"""Of files that hold a program: of torch.export, and of ONNX."""

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""What torch's exporter needs, and what runs the file to compare it."""

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
    if path.suffix not in SUFFIXES:
        found = path.suffix or "nothing"
        raise RunError(f"{path}: ends in {found}. .pt2 for torch.export, or .onnx")
    refuse_name(path)
    absent = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if path.suffix == ".onnx" and absent:
        raise RunError(
            f"{path}: {', '.join(absent)} not installed. pip install 'fsl-core[onnx]', or .pt2"
        )
    if learner.adapter.transductive:
        raise RunError(
            f"{_where(path, learner)} adapts to the pictures it predicts. {SAVE_INSTEAD}"
        )


def write_program(path: Path, module: Probabilities, x: Tensor, count: int) -> float:
    """Export a module and compare; the largest difference of probabilities.

    x: pictures of values 0 .. 1, two at least: torch.export takes one row to mean one row always.
    count: pictures of x to compare on.
    Raises RunError if torch refuses or the difference exceeds the tolerance.
    """
    where = _where(path, module.learner)
    written = _as_onnx if path.suffix == ".onnx" else _as_pt2
    with torch.no_grad(), warnings.catch_warnings():
        if module.learner.takes_gradients:  # torch.export warns that it detaches its graph
            warnings.simplefilter("ignore")
        try:
            any_number = torch.export.Dim("n", min=1)
            program = torch.export.export(
                module, (x,), dynamic_shapes=({0: any_number},), strict=False
            )
            content, run = written(program)
            difference = float((run(x[:count]) - module(x[:count])).abs().max())
        except Exception as error:  # the exporters fail in many ways
            reason = " ".join(str(error).split())[:200]
            raise RunError(f"{where} cannot be exported ({reason}). {SAVE_INSTEAD}") from error
    if not difference <= TOLERANCE:  # nan as well
        raise RunError(
            f"{where}: the exported probabilities differ by {difference:.1e}. {SAVE_INSTEAD}"
        )
    with writing(path):
        write_file(path, content)
    return difference


def _as_pt2(program: torch.export.ExportedProgram) -> tuple[bytes, Predictor]:
    """The content of a file, and what it computes.

    Into memory first: torch.export names no reason when there is no room on a disk.
    """
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that lie in memory in another order
        torch.export.save(program, content)
    return content.getvalue(), program.module()


def _as_onnx(program: torch.export.ExportedProgram) -> tuple[bytes, Predictor]:
    """The same in ONNX, run by onnxruntime: input `pictures`, output `probabilities`."""
    import onnxruntime  # type: ignore[import-untyped]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch's exporter says of torch's own functions
        converted = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=["pictures"],
            output_names=["probabilities"],
        )
    assert converted is not None  # it is, without a file
    content = converted.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> Tensor:
        (found,) = session.run(["probabilities"], {"pictures": x.cpu().numpy()})
        return torch.from_numpy(found).to(x.device)

    return content, run


def _where(path: Path, learner: Learner) -> str:
    return f"{path}: adapter {learner.adapter.name!r}"
