"""A table before it is text: cells with mean, spread and n, and its renderings as Markdown, LaTeX, HTML and CSV."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field, replace

import pandas as pd

MISSING = "–"
PAGE = 40  # rows that LaTeX puts on one page
_NUMBER = re.compile(r"\d+(\.\d+)?")  # that a text starts with, such as a published figure or a share


@dataclass(frozen=True)
class Cell:
    """Mean ± sample standard deviation over n pre-trainings; the text of a label or of a published figure instead.

    Attributes:
        mean: in the unit of the column; None where nothing was measured.
        std: sample standard deviation: over pre-trainings, each the mean of its runs; of one pre-training over its
            runs; None for a single figure.
        n: number of pre-trainings.
        runs: number of measurements of them, where they are more.
        bold: it leads its column by more than its spread.
        change: difference to the baseline row; None on that row.
        text: what to print where it is no measurement.
    """

    mean: float | None = None
    std: float | None = None
    n: int = 0
    runs: int = 0
    bold: bool = False
    change: float | None = None
    text: str = ""

    @staticmethod
    def of(values: pd.Series[float], trained: pd.Series[str]) -> Cell:
        """From the values of the runs and what tells their pre-trainings apart."""
        if not len(values):
            return Cell()
        means = values.groupby(trained).mean()
        spread = means if len(means) > 1 else values
        std = float(spread.std(ddof=1)) if len(spread) > 1 else None
        return Cell(float(means.mean()), std, len(means), len(values))

    @property
    def figures(self) -> int:
        """How many figures the spread is of."""
        return self.n if self.n > 1 else max(self.n, self.runs)

    def __str__(self) -> str:
        if self.mean is None:
            return self.text or MISSING
        spread = "" if self.std is None else f" ± {self.std:.1f}"
        times = f"; {self.runs} runs" if self.runs > self.n else ""
        change = ""
        if self.change is not None:
            moved = round(self.change, 1)
            change = f" {'↑' if moved > 0 else '↓' if moved < 0 else '='}{abs(moved):.1f}"
        return f"{self.mean:.1f}{spread} ({self.n}{times}){change}"


@dataclass
class Grid:
    """Rows of cells under headers, with footnotes.

    Attributes:
        name: of its files.
        title: for people.
        header: of all columns, that of the row titles first.
        rows: the title of each row and its cells.
        notes: lines below the table.
    """

    name: str
    title: str
    header: list[str]
    rows: list[tuple[str, list[Cell]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def compare(self, baseline: str | None, least: dict[int, int] | None = None) -> None:
        """Marks the leader of each column and the difference of each row to the baseline row.

        Args:
            baseline: title of that row; None or unknown: no differences.
            least: by column, the number of figures below which nothing is bold (2 where not given).
        """
        for place in range(len(self.header) - 1):
            column = [cells[place] for _, cells in self.rows]
            base = next((c.mean for (title, _), c in zip(self.rows, column, strict=True) if title == baseline), None)
            leader = _leader(column, (least or {}).get(place, 2))
            for number, ((title, cells), cell) in enumerate(zip(self.rows, column, strict=True)):
                change = cell.mean - base if base is not None and cell.mean is not None and title != baseline else None
                cells[place] = replace(cell, bold=number == leader, change=change)

    def _texts(self, bold: str) -> list[list[str]]:
        return [
            [title, *(bold.format(cell) if cell.bold else str(cell) for cell in cells)] for title, cells in self.rows
        ]

    def markdown(self) -> str:
        """A Markdown table and its notes."""
        lines = [self.header, [":--"] + ["--:"] * (len(self.header) - 1), *self._texts("**{}**")]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join([table, *(" ".join(self.notes),) * bool(self.notes)])

    def latex(self) -> str:
        """A booktabs table as wide as the page at most, or one that goes over pages; the notes stand below it.

        Needs the packages booktabs, graphicx and longtable.
        """
        texts = [[escaped(text) for text in row] for row in self._texts("\x02{}\x03")]
        table = pd.DataFrame(texts, columns=[escaped(name) for name in self.header])
        columns = "l" + "r" * (len(self.header) - 1)
        long = len(self.rows) > PAGE
        if long:  # the last column, a source, breaks its lines
            columns = "l" * (len(self.header) - 1) + r"p{0.3\linewidth}"
        body = table.to_latex(index=False, escape=False, column_format=columns, longtable=long)
        fit = r"\ifdim\width>\linewidth\linewidth\else\width\fi"
        body = (
            f"{{\\tiny\\setlength{{\\tabcolsep}}{{2pt}}\n{body}}}\n"
            if long
            else f"\\resizebox{{{fit}}}{{!}}{{%\n{body}}}\n\n"
        )
        notes = "".join(f"{{\\footnotesize\\sloppy {escaped(note)}\\par}}\n" for note in self.notes)
        return f"% {self.title}\n\\noindent\n{body}{notes}"

    def html(self) -> str:
        """A table that a click on a header sorts, and its notes."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.header)
        body = []
        for title, cells in self.rows:
            row = [f"<td>{html.escape(title)}</td>"]
            for cell in cells:
                number = _NUMBER.match(cell.text)
                value = cell.mean if cell.mean is not None else number and float(number[0])
                key = "" if value is None else f' data-value="{value!r}"'
                text = html.escape(str(cell))
                row.append(f"<td{key}>{f'<b>{text}</b>' if cell.bold else text}</td>")
            body.append(f"<tr>{''.join(row)}</tr>")
        notes = "".join(f"<p class=note>{html.escape(note)}</p>" for note in self.notes)
        table = f"<table class=sortable><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        return f'<section id="{self.name}"><h2>{html.escape(self.title)}</h2>{table}{notes}</section>'

    def csv(self) -> str:
        """A line for each measured or published cell: row, column, mean, std, n, runs."""
        rows = [
            [title, column, cell.mean, cell.std, cell.n or None, cell.runs or None, cell.text]
            for title, cells in self.rows
            for column, cell in zip(self.header[1:], cells, strict=True)
            if cell.mean is not None or cell.text
        ]
        table = pd.DataFrame(rows, columns=["row", "column", "mean", "std", "n", "runs", "text"])
        table = table.astype({"n": "Int64", "runs": "Int64"})
        return str(table.to_csv(index=False, lineterminator="\n", float_format="%.4f"))


LATEX_SIGNS = str.maketrans(
    {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
        "†": r"$\dagger$", "≥": r"$\geq$", "×": r"$\times$", "−": "$-$", "–": "--", "\x02": r"\textbf{", "\x03": "}",
    }
)  # fmt: skip


def letters(number: int) -> str:
    """The mark of a footnote: 0 is "a", 25 "z", 26 "aa"."""
    more, last = divmod(number, 26)
    return (letters(more - 1) if more else "") + chr(ord("a") + last)


def escaped(text: str) -> str:
    """Text for LaTeX; \\x02 and \\x03 hold the place of bold's braces."""
    return text.translate(LATEX_SIGNS)


def _leader(column: list[Cell], least: int) -> int | None:
    """Place of the cell that leads the others by more than its own spread; None where none does."""
    measured = sorted(((c.mean, i) for i, c in enumerate(column) if c.mean is not None), reverse=True)
    if len(measured) < 2:
        return None
    (best, place), (second, _) = measured[0], measured[1]
    std = column[place].std
    return place if std is not None and column[place].figures >= least and best - second > std else None
