"""A table before it is text: entries with mean, spread and n, and their rendering as Markdown, LaTeX and CSV."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
import pandas as pd

from results.stats import Comparison, Interval, compare, correct, paired_bootstrap

MISSING = "–"
PAGE = 40  # rows of a LaTeX table that fit on one page
KEYS = ("backbone_id", "task", "config_hash", "metric")
_NUMBER = re.compile(r"\d+(\.\d+)?")  # at the start of a text, such as a published result


@dataclass(frozen=True)
class Entry:
    """The measurements of one row and column, or a text instead.

    Attributes:
        means: one value per pre-training, each the mean over its benchmark seeds.
        runs: how many measurements.
        seed_std: sample standard deviation over the benchmark seeds of a single pre-training.
        text: printed where nothing was measured, e.g. a published result.
        key: backbone_id, task, config_hash and metric of a measurement.
        best: it differs from every other entry of its column and is higher.
        change: difference to the baseline row; None on that row.
        differs: whether it differs from the baseline row by the test.
        per_image: .npz file with the metric of each test image; only of a single measurement that has one.
        images: interval of the change over test images, where this and the baseline are single measurements.
    """

    means: tuple[float, ...] = ()
    runs: int = 0
    seed_std: float | None = None
    text: str = ""
    key: tuple[str, ...] = ()
    best: bool = False
    change: float | None = None
    differs: bool = False
    per_image: str | None = None
    images: Interval | None = None

    @staticmethod
    def of(rows: pd.DataFrame, key: tuple[str, ...] = ()) -> Entry:
        """Return the entry of some measurements, with columns `value` and `pretraining`."""
        values = rows["value"]
        means = tuple(values.groupby(rows["pretraining"]).mean())
        one_checkpoint = len(means) == 1 and len(values) > 1
        seed_std = float(values.std(ddof=1)) if one_checkpoint else None
        per_image = rows["per_image"].iloc[0] if len(rows) == 1 else None
        return Entry(means, len(values), seed_std, key=key, per_image=per_image)

    @property
    def n(self) -> int:
        """Return the number of pre-trainings."""
        return len(self.means)

    @property
    def mean(self) -> float | None:
        """Return the mean over pre-trainings; None where nothing was measured."""
        return float(np.mean(self.means)) if self.means else None

    @property
    def std(self) -> float | None:
        """Return the sample standard deviation over pre-trainings; None for fewer than two."""
        return float(np.std(self.means, ddof=1)) if self.n > 1 else None

    @property
    def sort_value(self) -> float | None:
        """Return the number to sort by, if there is one."""
        number = _NUMBER.match(self.text)
        return self.mean if self.means else float(number[0]) if number else None

    @property
    def short(self) -> str:
        """Return mean and standard deviation, without n and the difference to the baseline."""
        if self.mean is None:
            return self.text or MISSING
        return f"{self.mean:.1f}" + ("" if self.std is None else f" ± {self.std:.1f}")

    def __str__(self) -> str:
        if self.mean is None:
            return self.short
        runs = f"; {self.runs} runs" if self.runs > self.n else ""
        if self.seed_std is not None:
            runs = f"; ± {self.seed_std:.1f} over {self.runs} benchmark seeds"
        return f"{self.short} ({self.n}{runs})" + ("" if self.change is None else f" {self._change()}")

    def _change(self) -> str:
        change = round(self.change or 0.0, 1)
        sign = ("↑" if change > 0 else "↓") if self.differs else "−" if change < 0 else "+"
        return f"{sign}{abs(change):.1f}" + (f" {interval_text(self.images)}" if self.images else "")


@dataclass
class Grid:
    """Rows of entries under headers, with notes.

    Attributes:
        name: of its files.
        title: shown above it.
        header: of all columns, starting with that of the row titles.
        rows: the title of each row and its entries.
        notes: lines below the table.
        short: print entries without n and differences.
    """

    name: str
    title: str
    header: list[str]
    rows: list[tuple[str, list[Entry]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    short: bool = False

    def compare(self, baseline: int | None = None) -> None:
        """Compare all pairs of rows in each column; mark the best entry and the differences to a baseline row.

        The pairs of a column are one family for Holm's correction. An entry is the best only where it is higher than
        every other of its column by the test.

        Args:
            baseline: index of the row that differences are to; None: show none.
        """
        for column in range(len(self.header) - 1):
            entries = [row[column] for _, row in self.rows]
            verdicts = _verdicts(entries)
            base = entries[baseline] if baseline is not None else Entry()
            for index, (_, row) in enumerate(self.rows):
                entry = entries[index]
                others = [verdicts[index, other] for other in range(len(entries)) if (index, other) in verdicts]
                compared = bool(entry.means and base.means) and index != baseline
                row[column] = replace(
                    entry,
                    best=bool(others) and set(others) == {"higher"},
                    change=float(np.mean(entry.means) - np.mean(base.means)) if compared else None,
                    differs=compared and verdicts[index, baseline or 0] in ("higher", "lower"),
                    images=over_images(entry, base) if compared else None,
                )

    def text(self, entry: Entry) -> str:
        """Return an entry as it is printed."""
        return entry.short if self.short else str(entry)

    def _texts(self, bold: str) -> list[list[str]]:
        return [
            [title, *(bold.format(self.text(entry)) if entry.best else self.text(entry) for entry in entries)]
            for title, entries in self.rows
        ]

    def markdown(self) -> str:
        """Return a Markdown table and its notes."""
        lines = [self.header, [":--"] + ["--:"] * (len(self.header) - 1), *self._texts("**{}**")]
        table = "\n".join(f"| {' | '.join(text.replace('|', '¦') for text in line)} |" for line in lines)
        return "\n\n".join([table, *(" ".join(self.notes),) * bool(self.notes)])

    def latex(self) -> str:
        """Return a booktabs table, at most as wide as the page or broken over pages, and its notes.

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

    def csv(self) -> str:
        """Return a line for each entry that is not empty: titles, numbers, text, and the keys of a measurement."""
        rows = [
            {"row": title, "column": column, "mean": entry.mean, "std": entry.std, "n": entry.n or None,
             "runs": entry.runs or None, "text": entry.text, **dict(zip(KEYS, entry.key, strict=False))}
            for title, entries in self.rows
            for column, entry in zip(self.header[1:], entries, strict=True)
            if entry.means or entry.text
        ]  # fmt: skip
        table = pd.DataFrame(rows, columns=["row", "column", "mean", "std", "n", "runs", "text", *KEYS])
        table = table.astype({"n": "Int64", "runs": "Int64"})
        return str(table.to_csv(index=False, lineterminator="\n", float_format="%.4f"))


def over_images(first: Entry, second: Entry) -> Interval | None:
    """Return the bootstrap over test images of two single measurements; None where one has no values per image.

    Raises:
        ValueError: the measurements are of different images; the message names their files.
    """
    arrays = []
    for entry in (first, second):
        if entry.per_image is not None:
            with np.load(entry.per_image) as content:
                arrays += [content[entry.key[-1]]] if entry.key[-1] in content else []
    try:
        return paired_bootstrap(*arrays) if len(arrays) == 2 else None
    except ValueError as error:
        raise ValueError(f"{first.per_image}, {second.per_image}: {error}") from error


def interval_text(interval: Interval) -> str:
    """Return an interval in %."""
    return f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]".replace("-", "−")


def letters(index: int) -> str:
    """Return the mark of a footnote: 0 is "a", 25 "z", 26 "aa"."""
    more, last = divmod(index, 26)
    return (letters(more - 1) if more else "") + chr(ord("a") + last)


LATEX_SIGNS = str.maketrans(
    {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
        "†": r"$\dagger$", "≥": r"$\geq$", "×": r"$\times$", "−": "$-$", "–": "--", "\x02": r"\textbf{", "\x03": "}",
    }
)  # fmt: skip


def escaped(text: str) -> str:
    """Return text for LaTeX; \\x02 and \\x03 stand for the braces of bold text."""
    return text.translate(LATEX_SIGNS)


def _verdicts(entries: list[Entry]) -> dict[tuple[int, int], str]:
    """Return the verdict on every ordered pair of measured entries, corrected over all pairs."""
    pairs = list(combinations([index for index, entry in enumerate(entries) if entry.means], 2))
    tested = correct([compare(entries[first].means, entries[second].means) for first, second in pairs])
    verdicts = {}
    for (first, second), one in zip(pairs, tested, strict=True):
        verdicts[first, second] = one.verdict
        verdicts[second, first] = Comparison(-one.difference, one.n[::-1], one.p).verdict
    return verdicts
