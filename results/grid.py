"""A table before it is text: measurements with mean, spread and n, and their rendering as Markdown, LaTeX and CSV."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pandas as pd

from common.cli import printable
from results.stats import Interval, compare, correct, paired_bootstrap

MISSING = "–"
PAGE = 40  # rows of a LaTeX table that fit on one page
KEYS = ["backbone_id", "task", "config_hash", "metric"]


@dataclass
class Entry:
    """The measurements of one row and column.

    Attributes:
        values: of each pre-training, the values by benchmark seed, in %.
        key: backbone_id, task, config_hash and metric.
        per_image: .npz file with the metric of each test image; only of a single measurement that has one.
        best: whether it differs from every other entry of its column and is higher.
        change: difference to the baseline row; None on that row.
        differs: whether it differs from the baseline row by the test.
        images: interval of the change over test images, where this and the baseline are single measurements.
    """

    values: Sequence[Sequence[float]]
    key: Sequence[str] = ()
    per_image: str = ""
    best: bool = False
    change: float | None = None
    differs: bool = False
    images: Interval | None = None

    @staticmethod
    def of(rows: pd.DataFrame) -> Entry:
        """Return the entry of some rows of `frame`, which measure one metric of one backbone."""
        values = [list(seeds) for _, seeds in rows.groupby("pretraining")["value"]]
        first = rows.iloc[0]
        return Entry(values, list(first[KEYS]), first["per_image"] if len(rows) == 1 else "")

    @property
    def means(self) -> list[float]:
        """Return one value per pre-training, each the mean over its benchmark seeds."""
        return [float(np.mean(seeds)) for seeds in self.values]

    @property
    def n(self) -> int:
        """Return the number of pre-trainings."""
        return len(self.values)

    @property
    def runs(self) -> int:
        """Return the number of measurements."""
        return sum(map(len, self.values))

    @property
    def mean(self) -> float:
        """Return the mean over pre-trainings."""
        return float(np.mean(self.means))

    @property
    def std(self) -> float | None:
        """Return the sample standard deviation over pre-trainings; None for fewer than two."""
        return float(np.std(self.means, ddof=1)) if self.n > 1 else None

    @property
    def short(self) -> str:
        """Return mean and standard deviation, without n and the difference to the baseline."""
        return f"{self.mean:.1f}" + ("" if self.std is None else f" ± {self.std:.1f}")

    def __str__(self) -> str:
        runs = f"; {self.runs} runs" if self.runs > self.n else ""
        if self.n == 1 and runs:
            runs = f"; ± {np.std(self.values[0], ddof=1):.1f} over {self.runs} benchmark seeds"
        text = f"{self.short} ({self.n}{runs})"
        if self.change is None:
            return text
        change = round(self.change, 1)
        sign = ("↑" if change > 0 else "↓") if self.differs else "−" if change < 0 else "+"
        return f"{text} {sign}{abs(change):.1f}" + (f" {self.images}" if self.images else "")


@dataclass
class Grid:
    """Rows under headers, with notes.

    Attributes:
        name: of its files.
        title: shown above it.
        header: titles of the columns.
        rows: the title of a row, then its entries or other texts, such as a published result.
        notes: lines below the table.
        short: print entries without n and differences.
        align: of the columns after the first: "r", or "l" for texts.
    """

    name: str
    title: str
    header: list[str]
    rows: list[list[Entry | str]]
    notes: list[str] = field(default_factory=list)
    short: bool = False
    align: str = "r"

    def __post_init__(self) -> None:
        """Put titles on one line: names of files, methods and tasks may hold anything."""
        self.title, self.header = printable(self.title), [printable(name) for name in self.header]
        self.rows = [[printable(text) if isinstance(text, str) else text for text in row] for row in self.rows]

    def compare(self, baseline: int | None = None) -> None:
        """Compare all pairs of rows in each column; mark the best entry and the differences to a baseline row.

        The pairs of a column are one family for Holm's correction. An entry is the best only where it is higher than
        every other of its column by the test.

        Args:
            baseline: index of the row that differences are to; None: show none.
        """
        for column in zip(*self.rows, strict=True):
            entries = {row: entry for row, entry in enumerate(column) if isinstance(entry, Entry)}
            pairs = list(combinations(entries, 2))
            tested = correct([compare(entries[first].means, entries[second].means) for first, second in pairs])
            differing = np.zeros((len(column), len(column)), dtype=bool)
            for (first, second), comparison in zip(pairs, tested, strict=True):
                differing[first, second] = differing[second, first] = comparison.differs
            highest = max(entries, key=lambda row: entries[row].mean, default=None)
            for row, entry in entries.items():
                others = entries.keys() - {row}
                entry.best = row == highest and bool(others) and bool(differing[row, list(others)].all())
                if baseline is not None and baseline in others:
                    base = entries[baseline]
                    entry.change, entry.differs = entry.mean - base.mean, bool(differing[row, baseline])
                    entry.images = over_images(entry, base)

    def texts(self, bold: str, escape: Callable[[str], str] = str) -> list[list[str]]:
        """Return what is printed, escaped, with the best entries put into `bold`, e.g. "**{}**"."""

        def text(entry: Entry | str) -> str:
            if isinstance(entry, str):
                return escape(entry)
            return (bold if entry.best else "{}").format(escape(entry.short if self.short else str(entry)))

        return [[text(entry) for entry in row] for row in self.rows]

    def markdown(self) -> str:
        """Return a Markdown table and its notes."""
        rules = [":--"] + [":--" if self.align == "l" else "--:"] * (len(self.header) - 1)
        header = [markdown_escaped(name) for name in self.header]
        lines = [header, rules, *self.texts("**{}**", markdown_escaped)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join([table, *(markdown_escaped(printable(" ".join(self.notes))),) * bool(self.notes)])

    def latex(self) -> str:
        """Return a booktabs table, at most as wide as the page or broken over pages, and its notes.

        Needs the packages booktabs, graphicx and longtable.
        """
        rows = self.texts(r"\textbf{{{}}}", escaped)
        table = pd.DataFrame(rows, columns=[escaped(name) for name in self.header])
        others = len(self.header) - 1
        if len(rows) > PAGE:  # the last column, a source, breaks its lines
            columns = "l" * others + r"p{0.3\linewidth}"
            body = table.to_latex(index=False, escape=False, column_format=columns, longtable=True)
            body = f"{{\\tiny\\setlength{{\\tabcolsep}}{{2pt}}\n{body}}}\n"
        else:
            body = table.to_latex(index=False, escape=False, column_format="l" + self.align * others)
            fit = r"\ifdim\width>\linewidth\linewidth\else\width\fi"
            body = f"\\resizebox{{{fit}}}{{!}}{{%\n{body}}}\n\n"
        notes = "".join(f"{{\\footnotesize\\sloppy {escaped(printable(note))}\\par}}\n" for note in self.notes)
        return f"% {self.title}\n\\noindent\n{body}{notes}"

    def csv(self) -> str:
        """Return a line for each entry: row, column, numbers and keys of a measurement, else the text."""
        lines = []
        for title, *entries in self.rows:
            for column, entry in zip(self.header[1:], entries, strict=True):
                line: dict[str, object] = {"row": title, "column": column}
                if isinstance(entry, Entry):
                    numbers = {"mean": entry.mean, "std": entry.std, "n": entry.n, "runs": entry.runs}
                    lines.append(line | numbers | dict(zip(KEYS, entry.key, strict=True)))
                elif entry != MISSING:
                    lines.append(line | {"text": entry})
        table = pd.DataFrame(lines, columns=["row", "column", "mean", "std", "n", "runs", "text", *KEYS])
        table = spreadsheet_safe(table, ["row", "column", "text", *KEYS]).astype({"n": "Int64", "runs": "Int64"})
        return str(table.to_csv(index=False, lineterminator="\n", float_format="%.4f"))


def spreadsheet_safe(table: pd.DataFrame, texts: Sequence[str]) -> pd.DataFrame:
    """Return a table whose columns `texts` are printable, and open with an apostrophe where one opens like a formula.

    A spreadsheet would run it.
    """
    shown = table[[*texts]].map(printable, na_action="ignore").replace("^(?=[=+@-])", "'", regex=True)
    return table.assign(**shown)


def per_image(file: str, metric: str) -> np.ndarray | None:
    """Return a metric of each test image, (N,), from the file of a record; None where it has no such values.

    Raises:
        ValueError: the file is broken; the message names it.
    """
    try:
        with np.load(file) as content:
            return np.asarray(content[metric]) if metric in content else None
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file}: not the values of a record: {error}") from error


def over_images(first: Entry, second: Entry) -> Interval | None:
    """Return the bootstrap over test images of two single measurements; None where one has no values per image.

    Raises:
        ValueError: a file is broken, or the measurements are of different images; the message names the files.
    """
    one, other = (per_image(entry.per_image, entry.key[-1]) if entry.per_image else None for entry in (first, second))
    if one is None or other is None:
        return None
    try:
        return paired_bootstrap(one, other)
    except ValueError as error:
        raise ValueError(f"{first.per_image}, {second.per_image}: {error}") from error


LATEX_SIGNS = str.maketrans(
    {
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "≥": r"$\geq$",
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    }
)  # fmt: skip


def escaped(text: str) -> str:
    """Return text for LaTeX. After the end of a row, [ or * would be read as an argument of it."""
    return "{}" * text.startswith(("[", "*")) + text.translate(LATEX_SIGNS)


MARKDOWN = re.compile(r"[\\|*`<$]|&(?=[#\w]+;)|(?<!\w)_|_(?!\w)|(?<=\])\(")  # with a meaning in tables and texts


def markdown_escaped(text: str) -> str:
    """Return text for Markdown, in which neither tables nor HTML nor links begin."""
    return MARKDOWN.sub(lambda sign: {"<": "&lt;", "|": "&#124;"}.get(sign[0], f"\\{sign[0]}"), text)
