"""A table of text, and how it is written: Markdown, LaTeX, HTML."""

from dataclasses import dataclass
from html import escape

NOTHING = "-"
_LATEX = {"\\": r"\textbackslash{}", "→": r"$\rightarrow$", "±": r"$\pm$"} | {c: f"\\{c}" for c in "&%$#_{}"}


@dataclass(frozen=True)
class Table:
    """A table of text."""

    title: str
    """What stands above it."""
    head: tuple[str, ...]
    """The columns' names."""
    rows: tuple[tuple[str, ...], ...]
    """The cells, a tuple a row, as many as there are columns."""
    notes: tuple[str, ...] = ()
    """Sentences to stand below."""

    def markdown(self) -> str:
        """A heading, the table, its notes."""
        head, *rows = ("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in self._lines)
        notes = ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n".join([f"## {self.title}", "", head, "|" + "---|" * len(self.head), *rows, *notes, ""])

    def latex(self) -> str:
        """A table float in the style of `booktabs`."""
        head, *rows = (" & ".join(map(_latex, line)) + r" \\" for line in self._lines)
        notes = r"\\ ".join(map(_latex, self.notes))
        return "\n".join(
            [
                r"\begin{table}",
                rf"\caption{{{_latex(self.title)}}}",
                rf"\begin{{tabular}}{{l{'r' * (len(self.head) - 1)}}}",
                *(r"\toprule", head, r"\midrule", *rows, r"\bottomrule"),
                r"\end{tabular}",
                *([rf"\par\footnotesize {notes}"] if notes else []),
                r"\end{table}",
                "",
            ]
        )

    def html(self) -> str:
        """A heading, the table, its notes."""
        head, *rows = self._lines
        body = [_html_row(head, "th"), *(_html_row(row, "td") for row in rows)]
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return "\n".join([f"<h2>{escape(self.title)}</h2>", "<table>", *body, "</table>", f"<ul>{notes}</ul>"])

    @property
    def _lines(self) -> tuple[tuple[str, ...], ...]:
        return (self.head, *self.rows)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _html_row(cells: tuple[str, ...], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
