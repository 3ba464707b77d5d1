"""Long lists of strings and paths in two arrays each.

A Python string takes some 80 bytes, a Path 200 more, and reading one changes its reference count, so that every loader
process soon has a copy of its own of a list. Numbers of an array are shared by all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np

CODING = ("utf-8", "surrogateescape")  # any file name


class Strings(Sequence[str]):
    """A fixed list of strings: their bytes one after the other, and where each ends.

        >>> names = Strings(["cat/1.png", "dog/2.png"])
        >>> names[1], len(names), names == ["cat/1.png", "dog/2.png"]
        ('dog/2.png', 2, True)

    Args:
        strings: what it holds.
    """

    def __init__(self, strings: Iterable[str] = ()) -> None:
        encoded = [text.encode(*CODING) for text in strings]
        ends = [0, *accumulate(map(len, encoded))]
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.array(ends, np.uint32 if ends[-1] < 2**32 else np.int64)

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self._bytes.nbytes + self._ends.nbytes

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]  # negative ones from the end; IndexError beyond it
        return self._bytes[self._ends[i] : self._ends[i + 1]].tobytes().decode(*CODING)

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash((self._bytes.tobytes(), self._ends.tobytes()))

    def __repr__(self) -> str:
        return f"Strings({list(self)})"


class Paths(Sequence[Path | None]):
    """A fixed list of paths, or None where there is no file.

    Args:
        paths: what it holds.
    """

    def __init__(self, paths: Iterable[Path | None] = ()) -> None:
        self._paths = Strings("" if path is None else str(path) for path in paths)

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self._paths.nbytes

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> Path | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path | None]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [Path(path) if path else None for path in self._paths[index]]
        path = self._paths[index]
        return Path(path) if path else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(self._paths)
