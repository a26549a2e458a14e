"""Files that a command is to write: checked before its work, so that no work is lost."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fsl_core.errors import RunError


@dataclass(frozen=True)
class Output:
    """A file named by an option.

    endings: that its name may have; the first is advised, and "" stands for none.
    content: what is written, for messages.
    """

    option: str
    path: Path
    endings: tuple[str, ...]
    content: str

    def make_folder(self) -> None:
        """Make the folder that the file goes to."""
        from fsl_core.runs.files import writing

        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)


def table(option: str, path: Path) -> Output:
    return Output(option, path, (".csv", ".txt", ""), "A table in CSV")


def latex(option: str, path: Path) -> Output:
    return Output(option, path, (".tex", ".txt", ""), "A table in LaTeX")


def page(option: str, path: Path) -> Output:
    return Output(option, path, (".html", ".htm", ""), "A page in HTML")


def check_outputs(outputs: Sequence[Output], inputs: Iterable[Path] = ()) -> None:
    """Raise RunError with a line for each file that cannot be written, or must not be.

    inputs: files, run directories and folders of pictures that the command reads.
    """
    faults = [fault for output in outputs for fault in _faults(output, list(inputs))]
    for output in outputs:
        real = output.path.resolve()
        same = [o for o in outputs if o is not output and o.path.resolve() == real]
        faults += [f"{output.option} {output.path}: {o.option} too. Two files" for o in same[:1]]
    if faults:
        raise RunError("\n".join(faults))


def _faults(output: Output, inputs: list[Path]) -> Iterator[str]:
    path, where = output.path, f"{output.option} {output.path}"
    advised = path.with_suffix(output.endings[0]) if path.name else path
    if path.is_dir():
        yield f"{where}: a folder. A file, such as {path / ('predictions' + output.endings[0])}"
    elif path.suffix.lower() not in output.endings:
        ending = f"ends in {path.suffix}" if path.suffix else "has no ending"
        yield f"{where}: {ending}. {output.content}, in a file such as {advised}"
    elif path.exists() and not path.is_file():
        yield f"{where}: a device. A file, such as {advised.name}"
    elif read := _input_at(path, inputs):
        yield f"{where}: {read}. Another name: the file would be overwritten"
    else:
        folder = next(p for p in path.absolute().parents if p.exists())
        if not folder.is_dir():
            yield f"{where}: {folder} is not a folder. A file in a folder"
        elif not os.access(folder, os.W_OK):
            yield f"{where}: {folder} cannot be written to. A file in a folder that is yours"


def _input_at(path: Path, inputs: Iterable[Path]) -> str:
    """What an existing file is to the command; "" if the command does not need it."""
    from fsl_core.data.folders import image_files

    if not path.is_file():
        return ""
    real = path.resolve()
    for given in inputs:
        if given.resolve() == real:
            return "the command reads it"
        if given.resolve() not in real.parents:
            continue
        if real in {file.resolve() for file in _files_of_run(given)}:
            return f"a file of the run {given}"
        if real in {file.resolve() for file in image_files(given)}:
            return f"a picture of {given}"
    return ""


def _files_of_run(directory: Path) -> Iterator[Path]:
    from fsl_core.runs import files

    if (directory / files.RECIPE).is_file():
        names = (files.RECIPE, files.ENVIRONMENT, files.EXECUTION, files.METRICS, files.EPISODES)
        written = (*names, files.CONFUSION, files.RESULT, "report.html")
        yield from (directory / name for name in written)
        yield from (directory / "checkpoints").glob("*")
