"""Read every file of a data set once, in worker processes, and keep the results until a file changes."""

from __future__ import annotations

import hashlib
import inspect as introspection
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from common.files import write_text
from common.surroundings import cores
from common.workers import protect

CACHE = Path("runs/checks")
BATCH = 32  # files per message of a worker
FEW = 64  # files per worker; below it, starting one takes longer than it saves

Inspect = Callable[[Path], Any]
S = TypeVar("S")
T = TypeVar("T")


class WrongFilesError(ValueError):
    """Files of a scan are wrong or cannot be read.

    Attributes:
        reasons: index of each such file -> what is wrong with it.
        results: of all files, None of these.
    """

    def __init__(self, reasons: Mapping[int, str], results: Sequence[Any], title: str) -> None:
        number, first = len(reasons), next(iter(reasons.values()))
        more = f" ({number:,} of {len(results):,} {title} are wrong; this is the first)" * (number > 1)
        super().__init__(first + more)
        self.reasons, self.results = reasons, results


class Scan(list[Any]):
    """Results in the order of the files.

    Attributes:
        opened: how many of the files were read now; the results of the others come from the cache.
    """

    def __init__(self, results: Sequence[Any], opened: int) -> None:
        super().__init__(results)
        self.opened = opened

    def describe(self, what: str) -> str:
        """Return e.g. "20,210 masks (3 read, the others unchanged since an earlier check)"."""
        unchanged = "unchanged since an earlier check"
        others = f"{self.opened:,} read, the others {unchanged}" if self.opened else unchanged
        return f"{len(self):,} {what}" + (f" ({others})" if self.opened < len(self) else "")


def scan_files(paths: Sequence[Path], inspect: Inspect, title: str, cache: Path | None = None) -> Scan:
    """Return `inspect(path)` of every file, in order; a file that has not changed since an earlier scan is not opened.

    A file has changed if its size, its time of modification or the time of its last status change has. Results are
    kept below the cache under a hash of the paths and of the code and arguments of `inspect`.

    Args:
        paths: the files.
        inspect: a function of a module, or a `partial` of one. It returns what JSON can hold and raises a ValueError,
            which names the file, where the file is wrong. It runs in worker processes, so it must not need a GPU.
        title: what is read, e.g. "training masks"; of the progress bar and of errors.
        cache: folder of the results; default: runs/checks.

    Raises:
        WrongFilesError: files are wrong or cannot be read: the first of them, and how many there are. The results of
            the other files are kept.
        ValueError: a worker died.
    """
    stored = (CACHE if cache is None else cache) / f"{_key(paths, inspect)}.json"
    stamps = [_stamp(path) for path in paths]
    known = _load(stored, len(paths)) or [[None, None]] * len(paths)
    todo = [i for i, (stamp, row) in enumerate(zip(stamps, known, strict=True)) if stamp is None or row[0] != stamp]
    results, reasons = [row[1] for row in known], dict[int, str]()
    read = in_workers(partial(_inspect_one, inspect), [paths[i] for i in todo], title)
    for i, (result, reason) in zip(todo, read, strict=True):
        results[i] = result
        if reason:
            reasons[i] = reason
            stamps[i] = None
    if todo:
        _store(stored, json.dumps(list(zip(stamps, results, strict=True))))
    if reasons:
        raise WrongFilesError(reasons, results, title)
    return Scan(results, len(todo))


def _key(paths: Sequence[Path], inspect: Inspect) -> str:
    """Return a hash of the paths and of what is done with the files."""
    arguments = ""
    function: Any = inspect
    if isinstance(inspect, partial):
        function, arguments = inspect.func, repr((inspect.args, sorted(inspect.keywords.items())))
    code = Path(introspection.getfile(function)).read_bytes()
    digest = hashlib.sha256(f"{function.__module__}.{function.__qualname__}{arguments}".encode() + code)
    for path in paths:
        digest.update(b"\0" + os.fsencode(os.path.abspath(path)))
    return digest.hexdigest()[:24]


def _stamp(path: Path) -> str | None:
    """Return what changes with a file; None where it cannot be found, which `inspect` will report."""
    try:
        status = path.stat()
    except OSError:
        return None
    return f"{status.st_size:x}.{status.st_mtime_ns:x}.{status.st_ctime_ns:x}"


def _load(stored: Path, count: int) -> list[list[Any]] | None:
    """Return [stamp, result] of each file of an earlier scan, None where there is none that can be read."""
    try:
        rows = json.loads(stored.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(rows, list) and len(rows) == count and all(isinstance(r, list) and len(r) == 2 for r in rows)
    return rows if whole else None


def _store(stored: Path, text: str) -> None:
    try:
        write_text(stored, text)
    except OSError as error:
        reason = f"{stored.parent}: {error.strerror or error}"
        print(f"results of the check are not kept, so it will take as long again: {reason}", file=sys.stderr)


class _Calls(Dataset[Any]):
    """What a function makes of each item."""

    def __init__(self, function: Callable[[S], T], items: Sequence[S]) -> None:
        self.function, self.items = function, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.function(self.items[i])


def in_workers(
    function: Callable[[S], T], items: Sequence[S], title: str, few: int = FEW, unit: str = "file"
) -> list[T]:
    """Return function(item) of each item in order, computed in worker processes, with a progress bar.

    Args:
        function: returns what can be pickled. The workers are forked, so what it refers to is not copied to them.
        items: its arguments.
        title: what is read, for the progress bar and the error.
        few: items per worker; below it, starting one takes longer than it saves.
        unit: what an item is, for the progress bar and the error.

    Raises:
        ValueError: a worker died.
    """
    workers = min(cores(), len(items) // few)
    loader = protect(DataLoader(
        _Calls(function, items), min(BATCH, few), num_workers=workers, collate_fn=list, worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else the loader would draw from the generator of the run
    ))  # fmt: skip
    rows: list[T] = []
    try:
        with tqdm(desc=f"check {title}", total=len(items), unit=unit, leave=False, disable=None) as bar:
            for batch in loader:
                rows += batch
                bar.update(len(batch))
    except RuntimeError as error:
        if "worker" not in str(error):
            raise
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{title}: a process that read them died after {len(rows):,} of {len(items):,} {unit}s, at "
            f"{items[len(rows)]} or soon after ({reason}); is there enough memory? --skip-check starts without"
        ) from error
    return rows


def _inspect_one(inspect: Inspect, path: Path) -> tuple[Any, str]:
    """Return the result of a file and ""; or None and what is wrong with it."""
    try:
        # As a later scan will read it from the cache.
        return json.loads(json.dumps(inspect(path))), ""
    except ValueError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{path}: {error.strerror or error}"
    except Exception as error:  # noqa: BLE001  decoders raise whatever they like; the file is named below
        reason = f"{path}: cannot be read, {type(error).__name__}: {error}"
    return None, reason if str(path) in reason else f"{path}: {reason}"


def _start_worker(_worker: int) -> None:
    cv2.setNumThreads(0)
