"""The command that predicts your pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
    run_there,
    warn,
)
from fsl_core.cli.labelling import OF_PHOTOGRAPHS, USUAL_NETWORK, share_of_greys, without_run
from fsl_core.cli.outputs import Output, check_outputs, page, table

if TYPE_CHECKING:
    import torch

    from fsl_core.data.folders import PassedOver
    from fsl_core.predicting.pictures import Pictures
    from fsl_core.predicting.predictor import AdaptedPredictor
    from fsl_core.reporting.predictions import Predictions


def add_commands(app: typer.Typer) -> None:
    app.command()(predict)
    app.command()(label)


Trained = Annotated[
    Path | None,
    typer.Argument(
        metavar="RUN",
        help="directory of a run, an address such as hf:user/name, or a file of --save",
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
Weights = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="of the network (default: its own, fetched once)"),
]
UnknownBelow = Annotated[
    float,
    typer.Option(metavar="P", min=0, max=1, help="say unknown where no class is this probable"),
]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="leave out damaged pictures and list them")
]


@dataclass(frozen=True)
class Wanted:
    """What is to be predicted, and where it goes."""

    query: Path | None
    out: Path | None
    html: Path | None
    save: Path | None
    export: Path | None
    serve: bool
    unknown_below: float
    skip_unreadable: bool
    raw_csv: bool

    def check(self, option: str, read: Sequence[Path | None]) -> list[Output]:
        """The files to write. RunError for what makes no sense; option: of the pictures.

        read: paths that must not be written over.
        """
        from fsl_core.data.folders import require_folder
        from fsl_core.errors import RunError
        from fsl_core.text import printable

        if self.query is not None and not self.query.is_file():  # before the work begins
            fit = "A folder of pictures, or one picture"
            require_folder(self.query, f"{printable(self.query)}:", fit)
        if self.query is None and not self.serve:
            raise RunError(f"{option}: absent. A folder of pictures, one picture, or --serve")
        idle = {"--out": self.out, "--html": self.html, "--export": self.export}
        if self.query is None and (named := [name for name, given in idle.items() if given]):
            raise RunError(f"{', '.join(named)}: nothing to predict. {option} with pictures")
        outputs = list(_outputs(self.out, self.html, self.save, self.export))
        check_outputs(outputs, [path for path in (self.query, *read) if path])
        return outputs


def predict(
    trained: Trained = None,
    query: Query = None,
    support: Support = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="without RUN: a pretrained network, frozen, such as resnet18 or one of timm",
        ),
    ] = None,
    weights: Weights = None,
    adapter: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="with --backbone (default: the best on --support)"),
    ] = None,
    out: Out = None,
    html: Html = None,
    save: Save = None,
    export: Export = None,
    serve: Serve = False,
    unknown_below: UnknownBelow = 0.0,
    invert: Invert = False,
    skip_unreadable: SkipUnreadable = False,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    no_plugin: NoPlugin = [],
    plugins_dir: PluginsDir = None,
    trust_plugins: TrustPlugins = False,
    raw_csv: RawCsv = False,
) -> None:
    """Predict pictures from labelled ones, by a trained run or by a pretrained network.

    RUN adapts to the pictures of --support. Without a run, --backbone names a network whose
    features serve as they are.
    """
    places = query, out, html, save, export
    wanted = Wanted(*places, serve, unknown_below, skip_unreadable, raw_csv)
    _check_named(trained, backbone, weights, adapter, checkpoint)
    run_there(trained)
    outputs = wanted.check("--query", [trained, support, weights])
    if backbone is None:
        options = recorded_plugins(no_plugin, plugins_dir, trust_plugins)
        on = choose_device(device)
        run = _run(trained)
        predictor = _predictor(run, support, invert, checkpoint, on, skip_unreadable, options)
    else:
        predictor = without_run(
            backbone,
            weights,
            _labelled(support, "--support"),
            adapter,
            invert,
            device,
            skip_unreadable,
            no_plugin,
            plugins_dir,
        )
    _give(predictor, wanted, outputs, "--support", "--query")


def label(
    examples: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="pictures you have sorted, one folder for each kind"),
    ] = None,
    new: Annotated[
        Path | None, typer.Option(metavar="DIR", help="the pictures to sort, or one picture")
    ] = None,
    network: Annotated[
        str, typer.Option(metavar="NAME", help="pretrained; of torchvision or timm")
    ] = USUAL_NETWORK,
    weights: Weights = None,
    out: Out = None,
    html: Html = None,
    save: Save = None,
    serve: Serve = False,
    unknown_below: UnknownBelow = 0.0,
    skip_unreadable: SkipUnreadable = False,
    device: Device = "auto",
    raw_csv: RawCsv = False,
) -> None:
    """Sort pictures like examples that you have sorted: `fsl predict` in everyday words.

    Nothing is trained. The network turns pictures into numbers, and each new picture gets the kind
    of the examples that it is most like.
    """
    wanted = Wanted(new, out, html, save, None, serve, unknown_below, skip_unreadable, raw_csv)
    outputs = wanted.check("--new", [examples, weights])
    folder, skip = _labelled(examples, "--examples"), skip_unreadable
    predictor = without_run(
        network, weights, folder, None, False, device, skip, [], None, option="--network"
    )
    _give(predictor, wanted, outputs, "--examples", "--new")


def _check_named(
    trained: Path | None,
    backbone: str | None,
    weights: Path | None,
    adapter: str | None,
    checkpoint: str | None,
) -> None:
    """Raise RunError unless a run is named or a network, and each with its own options alone."""
    from fsl_core.errors import RunError

    if trained is None and backbone is None:
        raise RunError("predict: no RUN and no --backbone. A trained run, or a pretrained network")
    if trained is not None and backbone is not None:
        raise RunError(f"{trained}: a run, and --backbone {backbone}. One of the two")
    of_network = {"--weights": weights, "--adapter": adapter}
    given = of_network if trained is not None else {"--checkpoint": checkpoint}
    if named := [name for name, value in given.items() if value is not None]:
        other = "--backbone" if trained is not None else "RUN"
        raise RunError(f"{', '.join(named)}: belongs to {other}. Without it")


def _run(trained: Path | None) -> Path:
    assert trained is not None  # _check_named
    return trained


def _labelled(folder: Path | None, option: str) -> Path:
    from fsl_core.errors import RunError

    if folder is None:
        raise RunError(
            f"{option}: absent. A folder with one folder of labelled pictures for each class"
        )
    return folder


def _give(
    predictor: AdaptedPredictor, wanted: Wanted, outputs: Sequence[Output], *options: str
) -> None:
    """Predict, write and show; options: that named the labelled pictures and the others."""
    from fsl_core.errors import RunError
    from fsl_core.reporting.predictions import UNKNOWN, Predictions

    if wanted.unknown_below and UNKNOWN in predictor.classes:
        raise RunError(f"--unknown-below: there is a class {UNKNOWN!r}. Another name for it")
    predictions, query = None, wanted.query
    pictures = predictor.read(query, wanted.skip_unreadable) if query is not None else None
    _note(predictor)
    _note_passed_over(options[0], predictor.passed_over)
    if pictures is not None:
        _note_pictures(options[1], pictures)
        _note_photographs(predictor, pictures)
        found = predictor.probabilities(pictures.images)
        predictions = Predictions(predictor, pictures, found, wanted.unknown_below)
    for output in outputs:
        output.make_folder()
    if wanted.save:
        predictor.save(wanted.save)
    if predictions is not None:
        if wanted.export:
            difference = predictor.export(wanted.export, predictions.pictures.images)
            warn(f"{wanted.export}: probabilities of these pictures within {difference:.1e}")
        if wanted.html:
            predictions.write_html(wanted.html)
        _give_table(predictions, wanted.out, wanted.raw_csv)
    if wanted.serve:
        _serve(predictor)


def _note_photographs(predictor: AdaptedPredictor, pictures: Pictures) -> None:
    """Say where a run of drawings meets photographs: it has seen nothing like them."""
    task = predictor.experiment.source.item_task
    if task.input_shape[0] == 1 and share_of_greys(pictures.images) > OF_PHOTOGRAPHS:
        size = task.input_shape[-1]
        warn(
            f"warning: the run learned light strokes on black of {size} x {size} pixels, and these "
            f"look like photographs. `fsl predict --backbone {USUAL_NETWORK}` suits them better"
        )


def _serve(predictor: AdaptedPredictor) -> None:
    """Until Ctrl-C."""
    from fsl_core.reporting.serving import PictureServer

    server = PictureServer(predictor)
    typer.echo(f"open {server.address}    (Ctrl-C ends it)", err=True)
    try:
        server.serve()
    except KeyboardInterrupt:
        typer.echo("ended", err=True)


def _note_pictures(option: str, pictures: Pictures) -> None:
    from fsl_core.text import printable

    _note_passed_over(option, pictures.passed_over)
    for name, why in pictures.skipped or ():
        typer.echo(f"note: {option}: left out: {printable(name)}: {printable(why)}", err=True)


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
        unknown = predictions.predicted.count("unknown") if predictions.unknown_below else 0
        told = f"{count}, {unknown} unknown" if unknown else count
        typer.echo(f"accuracy {predictions.accuracy:.4f} ({told})", err=out is None)
        for name, row, share in predictions.confusion:
            total = f"of {sum(row)}"
            typer.echo(f"  {printable(name)}: {share:.2f} {total}", err=out is None)


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
