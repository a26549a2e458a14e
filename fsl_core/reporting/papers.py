"""Tables for papers and pages: the same cells as Markdown, LaTeX and CSV."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from fsl_core.files.spreadsheets import CsvWriter
from fsl_core.text import printable

_OF_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}


@dataclass(frozen=True)
class PaperTable:
    """Texts in rows and columns.

    bold: (row, column) of the cells that stand out.
    """

    headings: list[str]
    rows: list[list[str]]
    bold: set[tuple[int, int]] = field(default_factory=set)

    def markdown(self) -> str:
        """A table of GitHub's Markdown; a bar within a cell is written out.

        >>> print(PaperTable(["method", "accuracy"], [["maml", "0.9"]], {(0, 1)}).markdown())
        | method | accuracy |
        |---|---|
        | maml | **0.9** |
        """
        rows = self._with(lambda text: printable(text).replace("|", "\\|"), "**{}**")
        lines = [self.headings, ["---"] * len(self.headings), *rows]
        joined = [f"| {' | '.join(line)} |" for line in lines]
        joined[1] = joined[1].replace(" ", "")
        return "\n".join(joined)

    def latex(self) -> str:
        r"""A `tabular` with the rules of the package booktabs.

        >>> print(PaperTable(["method", "accuracy"], [["a_b", "0.9 ± 0.1"]], {(0, 1)}).latex())
        \begin{tabular}{ll}
        \toprule
        method & accuracy \\
        \midrule
        a\_b & \textbf{0.9 $\pm$ 0.1} \\
        \bottomrule
        \end{tabular}
        """
        rows = self._with(latex_text, r"\textbf{{{}}}")
        lines = [" & ".join(row) + r" \\" for row in ([*map(latex_text, self.headings)], *rows)]
        begin = rf"\begin{{tabular}}{{{'l' * len(self.headings)}}}"
        body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
        return "\n".join([begin, *body, r"\end{tabular}"])

    def csv(self, raw: bool = False) -> str:
        """CSV; what stands out has a column `best` of its own.

        raw: names as they are, even if a spreadsheet would compute them.
        """
        text = io.StringIO()
        writer = CsvWriter(text, raw)
        writer.writerow([*self.headings, "best"])
        best = {row for row, _ in self.bold}
        writer.writerows([*row, i in best] for i, row in enumerate(self.rows))
        return text.getvalue()

    def _with(self, escape: Callable[[str], str], bold: str) -> list[list[str]]:
        return [
            [bold.format(escape(text)) if (i, j) in self.bold else escape(text) for j, text in row]
            for i, row in enumerate(map(enumerate, self.rows))
        ]


def latex_text(text: str) -> str:
    """A text in which LaTeX finds no command."""
    return re.sub(r"[&%$#_{}\\~^±]", lambda found: _OF_LATEX[found[0]], printable(text))
