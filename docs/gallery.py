"""Makes the gallery from the kept runs: a curve and a figure with its interval for each recipe."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import groupby

from benchmarks.kept import RUNS, Row, read_recipes, read_rows
from benchmarks.results import method_of
from fsl_core.builtin.glyphs import Glyphs
from fsl_core.builtin.sinusoid import Sinusoid
from fsl_core.data.source import EpisodeSource
from fsl_core.hooks.catalogue import Catalogue
from fsl_core.reporting import figures
from fsl_core.reporting.scores import chance_of
from fsl_core.runs.files import METRICS, parse_record

HEAD = """\
# Gallery

Every recipe here has a run that is [kept](../results/kept.md) with its scores, and each picture is
made from it: scores of training and validation over the outer steps, or those of the test episodes
where nothing is trained. Figures are means over test episodes with their 95 % interval. [All
results](../results/index.md) stand beside published ones.

"""

TITLES = {
    "glyphs": "Drawn characters (glyphs)",
    "omniglot": "Handwritten characters (Omniglot)",
    "cifar-fs": "Small photographs (CIFAR-FS)",
    "arrays": "Arrays: digits, signals and wine",
    "cross-domain": "Trained on one data set, judged on another",
    "sinusoid": "Functions: sinusoids",
    "random-networks": "Functions: small networks",
    "wormhole": "Tasks of opposite sign",
}
"""Sections, by the folder of their recipes; others follow under the name of theirs."""


def pages(catalogue: Catalogue) -> dict[str, str]:
    """The page and its figures, by their names in docs/made/."""
    rows = [row for row in read_rows(RUNS, catalogue, read_recipes(catalogue)) if row.file]
    made = {f"gallery/{row.names[0]}.svg": curve_of(row) for row in rows}
    made |= {f"gallery/{name}.svg": picture for name, picture in episodes().items()}
    order = [*TITLES, *sorted({folder_of(row) for row in rows} - {*TITLES})]
    rows.sort(key=lambda row: (order.index(folder_of(row)), -row.score))
    sections = (section(name, [*own], made) for name, own in groupby(rows, folder_of))
    return {**made, "gallery.md": HEAD + "\n".join(sections)}


def folder_of(row: Row) -> str:
    assert row.file is not None
    return row.file.parts[1]


def section(folder: str, rows: list[Row], made: dict[str, str]) -> str:
    lines = [f"## {TITLES.get(folder, folder.capitalize())}", ""]
    if f"gallery/{folder}.svg" in made:
        lines += [f"![A test episode: a row for each class](gallery/{folder}.svg)", ""]
    cards = "\n".join(line for row in rows for line in card(row))
    return "\n".join([*lines, '<div class="gallery">', cards, "</div>", ""])


def card(row: Row) -> Iterator[str]:
    """One recipe: its curve, its figure, and the command that trains it."""
    assert row.file is not None
    result, name = row.first.result, escape(method_of(row))
    shown = f"{result['metric']} {row.score:.3f} ± {row.interval:.3f}"
    yield f'<figure><img src="gallery/{row.names[0]}.svg" alt="{name}: {shown}" loading="lazy">'
    yield f"<figcaption><b>{name}</b><br>{shown} over {result['episodes']} test episodes<br>"
    yield f"<code>fsl run {escape(row.file.as_posix())}</code></figcaption></figure>"


def curve_of(row: Row) -> str:
    """Its score over training, or the scores of its test episodes where nothing was trained."""
    run = row.first
    text = (run.directory / METRICS).read_text(encoding="utf-8")
    records = [parse_record(line) for line in text.splitlines()]
    training = [record for record in records if "split" not in record]
    validation = [record for record in records if record.get("split") == "validation"]
    chance = chance_of(run.directory, run.result)
    if training:
        return figures.curve(training, validation, run.metric, chance)
    return figures.histogram(run.scores.tolist(), run.metric, chance)


def episodes() -> dict[str, str]:
    """What an episode looks like, where it is drawn without a download."""
    return {"glyphs": classes_of(Glyphs(n_shot=1, n_query=7)), "sinusoid": functions_of()}


@figures.as_named
def classes_of(source: EpisodeSource) -> str:
    """Support at the left, queries at the right."""
    support, query, _ = source.batch("test", [0], seed=0)
    figure = figures.Figure(figsize=(5.2, 3.2))
    n_way, n_query = source.task.n_way, source.task.n_query
    grid = figure.subplots(n_way, 2 + n_query, gridspec_kw={"wspace": 0.08, "hspace": 0.08})
    for label, axes in enumerate(grid):
        shown = [support.x[0, label], None, *query.x[0, label * n_query :][:n_query]]
        for drawn, picture in zip(axes, shown, strict=True):
            drawn.set_axis_off()
            if picture is not None:
                drawn.imshow(picture[0].numpy(), cmap="gray")
    return figures.svg(figure)


@figures.as_named
def functions_of() -> str:
    """Three tasks, each known by its support."""
    figure, drawn = figures.axes("x", "y")
    source = Sinusoid(n_shot=5, n_query=60)
    support, query, _ = source.batch("test", range(3), seed=0)
    for number, colour in enumerate((figures.BLUE, figures.ORANGE, figures.GREY)):
        x, y = (values[number].flatten() for values in query)
        drawn.plot(x[x.argsort()], y[x.argsort()], color=colour, linewidth=1)
        drawn.plot(*(values[number].flatten() for values in support), "o", color=colour)
    return figures.svg(figure)
