"""Read checkpoint files of unknown origin without running code in them."""

import _codecs
import argparse
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from converters.messages import shorten

_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number that torch < 1.6 wrote first


def read(path: Path, trust: bool = False) -> Any:
    """Return the content of a checkpoint file, tensors on the CPU and memory-mapped where possible.

    The kind of file is recognised by its content: safetensors, torch (zip or the older stream), or a pickle of numpy
    arrays.

    Args:
        path: the file.
        trust: let the file import and call any Python class and function.

    Raises:
        ValueError: no such file, or one that is truncated, claims more bytes than it has, or asks for more than
            arrays and builtins.
    """
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.is_file())
        inside.sort(key=lambda name: not re.search(r"\.(pth|pt|ckpt|tar|pkl|safetensors)$", name))
        raise ValueError(f"{path} is a directory, give one of its files" + (f": {shorten(inside)}" if inside else ""))
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
            from safetensors.torch import load_file

            return load_file(path)
        if head.startswith((b"PK", _LEGACY_TORCH)):
            return _torch_load(path, trust, zipped=head.startswith(b"PK"))
        if head.startswith((b"\x80", b"(", b"c", b"}")):
            return _read_pickle(path, trust)
    except ImportError as error:
        raise ValueError(f"{path} needs {error.name or error} to be read, which is not installed") from error
    except _Refused:
        raise
    except Exception as error:  # torch, zipfile and pickle raise almost anything on damaged bytes
        raise ValueError(f"{path} is cut off or damaged: {' '.join(str(error).split())[:200]}") from error
    hint = ", an HTML page: the download failed" if head.lstrip().startswith(b"<") else ""
    raise ValueError(f"{path} is no torch, safetensors or pickle file (it starts with {head[:8]!r}{hint})")


class _Refused(ValueError):
    """The file is undamaged but not safe to read."""


def _refused(path: Path, names: list[str]) -> _Refused:
    return _Refused(
        f"{path} asks for {shorten(sorted(set(names)), 8)}: more than arrays and builtins, so it was not read; "
        "--trust reads it and lets it run any code"
    )


def _check_zip(path: Path) -> None:
    """Refuse zip files that torch.save does not write: compressed ones, which would grow when read, and TorchScript."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if any("/code/" in r.filename for r in records):
        raise _Refused(f"{path} is a TorchScript program, not a checkpoint; save its state_dict() with torch.save")
    claimed, size = sum(r.file_size for r in records), path.stat().st_size
    if claimed > size or any(r.compress_type != zipfile.ZIP_STORED for r in records):
        raise _Refused(f"{path} claims {claimed:,} bytes in a file of {size:,}: torch.save writes no such file")


def _torch_load(path: Path, trust: bool, zipped: bool) -> Any:
    if zipped:
        _check_zip(path)
    with torch.serialization.safe_globals(_TORCH_ALLOWED):
        try:  # --trust: the user vouches for the file
            return torch.load(path, map_location="cpu", mmap=zipped, weights_only=not trust)
        except pickle.UnpicklingError as error:
            # Not torch's own message: it recommends the unsafe flag before it names the class.
            names = re.findall(r"(?:GLOBAL|class|type|function) ([\w.]+\.[\w.]+)", str(error))
            if not names or "nsupported" not in str(error):
                raise
            if zipped:
                names += torch.serialization.get_unsafe_globals_in_checkpoint(path)
            raise _refused(path, names) from error


class _ArrayType:
    """Stand-in for numpy.ndarray in a pickle: an argument of _reconstruct, never called with a shape."""


def _blank_array(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """Replace numpy's _reconstruct, which allocates any shape asked for; pickles ask for (0,)."""
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
    """Stand-in for a class that is not allowed: does nothing, so that one pass finds all such names."""

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
            if unpickler.refused:  # the stand-in lacks what the file called
                raise _refused(path, unpickler.refused) from None
            raise
    if unpickler.refused:
        raise _refused(path, unpickler.refused)
    return content
