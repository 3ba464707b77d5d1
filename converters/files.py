"""Read checkpoint files of unknown origin without running code in them."""

import io
import mmap
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from converters.messages import shorten
from converters.options import require_file
from converters.pickles import Unpickler
from converters.stand_ins import Budget, Inert, TooLarge

_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number that torch < 1.6 wrote first
_MAX_DIRECTORY = 8 << 20  # bytes of a zip's directory and of a safetensors header: about 80,000 tensors
_BIG_ENDIAN = "load it there and save it as safetensors"
_MAX_KEYS, _MAX_KEY = 20_000, 300  # tensors in one mapping, and characters in the name of one


def read(path: Path, trust: bool = False) -> Any:
    """Return the content of a checkpoint file, tensors on the CPU and memory-mapped where possible.

    The kind of file is recognised by its content: safetensors, torch (zip or the older stream), or a pickle of numpy
    arrays. Every object that is none of tensors, arrays and builtins is an `Inert`, of which no code has run.

    Args:
        path: the file.
        trust: let the file import and call any Python class and function.

    Raises:
        ValueError: no such file, or one that is damaged, claims more bytes than it has, takes more memory than its size
            and 256 MiB to read, or names functions that run code.
    """
    require_file(path)
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise ValueError(f"{path} is empty")
    try:
        content = _read_kind(path, head, trust)
    except ImportError as error:
        raise ValueError(f"{path} needs {error.name or error} to be read, which is not installed") from error
    except _Refused:
        raise
    except TooLarge as error:
        raise ValueError(f"{path} was not read: {error}; --trust reads it and lets it run any code") from error
    except Exception as error:  # torch, zipfile and pickle raise almost anything on damaged bytes
        raise ValueError(f"{path} is cut off or damaged: {' '.join(str(error).split())[:200]}") from error
    _check_keys(content, path)
    return content


def _read_kind(path: Path, head: bytes, trust: bool) -> Any:
    if path.suffix == ".safetensors" or head[8:10] == b'{"':
        from safetensors.torch import load_file

        if (size := int.from_bytes(head[:8], "little")) > _MAX_DIRECTORY:
            raise ValueError(f"a header of {size:,} bytes, more than {_MAX_DIRECTORY:,}")
        return load_file(path)
    zipped, legacy = head.startswith(b"PK"), head.startswith(_LEGACY_TORCH)
    if not (zipped or legacy or head.startswith((b"\x80", b"(", b"c", b"}"))):
        hint = ", an HTML page: the download failed" if head.lstrip().startswith(b"<") else ""
        raise _Refused(f"{path} is no torch, safetensors or pickle file (it starts with {head[:8]!r}{hint})")
    with path.open("rb") as file:
        if trust and not zipped and not legacy:
            return pickle.load(file, encoding="latin1")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch wants memory that may be written
    records = _check_zip(mapped, path) if zipped else {}
    if trust:  # --trust: the user answers for the code in the file
        return torch.load(path, map_location="cpu", mmap=zipped, weights_only=False)
    budget = Budget(len(mapped))
    if zipped:
        return _read_zip(mapped, records, budget, path)
    return _read_legacy(mapped, budget, path) if legacy else _load(Unpickler(mapped, budget), path)


class _Refused(ValueError):
    """The file is undamaged but not safe to read, or no checkpoint."""


def _load(unpickler: Unpickler, path: Path) -> Any:
    """Return the content of a pickle; raise _Refused where it names what runs code, or is one object of a class."""
    try:
        content = unpickler.load()
    finally:
        if unpickler.code:
            raise _Refused(
                f"{path} asks for {shorten(sorted(set(unpickler.code)), 8)}: code to run, which no checkpoint needs, "
                "so it was not read; --trust reads it and lets it run any code"
            )
    if isinstance(content, Inert):
        raise _Refused(
            f"{path} asks for {shorten([content.name])}: an object of that class and no mapping of tensors, so it was "
            "not read; save its state_dict(), or --trust reads it and lets it run any code"
        )
    return content


class _Bounded(io.BufferedReader):
    """A zip file whose directory is not read where it is too large."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"a directory of {size:,} bytes, more than {_MAX_DIRECTORY:,}")
        return super().read(size)


def _check_zip(mapped: mmap.mmap, path: Path) -> dict[str, tuple[int, int]]:
    """Return where each record's bytes begin and end, with every checksum compared.

    torch.save writes no zip whose records are compressed, which would grow when read, or overlap.
    """
    with _Bounded(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
        records, limit = sorted(archive.infolist(), key=lambda r: r.header_offset), archive.start_dir
    if any("/code/" in r.filename for r in records):
        raise _Refused(f"{path} is a TorchScript program, not a checkpoint; save its state_dict() with torch.save")
    claimed, size = sum(r.file_size for r in records), len(mapped)
    if claimed > size or any(r.compress_type != zipfile.ZIP_STORED for r in records):
        raise _Refused(f"{path} claims {claimed:,} bytes in a file of {size:,}: torch.save writes no such file")
    checked = any(r.CRC for r in records)  # torch.serialization.set_crc32_options(False) writes zeros
    found: dict[str, tuple[int, int]] = {}
    end = 0
    for r in records:
        header = mapped[r.header_offset : r.header_offset + 30] if r.header_offset >= end else b""
        if header[:4] != b"PK\3\4" or r.filename in found:
            raise zipfile.BadZipFile(f"the record {r.filename[:80]!r} overlaps another")
        start = r.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        end = start + r.file_size
        if end > limit:
            raise zipfile.BadZipFile(f"the record {r.filename[:80]!r} ends behind the file")
        with memoryview(mapped) as view:
            if checked and zlib.crc32(view[start:end]) != r.CRC:
                raise zipfile.BadZipFile(f"the record {r.filename[:80]!r} does not match its checksum")
        found[r.filename] = start, end
    return found


def _read_zip(mapped: mmap.mmap, records: Mapping[str, tuple[int, int]], budget: Budget, path: Path) -> Any:
    """Read what torch ≥ 1.6 writes: a pickle, and a record for each storage."""
    root = next((name.removesuffix("data.pkl") for name in records if re.fullmatch("[^/]*/data.pkl", name)), None)
    if root is None:
        raise _Refused(f"{path} is a zip file that torch.save did not write")

    def content(name: str) -> bytes:
        start, end = records.get(root + name, (0, 0))
        budget.spend(end - start)
        return mapped[start:end]

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        start, end = records[f"{root}data/{key}"]
        return _numbers(mapped, start, end, dtype, count, budget)

    if content("byteorder") == b"big":
        raise _Refused(f"{path} was written by a big-endian computer: {_BIG_ENDIAN}")
    return _load(Unpickler(io.BytesIO(content("data.pkl")), budget, storage), path)


def _numbers(mapped: mmap.mmap, start: int, end: int, dtype: torch.dtype, count: int, budget: Budget) -> Tensor:
    """Return `count` numbers at `start` of the file, memory-mapped where they are aligned."""
    size = count * dtype.itemsize
    if not 0 <= size <= end - start:
        raise ValueError(f"a storage of {size:,} bytes in {end - start:,}")
    if not count:
        return torch.empty(0, dtype=dtype)
    if start % dtype.itemsize:
        budget.spend(size)
        return torch.frombuffer(bytearray(mapped[start : start + size]), dtype=dtype)
    return torch.frombuffer(mapped, dtype=dtype, count=count, offset=start)


def _read_legacy(mapped: mmap.mmap, budget: Budget, path: Path) -> Any:
    """Read what torch < 1.6 writes: pickles, the last of which lists the storages that follow."""
    storages: dict[str, Tensor] = {}

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        if key not in storages:
            budget.spend(max(0, count) * dtype.itemsize)
            storages[key] = torch.empty(count, dtype=dtype)  # filled below
        if (storages[key].dtype, storages[key].numel()) != (dtype, count):
            raise ValueError(f"two storages {key[:80]!r}")
        return storages[key]

    for _ in ("magic number", "version"):
        Unpickler(mapped, budget).load()
    if Unpickler(mapped, budget).load()["little_endian"] is not True:
        raise _Refused(f"{path} was written by a big-endian computer: {_BIG_ENDIAN}")
    content = _load(Unpickler(mapped, budget, storage), path)
    keys = Unpickler(mapped, budget).load()
    if any(type(key) is not str for key in keys) or sorted(keys) != sorted(storages):
        raise ValueError("the storages are not those of the tensors")
    start = mapped.tell()
    for flat in map(storages.__getitem__, keys):
        if int.from_bytes(mapped[start : start + 8], "little") != flat.numel():
            raise ValueError("a storage of another size")
        start += 8
        flat.copy_(_numbers(mapped, start, len(mapped), flat.dtype, flat.numel(), budget))
        start += flat.nbytes
    return content


def _check_keys(content: Any, path: Path) -> None:
    """Raise ValueError where a mapping has more or longer names of tensors than the rules of formats can sort."""
    left, seen = [content], set()
    while left:
        node = left.pop()
        if not isinstance(node, Mapping) or id(node) in seen:
            continue
        seen.add(id(node))
        left += node.values()
        names = [str(key) for key, value in node.items() if isinstance(value, Tensor | np.ndarray)]
        if len(names) > _MAX_KEYS:
            raise ValueError(f"{path} holds {len(names):,} tensors in one mapping, more than {_MAX_KEYS:,}")
        if longest := next((name for name in names if len(name) > _MAX_KEY), None):
            raise ValueError(
                f"{path} holds a name of {len(longest):,} characters, more than {_MAX_KEY}: {shorten([longest])}"
            )
