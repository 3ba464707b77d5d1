"""Files in and out: strangers' checkpoints read without running them, ours written whole or not at all."""

import _codecs
import argparse
import contextlib
import filecmp
import hashlib
import os
import pickle
import re
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from converters.backbone import some

_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number that torch < 1.6 wrote first


def sha256(path: Path) -> str:
    """Return the sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path, trust: bool = False) -> Any:
    """Return what a checkpoint file holds, tensors on the CPU and mapped from the file where it can be.

    The kind is told by content: safetensors, torch (zip or the older stream), or a pickle of numpy arrays.

    Args:
        path: the file.
        trust: let the file name any Python class and function to be imported and called.

    Raises:
        ValueError: not a file, cut off, a claim larger than the file, or it wants more than arrays and builtins.
    """
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.is_file())
        inside.sort(key=lambda name: not re.search(r"\.(pth|pt|ckpt|tar|pkl|safetensors)$", name))
        raise ValueError(f"{path} is a directory, give one of its files" + (f": {some(inside)}" if inside else ""))
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; a named network is written timm:NAME, torchvision:NAME or random:ARCH"
        )
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise ValueError(f"{path} is empty")
    try:
        if path.suffix == ".safetensors" or head[8:10] == b'{"':
            return _read_safetensors(path)
        if head.startswith(b"PK"):
            _check_zip(path)
            return _torch_load(path, trust, mmap=True)
        if head.startswith(_LEGACY_TORCH):
            return _torch_load(path, trust, mmap=False)
        if head.startswith((b"\x80", b"(", b"c", b"}")):
            return _read_pickle(path, trust)
    except ImportError as error:
        raise ValueError(f"{path} needs {error.name or error} to be read, which is not installed") from error
    except _Refused:
        raise
    except Exception as error:  # torch, zipfile and pickle raise almost anything on bytes that make no sense
        raise ValueError(f"{path} is cut off or damaged: {' '.join(str(error).split())[:200]}") from error
    hint = ", an HTML page: the download failed" if head.lstrip().startswith(b"<") else ""
    raise ValueError(f"{path} is no torch, safetensors or pickle file (it starts with {head[:8]!r}{hint})")


class _Refused(ValueError):
    """The file is whole, and not safe."""


def _refused(path: Path, names: list[str]) -> _Refused:
    return _Refused(
        f"{path} asks for {some(sorted(set(names)), 8)}: more than arrays and builtins, so it was not read; "
        "--trust reads it and lets it run any code"
    )


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except SafetensorError as error:
        raise ValueError(error) from error


def _check_zip(path: Path) -> None:
    """torch.save stores its records as they are: whatever would grow on reading was not written by it."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if any("/code/" in r.filename for r in records):
        raise _Refused(f"{path} is a TorchScript program, not a checkpoint; save its state_dict() with torch.save")
    claimed, size = sum(r.file_size for r in records), path.stat().st_size
    if claimed > size or any(r.compress_type != zipfile.ZIP_STORED for r in records):
        raise _Refused(f"{path} claims {claimed:,} bytes in a file of {size:,}: torch.save writes no such file")


def _torch_load(path: Path, trust: bool, mmap: bool) -> Any:
    if trust:  # --trust: the user says that the file is theirs
        return torch.load(path, map_location="cpu", mmap=mmap, weights_only=False)
    with torch.serialization.safe_globals(_TORCH_ALLOWED):
        try:
            return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
        except pickle.UnpicklingError as error:
            # torch's own text says which class in its middle and recommends the unsafe flag at its start.
            names = re.findall(r"(?:GLOBAL|class|type|function) ([\w.]+\.[\w.]+)", str(error))
            if not names or "nsupported" not in str(error):
                raise
            if mmap:
                names += torch.serialization.get_unsafe_globals_in_checkpoint(path)
            raise _refused(path, names) from error


class _ArrayType:
    """Stands for numpy.ndarray in a pickle: named as an argument, never to be called with a shape."""


def _blank_array(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """Stand in for numpy's _reconstruct, which would allocate any shape it is told; pickles say (0,)."""
    if kind is not _ArrayType or shape != (0,):
        raise pickle.UnpicklingError(f"an array of shape {shape} before its bytes")
    return np.ndarray((0,), dtype=np.int8)


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
    return _codecs.encode(text, encoding)


_CORES = ("numpy.core", "numpy._core")  # before and after numpy 2
_SCALAR = np._core.multiarray.scalar  # type: ignore[attr-defined]
_TORCH_ALLOWED: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "u1", "?")),
    *((_SCALAR, f"{core}.multiarray.scalar") for core in _CORES),
]
_PICKLE_ALLOWED: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "numpy.ndarray": _ArrayType,
    "numpy.dtype": np.dtype,
    "_codecs.encode": _encode,
    **{f"{core}.multiarray._reconstruct": _blank_array for core in _CORES},
    **{f"{core}.multiarray.scalar": _SCALAR for core in _CORES},
    **{f"{core}.numeric._frombuffer": np._core.numeric._frombuffer for core in _CORES},  # type: ignore[attr-defined]
    **{f"{m}.{kind.__name__}": kind for m in ("builtins", "__builtin__") for kind in (set, frozenset, complex)},
}


class _Inert:
    """Takes the place of a class that is not allowed: does nothing, so that one reading finds every name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class _ArrayUnpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")  # as detectron2 reads its zoo, pickled by Python 2
        self.refused: list[str] = []

    def find_class(self, module: str, name: str) -> Any:
        if (full := f"{module}.{name}") in _PICKLE_ALLOWED:
            return _PICKLE_ALLOWED[full]
        self.refused.append(full)
        return _Inert


def _read_pickle(path: Path, trust: bool) -> Any:
    with path.open("rb") as file:
        if trust:
            return pickle.load(file, encoding="latin1")
        unpickler = _ArrayUnpickler(file)
        try:
            content = unpickler.load()
        except Exception:
            if unpickler.refused:  # an inert stand-in cannot do what the file wanted of it
                raise _refused(path, unpickler.refused) from None
            raise
    if unpickler.refused:
        raise _refused(path, unpickler.refused)
    return content


@contextlib.contextmanager
def staged(folder: Path, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder to write in; its files move into `folder` together when the block ends well.

    Raises:
        ValueError: `folder` does not exist, or holds another file of such a name and `force` is not given.
    """
    if not folder.is_dir():
        raise ValueError(f"the folder {folder} does not exist")
    with tempfile.TemporaryDirectory(prefix=".converting-", dir=folder) as name:
        yield Path(name)
        parts = sorted(Path(name).iterdir())
        for part in parts:
            there = folder / part.name
            if there.exists() and not force and not filecmp.cmp(part, there, shallow=False):
                raise ValueError(f"{there} is there and differs; --force writes over it, --out names another")
        for part in parts:
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(folder / part.name)
