"""Lists of images in text files: `path<TAB>label` lines, or CSV with a header."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

PATHS = ("path", "file", "filename", "file_name", "image")  # names of the column of the files
LABELS = ("label", "class", "category")
EXPECTED = f"a CSV file begins with a header: {'/'.join(PATHS)} and {'/'.join(LABELS)}"


def read_rows(path: Path, lines: list[str]) -> Iterator[tuple[int, str, str]]:
    """Yield number, file name and label of each line; a label may be empty.

    Args:
        path: of the list; its suffix says which kind it is.
        lines: its content.

    Raises:
        ValueError: names the line that is malformed.
    """
    if path.suffix.lower() == ".csv":
        header, rows = read_table(path, lines)
        labels = [name for name in header[1:] if name.lower() in LABELS] or header[1:2]
        if len(header) > 2 and labels[0].lower() not in LABELS:
            raise ValueError(
                f"{path}: its header has {len(header) - 1} columns beside {header[0]} and none of them is "
                f"{' or '.join(LABELS)}: several labels per image are for transfer/svm.py and linear.py"
            )
        at = header.index(labels[0]) if labels else None
        yield from ((number, row[0], "" if at is None else row[at]) for number, row in rows)
        return
    for number, line in enumerate(lines, 1):
        if line.strip():
            name, _, label = line.partition("\t")
            if "\t" in label:
                raise ValueError(f"{path}:{number}: more than one tab; a line must be `path<TAB>label`")
            yield number, name, label


def read_table(path: Path, lines: list[str]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header of a CSV file, the column of the files first, and number and cells of each line.

    Raises:
        ValueError: there is no such header, or a line has another number of cells.
    """
    reader = csv.reader(lines)
    try:
        rows = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise ValueError(f"{path}: not CSV: {error}") from error
    header = [name.strip() for name in rows[0][1]] if rows else []
    at = next((i for i, name in enumerate(header) if name.lower() in PATHS), None)
    if at is None:
        raise ValueError(f"{path}: the header is {','.join(header)[:80]!r}: {EXPECTED}")
    for number, row in rows[1:]:
        if len(row) != len(header):
            raise ValueError(f"{path}:{number}: {len(row)} cells, and the header has {len(header)}")

    def first(row: list[str]) -> list[str]:
        return [row[at].strip(), *(cell.strip() for i, cell in enumerate(row) if i != at)]

    return first(header), [(number, first(row)) for number, row in rows[1:]]


def find_file(path: Path, number: int, name: str) -> tuple[str, Path]:
    """Return the name and the file of the image that a line names, relative to the list.

    Blanks around a name count where there is such a file.

    Raises:
        ValueError: there is no such file.
    """
    for each in (name, name.strip()):
        if (path.parent / each).is_file():
            return each, path.parent / each
    raise ValueError(f"{path}:{number}: no such image: {path.parent / name.strip()}")
