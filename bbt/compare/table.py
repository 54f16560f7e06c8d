"""A table of text can be written as Markdown or LaTeX; `bbt.pages` makes HTML of it."""

from dataclasses import dataclass

NOTHING = "-"
_LATEX = {"\\": r"\textbackslash{}", "→": r"$\rightarrow$", "±": r"$\pm$"} | {c: f"\\{c}" for c in "&%$#_{}"}


@dataclass(frozen=True)
class Table:
    """A table of text."""

    title: str
    """The line above it."""
    head: tuple[str, ...]
    """The names of the columns."""
    rows: tuple[tuple[str, ...], ...]
    """The cells, a tuple for each row, with as many as there are columns."""
    notes: tuple[str, ...] = ()
    """The sentences below it."""

    def markdown(self) -> str:
        """Markdown: a heading, the table and its notes."""
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

    @property
    def _lines(self) -> tuple[tuple[str, ...], ...]:
        return (self.head, *self.rows)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
