"""Every table of the results that is made of runs: `make results`.

    python -m benchmarks.results

Reads the runs that `fsl keep` wrote to docs/results/runs/ and writes the tables of README.md and of
the pages of docs/results/ in place, between lines such as

    <!-- results: glyphs-* -->               a row for each recipe
    <!-- results: glyphs-* short -->         with fewer columns (an empty one is always left out)
    <!-- results: omniglot-* on mnist -->    on a source of `evaluate.on`
    <!-- results: glyphs-* minus NAME -->    paired differences
    <!-- results: curves glyphs-* -->        their learning curves, as a figure beside the page
    <!-- results: expected glyphs/* -->      what recipes without a kept run expect
    <!-- results: without -->                recipes whose `expect:` is empty
    <!-- results: sweep glyphs-more -->      a sweep that is kept in docs/results/sweeps/

and `<!-- end of results -->`. The words are names of kept runs, or patterns of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import curves, matrix
from benchmarks.kept import ROOT, RUNS, Row, of_one_set, read_recipes, read_rows
from fsl_core.config.document import read_document
from fsl_core.config.recipe import Recipe
from fsl_core.config.sections import Expected
from fsl_core.hooks.loader import load
from fsl_core.reporting.papers import PaperTable
from fsl_core.reporting.statistics import holm, over_seeds, paired_difference, tied_with_best

PUBLISHED = ROOT / "docs" / "results" / "published.yaml"
PLACE = re.compile(r"(<!-- results: (.+?) -->\n)(.*?)(<!-- end of results -->)", re.DOTALL)
WITHOUT, EXPECTED, SWEEP, CURVES = "without", "expected", "sweep", "curves"


def main() -> None:
    catalogue = load().catalogue
    recipes = read_recipes(catalogue)
    for path, text in written(read_rows(RUNS, catalogue, recipes), recipes).items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(ROOT))


def written(rows: Sequence[Row], recipes: Mapping[Path, Recipe]) -> dict[Path, str]:
    """The text of every page with tables and of their figures, as they have to be.

    SystemExit names the kept runs that a recipe's `expect:` does not allow.
    """
    if faults := [fault for row in rows for fault in row.unexpected]:
        raise SystemExit("\n".join(faults))
    kept = {row.file for row in rows}
    others = {
        file.as_posix().removeprefix("recipes/"): recipe.sections.expect
        for file, recipe in recipes.items()
        if file not in kept
    }
    published = read_document(PUBLISHED).data["figures"]
    pages = [ROOT / "README.md", *sorted((ROOT / "docs" / "results").glob("*.md"))]
    texts = {page: filled(page, rows, published, others) for page in pages}
    return texts | {
        file: curves.drawn(Asked(words[1:], rows).rows, file)
        for page, text in texts.items()
        for words in (found[2].split() for found in PLACE.finditer(text))
        if words[0] == CURVES
        for file in [page.parent / curves.file_of(words[1:])]
    }


def filled(
    page: Path,
    rows: Sequence[Row],
    published: Sequence[dict[str, Any]],
    others: Mapping[str, Mapping[str, Expected]],
) -> str:
    """The text of a page after each of its tables was written again from the kept runs.

    others: what recipes without a kept run expect, by their name.
    """

    def table(found: re.Match[str]) -> str:
        words = found[2].split()
        if words == [WITHOUT]:
            made = "\n".join(f"- `{name}`" for name, expect in others.items() if not expect)
        elif words[0] == EXPECTED:
            made = expectations(words[1], others).markdown()
        elif words[0] == CURVES:
            made = f"![Learning curves of the runs above]({curves.file_of(words[1:])})"
        elif words[0] == SWEEP:
            made = matrix.table(matrix.SWEEPS / words[1])
        else:
            made = Asked(words, rows).table(page, published).markdown()
        return f"{found[1]}\n{made}\n\n{found[4]}"

    return PLACE.sub(table, page.read_text(encoding="utf-8"))


def expectations(pattern: str, others: Mapping[str, Mapping[str, Expected]]) -> PaperTable:
    """What recipes without a kept run expect: figures that were measured, and whose run is gone."""
    rows = [
        [f"`{name}`", key, f"{wanted.value:g}", f"{wanted.tolerance:g}"]
        for name, expect in others.items()
        for key, wanted in expect.items()
        if fnmatchcase(name, pattern)
    ]
    return PaperTable(["recipe without a kept run", "figure", "measured", "tolerance"], rows)


class Asked:
    """What a line in a page asks for.

    SystemExit names a pattern that no kept run has.
    """

    def __init__(self, words: Sequence[str], rows: Sequence[Row]):
        self.words, patterns, options = words, list(words), dict[str, str]()
        for word in ("on", "minus"):
            if word in patterns:
                at = patterns.index(word)
                options[word] = patterns[at + 1]
                del patterns[at : at + 2]
        self.short, self.label = "short" in patterns, options.get("on")
        chosen = [
            row
            for pattern in patterns
            for row in sorted(
                (row.on(self.label) for row in rows if row.is_named(pattern)), key=_better
            )
        ]
        # rows that were judged on the same episodes stand together
        self.rows = [row for group in of_one_set(chosen) for row in sorted(group, key=_better)]
        self.base = [row for row in self.rows if options.get("minus") in row.names]
        if not chosen or ("minus" in options and not self.base):
            raise SystemExit(f"results: {' '.join(words)}: no such kept run. Names in {RUNS.name}/")

    def table(self, page: Path, published: Sequence[dict[str, Any]]) -> PaperTable:
        if self.base:
            return self._differences(self.base[0])
        best = self._best()
        of = short_cells if self.short else cells_of
        cells = [of(row, page, published) for row in self.rows]
        headings = [name for name in cells[0] if any(row[name] for row in cells)]
        score = headings.index(self.rows[0].first.metric)
        bold = {(i, score) for i, row in enumerate(self.rows) if row.names in best}
        return PaperTable(headings, [[row[name] for name in headings] for row in cells], bold)

    def _best(self) -> set[tuple[str, ...]]:
        """Names of the rows that are best, or tied with it, among several on the same episodes."""
        found = set()
        for group in of_one_set(self.rows):
            if len(group) > 1:
                tied = tied_with_best([r.scores for r in group], group[0].first.higher_is_better)
                found |= {row.names for row, best in zip(group, tied, strict=True) if best}
        return found

    def _differences(self, base: Row) -> PaperTable:
        same = [base.first.result["episode_set"], base.first.metric]
        others = [
            row
            for row in self.rows
            if row is not base and [row.first.result["episode_set"], row.first.metric] == same
        ]
        paired = [
            paired_difference(_mean(base), _mean(row), row.first.higher_is_better) for row in others
        ]
        adjusted = holm([one.p for one in paired])
        rows = []
        for row, one, p in zip(others, paired, adjusted, strict=True):
            both = over_seeds(base.scores, row.scores)
            told = f"{both.mean:+.3f} ± {both.interval:.3f} ({both.seeds})" if both else ""
            counted = f"{one.wins}, {one.ties}, {one.losses}"
            difference = f"{one.difference:+.3f} ± {one.interval:.3f}"
            rows.append([method_of(row), difference, f"{p:.2g}", counted, told])
        headings = ["method", f"minus {method_of(base)}", "p (Holm)", "better, equal, worse"]
        return PaperTable([*headings, "over seeds and episodes (seeds)"], rows)


def _better(row: Row) -> float:
    return -row.score if row.first.higher_is_better else row.score


def _mean(row: Row) -> np.ndarray:
    return np.mean(list(row.scores.values()), axis=0)


def method_of(row: Row) -> str:
    """Adapter and backbone, with what else is part of the method if it is not the default."""
    sections = row.recipe.sections
    backbone, channels = sections.backbone.name, getattr(sections.backbone, "channels", "")
    parts = [sections.adapter.name, f"{backbone}-{channels}" if channels else backbone]
    for name, default in (("hypergradient", "unrolled"), ("weighting", "uniform")):
        if (chosen := getattr(sections.outer, name).name) != default:
            parts.append(chosen)
    return ", ".join(parts)


def short_cells(row: Row, page: Path, published: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The columns that tell what was reached, and by what."""
    return {
        **_reached(row, page),
        "published": "; ".join(
            f"{figure['figure']} ({figure['source']}; {protocol})"
            for figure, protocol in published_of(row, published)
        ),
    }


def _reached(row: Row, page: Path) -> dict[str, str]:
    return {
        "method": method_of(row),
        "recipe": recipe_link(row, page),
        row.first.metric: f"{row.score:.3f} ± {row.interval:.3f}",
        "seeds": ", ".join(row.runs),
    }


def cells_of(row: Row, page: Path, published: Sequence[dict[str, Any]]) -> dict[str, str]:
    """All columns of a row."""
    result, outer, judging = row.first.result, row.recipe.sections.outer, row.first.judging
    seconds = row.mean("training_seconds")
    trained = "not trained"
    if outer.steps:
        tasks = "1 task" if outer.meta_batch_size == 1 else f"{outer.meta_batch_size} tasks"
        trained = f"{result['steps']} of {tasks}"
    return {
        **_reached(row, page),
        "episodes": f"{result['episodes']} of `{result['episode_set'][:8]}`",
        "norm": judging.norm_in_short,
        "queries": str(judging.n_query),
        "steps": trained,
        "training": f"{seconds:.0f} s" if outer.steps else "",
        "processor": ", ".join(row.processors),
        "published": "; ".join(
            f"{figure['figure']} ({figure['source']}; {figure['standing']}; {protocol})"
            for figure, protocol in published_of(row, published)
        ),
    }


def recipe_link(row: Row, page: Path) -> str:
    """A link to the recipe, or where it is none of the repository to the kept run."""
    target = ROOT / row.file if row.file else RUNS / row.names[0] / "recipe.yaml"
    name = row.file.as_posix().removeprefix("recipes/") if row.file else row.names[0]
    runs = [
        f"[{i + 1}]({os.path.relpath(RUNS / name, page.parent)}/result.json)"
        for i, name in enumerate(row.names)
    ]
    inside = page.name != "README.md"  # a site has no pages above docs/
    shown = f"`{name}`" if inside else f"[`{name}`]({os.path.relpath(target, page.parent)})"
    return f"{shown} {' '.join(runs)}"


def published_of(
    row: Row, published: Sequence[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], str]]:
    """Published figures of the same method, data and shape in test; by which protocol this is."""
    if row.first.label is not None:  # on other data
        return
    sections = row.recipe.sections
    facts = {
        "episodes": sections.episodes.name,
        "adapter": sections.adapter.name,
        "hypergradient": sections.outer.hypergradient.name,
        "backbone": sections.backbone.name,
        "frozen": sections.backbone.frozen,
        "n_way": sections.evaluate.n_way or getattr(sections.episodes, "n_way", None),
        "n_shot": sections.evaluate.n_shot or getattr(sections.episodes, "n_shot", None),
    }
    for figure in published:
        if all(facts[key] == value for key, value in figure["of"].items()):
            same = row.file is not None and row.file.as_posix() == figure.get("protocol")
            protocol = "the same protocol" if same else "another protocol"
            if same and (steps := row.first.result["steps"]) < sections.outer.steps:
                protocol += f", {steps} of its {sections.outer.steps} steps"
            yield figure, protocol


if __name__ == "__main__":
    main()
