"""The command that predicts your pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fsl_core.cli.arguments import (
    Checkpoint,
    Device,
    NoPlugin,
    PluginsDir,
    RawCsv,
    TrustPlugins,
    check_checkpoint,
    choose_device,
    recorded_plugins,
    warn,
)
from fsl_core.cli.outputs import Output, check_outputs, page, table

if TYPE_CHECKING:
    import torch

    from fsl_core.data.folders import PassedOver
    from fsl_core.predicting.pictures import Pictures
    from fsl_core.predicting.predictor import AdaptedPredictor
    from fsl_core.reporting.predictions import Predictions


def add_commands(app: typer.Typer) -> None:
    app.command()(predict)


Trained = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="directory of a run, or a file of --save",
        show_default=False,
        readable=False,
    ),
]
Query = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="pictures to predict; in class folders: with accuracy"),
]
Support = Annotated[
    Path | None, typer.Option(metavar="DIR", help="labelled pictures, one folder for each class")
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="write the table (CSV) here (default: print it)"),
]
Html = Annotated[Path | None, typer.Option(metavar="FILE", help="write a page to look at")]
Save = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="keep the adapted predictor, to use in place of RUN"),
]
Export = Annotated[
    Path | None, typer.Option(metavar="FILE", help="write the predictor as a program (.pt2, .onnx)")
]
Invert = Annotated[bool, typer.Option("--invert", help="exchange light and dark in all pictures")]
Serve = Annotated[
    bool,
    typer.Option("--serve", help="open a page on this machine that pictures are dragged into"),
]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="leave out damaged pictures and list them")
]


def predict(
    trained: Trained,
    query: Query = None,
    support: Support = None,
    out: Out = None,
    html: Html = None,
    save: Save = None,
    export: Export = None,
    serve: Serve = False,
    invert: Invert = False,
    skip_unreadable: SkipUnreadable = False,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    no_plugin: NoPlugin = [],
    plugins_dir: PluginsDir = None,
    trust_plugins: TrustPlugins = False,
    raw_csv: RawCsv = False,
) -> None:
    """Adapt a trained run to labelled pictures and predict others: a probability for each class."""
    from fsl_core.errors import RunError
    from fsl_core.reporting.predictions import Predictions

    if query is None and not serve:
        raise RunError("--query: absent. A folder of pictures, one picture, or --serve")
    if query is None and (named := [o for o, given in _of_query(out, html, export) if given]):
        raise RunError(f"{', '.join(named)}: nothing to predict. --query with pictures")
    outputs = list(_outputs(out, html, save, export))
    check_outputs(outputs, [path for path in (trained, support, query) if path])
    options = recorded_plugins(no_plugin, plugins_dir, trust_plugins)
    predictor = _predictor(
        trained, support, invert, checkpoint, choose_device(device), skip_unreadable, options
    )
    _note(predictor)
    _note_passed_over("--support", predictor.passed_over)
    pictures = predictor.read(query, skip_unreadable) if query else None
    if pictures is not None:
        _note_pictures(pictures)
        predictions = Predictions(predictor, pictures, predictor.probabilities(pictures.images))
    for output in outputs:
        output.make_folder()
    if save:
        predictor.save(save)
    if pictures is not None:
        if export:
            difference = predictor.export(export, pictures.images)
            warn(f"{export}: probabilities of these pictures within {difference:.1e}")
        if html:
            predictions.write_html(html)
        _give_table(predictions, out, raw_csv)
    if serve:
        _serve(predictor)


def _of_query(*outputs: Path | None) -> Iterator[tuple[str, Path | None]]:
    yield from zip(("--out", "--html", "--export"), outputs, strict=True)


def _serve(predictor: AdaptedPredictor) -> None:
    """Until Ctrl-C."""
    from fsl_core.reporting.serving import PictureServer

    server = PictureServer(predictor)
    typer.echo(f"open {server.address}    (Ctrl-C ends it)", err=True)
    try:
        server.serve()
    except KeyboardInterrupt:
        typer.echo("ended", err=True)


def _note_pictures(pictures: Pictures) -> None:
    from fsl_core.text import printable

    _note_passed_over("--query", pictures.passed_over)
    for name, why in pictures.skipped or ():
        typer.echo(f"note: --query: left out: {printable(name)}: {printable(why)}", err=True)


def _give_table(predictions: Predictions, out: Path | None, raw: bool) -> None:
    """Write the table and print a summary of it, or print the table itself."""
    from fsl_core.runs.files import write_atomically
    from fsl_core.text import printable

    count = f"{len(predictions.predicted)} pictures"
    if out:
        write_atomically(out, predictions.to_csv(raw))
        counts = Counter(predictions.predicted).most_common()
        typer.echo(f"{count}: " + ", ".join(f"{n} {printable(name)}" for name, n in counts))
    else:
        typer.echo(predictions.to_csv(raw), nl=False)
    if predictions.accuracy is not None:
        typer.echo(f"accuracy {predictions.accuracy:.4f} ({count})", err=out is None)


def _outputs(
    out: Path | None, html: Path | None, save: Path | None, export: Path | None
) -> Iterator[Output]:
    if out:
        yield table("--out", out)
    if html:
        yield page("--html", html)
    if save:
        yield Output("--save", save, (".safetensors", ""), "A predictor in safetensors")
    if export:
        yield Output("--export", export, (".pt2", ".onnx"), "A program of torch.export or ONNX")


def _predictor(
    trained: Path,
    support: Path | None,
    invert: bool,
    checkpoint: str | None,
    device: torch.device,
    skip_unreadable: bool,
    plugins: dict[str, Any],
) -> AdaptedPredictor:
    from fsl_core.errors import RunError
    from fsl_core.predicting.adapting import adapt_to_folder, load_predictor

    check_checkpoint(checkpoint)
    if not trained.is_file():
        if support is None:
            raise RunError(
                "--support: absent. A folder with one folder of labelled pictures for each class"
            )
        return adapt_to_folder(
            trained,
            support,
            invert,
            checkpoint,
            device,
            skip_unreadable=skip_unreadable,
            **plugins,
        )
    given = {"--support": support, "--invert": invert, "--checkpoint": checkpoint}
    if named := [name for name, value in given.items() if value]:
        raise RunError(
            f"{trained}: a file, and {', '.join(named)}. A run directory, or the file of --save "
            "alone"
        )
    return load_predictor(trained, device, **plugins)


def _note(predictor: AdaptedPredictor) -> None:
    """Say on stderr what a user might not expect."""
    from fsl_core.text import printable

    if predictor.shots != predictor.found:
        counts = ", ".join(
            f"{printable(name)} {n}"
            for name, n in zip(predictor.classes, predictor.found, strict=True)
        )
        warn(
            f"note: unequal numbers of labelled pictures ({counts}); "
            f"the first {predictor.shots[0]} of each are used, because adapter "
            f"{predictor.learner.adapter.name!r} takes as many of each class"
        )
    if predictor.together:
        how = f"norm {predictor.experiment.norm}, adapter {predictor.learner.adapter.name}"
        warn(f"note: {how}: a prediction depends on which pictures are predicted together")


def _note_passed_over(option: str, passed_over: Sequence[PassedOver]) -> None:
    """Say on stderr what of a folder is not used: the damaged by name, the others by number."""
    from fsl_core.data.folders import counted, unreadable

    for item in unreadable(passed_over):
        typer.echo(f"note: {option}: left out: {item}", err=True)
    if rest := [item for item in passed_over if item not in unreadable(passed_over)]:
        typer.echo(f"note: {option}: passed over: {counted(rest)}", err=True)
