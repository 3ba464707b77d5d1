"""What a pickle of unknown origin may call, written anew so that no argument can do harm, and objects for all else.

Every function takes the file's `Budget` first and refuses arguments that the writers of such files never give.
"""

import argparse
import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ALLOWANCE = 256 << 20  # bytes that reading a file may take besides its size
INSTRUCTION, CALL = 128, 1024  # bytes that are counted for each: both take memory and time
_MAX_ARGUMENTS, _MAX_DIMS, _MAX_NUMBERS, MAX_NAME = 16, 32, 1 << 48, 500
_MAX_KEY = 1 << 60  # smaller integers have hashes of their own
_PLAIN_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|c8|c16")


class Inert:
    """What a file describes by a class or function that is not loaded. No code of it has run.

    Attributes:
        name: the class or function, or what else it is, e.g. "mmengine.logging.history_buffer.HistoryBuffer".
        fields: attributes and entries that the file gives it.
    """

    __slots__ = ("fields", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.fields: dict[Any, Any] = {}

    def __repr__(self) -> str:
        return f"<{self.name}, not loaded>"


@dataclass(frozen=True)
class Function:
    """A function that a pickle may call; `call` takes the budget and the arguments."""

    name: str
    call: Callable[..., Any]


class DType(Inert):
    """A numpy dtype: None unless it is one of plain numbers. Its byte order follows in a second instruction."""

    __slots__ = ("dtype",)

    def __init__(self, code: str) -> None:
        super().__init__(f"numpy.dtype {code}")
        self.dtype = np.dtype(code) if _PLAIN_DTYPE.fullmatch(code) else None

    def set_byte_order(self, state: Any) -> None:
        """Take the byte order from numpy's state of a dtype, and nothing else."""
        if self.dtype is not None:
            self.dtype = self.dtype.newbyteorder(state[1] if state[1] in ("<", ">") else "=")


class Storage(Inert):
    """A storage of a torch file as a one-dimensional tensor."""

    __slots__ = ("flat",)

    def __init__(self, flat: Tensor) -> None:
        super().__init__("a torch storage")
        self.flat = flat


class TooLarge(pickle.UnpicklingError):
    """Reading the file takes more memory or time than its size justifies."""


class Budget:
    """How many bytes reading a file may still take: by instructions, calls and copies of data."""

    def __init__(self, size: int) -> None:
        self.total = self.left = size + _ALLOWANCE

    def spend(self, count: int) -> None:
        """Subtract `count`; raise TooLarge where it is more than what is left."""
        self.left -= count
        if self.left < 0:
            raise TooLarge(
                f"reading it would take more than {self.total >> 20:,} MiB ({_ALLOWANCE >> 20} MiB and its size)"
            )


def call(budget: Budget, function: Any, arguments: Any) -> Any:
    """Return what a call gives that a pickle asks for: an `Inert` object where it is not one of `FUNCTIONS`."""
    budget.spend(CALL)
    if isinstance(function, Inert):
        return Inert(function.name)
    if not isinstance(function, Function):
        raise pickle.UnpicklingError(f"a call of a {type(function).__name__}")
    if type(arguments) is not tuple or len(arguments) > _MAX_ARGUMENTS:
        raise pickle.UnpicklingError(f"the arguments of {function.name}")
    return function.call(budget, *arguments)


def plain_key(key: Any) -> Any:
    """Return a key of a dict or member of a set; one whose hash could take long is replaced by an Inert object."""
    if type(key) in (str, bytes, float, bool, type(None)) or (type(key) is int and -_MAX_KEY < key < _MAX_KEY):
        return key
    return key if isinstance(key, Inert) else Inert(f"a key of type {type(key).__name__}")


def _raw(budget: Budget, data: Any) -> bytes | bytearray:
    """Return an array's bytes, which Python 2 stored as a string."""
    if isinstance(data, str):
        budget.spend(len(data))
        return data.encode("latin1")
    if not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError(f"a {type(data).__name__} for the bytes of an array")
    return data


def _check_whole(numbers: Any) -> None:
    """Raise UnpicklingError unless this is a short tuple of whole numbers that fit a file."""
    if type(numbers) is not tuple or len(numbers) > _MAX_DIMS:
        raise pickle.UnpicklingError("an array without a shape")
    if not all(type(n) is int and 0 <= n <= _MAX_NUMBERS for n in numbers):
        raise pickle.UnpicklingError("an array of an impossible shape")


def _count(shape: Any) -> int:
    """Return the number of elements of a shape."""
    _check_whole(shape)
    if (count := math.prod(shape)) > _MAX_NUMBERS:
        raise pickle.UnpicklingError("an array of an impossible shape")
    return count


def fill(budget: Budget, array: np.ndarray, state: Any) -> None:
    """Give the empty array that `_reconstruct` made its content."""
    _version, shape, kind, fortran, data = state
    if not isinstance(kind, DType) or array.size:
        raise pickle.UnpicklingError("the state of an array")
    if kind.dtype is None:  # strings, objects, records
        inert = Inert(f"a numpy array of {kind.name}")
        array.__setstate__((1, (), np.dtype("O"), False, [inert]))  # type: ignore[arg-type]  # the stub asks for np.bool
        return
    data = bytes(_raw(budget, data))
    if _count(shape) * kind.dtype.itemsize != len(data):
        raise pickle.UnpicklingError(f"an array of shape {shape} from {len(data):,} bytes")
    budget.spend(len(data))
    array.__setstate__((1, shape, kind.dtype, bool(fortran), data))  # type: ignore[arg-type]


def _new_dict(_: Budget, factory: Any = None) -> dict[Any, Any]:
    return {}  # a defaultdict's factory is not needed


def _reconstruct(_: Budget, kind: Any, shape: Any, _code: Any) -> Any:
    """Replace numpy's function, which allocates any shape asked for; pickles ask for (0,)."""
    if kind is not FUNCTIONS["numpy.ndarray"]:
        return Inert(kind.name)  # a subclass of ndarray
    return np.ndarray((0,), dtype=np.int8) if shape == (0,) else _no_array(_, shape)


def _no_array(_: Budget, shape: Any = None, *rest: Any) -> None:
    raise pickle.UnpicklingError("an array of a shape without its bytes")


def _dtype(_: Budget, code: Any, *rest: Any) -> Any:
    return DType(code) if type(code) is str and len(code) < _MAX_DIMS else Inert("a numpy dtype of records")


def _scalar(budget: Budget, kind: Any, data: Any = None) -> Any:
    if kind.dtype is None:
        return Inert(f"a number of {kind.name}")
    (value,) = np.frombuffer(_raw(budget, data), kind.dtype)
    return value


def _from_buffer(budget: Budget, data: Any, kind: Any, shape: Any, order: Any) -> Any:
    if kind.dtype is None:
        return Inert(f"a numpy array of {kind.name}")
    _count(shape)
    return np.frombuffer(_raw(budget, data), kind.dtype).reshape(shape, order="F" if order == "F" else "C")


def _encode(budget: Budget, text: Any, encoding: Any = "") -> bytes | bytearray:
    if encoding != "latin1" or type(text) is not str:
        raise pickle.UnpicklingError("bytes in an unknown encoding")
    return _raw(budget, text)


def _members(budget: Budget, items: Any) -> Any:
    """Return the items of a list or tuple that a call is about to copy."""
    if type(items) not in (list, tuple):
        raise pickle.UnpicklingError(f"members in a {type(items).__name__}")
    budget.spend(INSTRUCTION * len(items))
    return items


def _ordered(budget: Budget, pairs: Any = ()) -> OrderedDict[Any, Any]:
    return OrderedDict((plain_key(key), value) for key, value in _members(budget, pairs))


def _complex(_: Budget, real: Any, imaginary: Any) -> complex:
    if not isinstance(real, float) or not isinstance(imaginary, float):
        raise pickle.UnpicklingError("a complex number")
    return complex(real, imaginary)


def _tensor(_: Budget, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    """Return the tensor of a storage, which must hold all of it: torch's function would make a small storage larger."""
    if not isinstance(storage, Storage):
        return Inert(storage.name)  # of quantised numbers or another type
    _check_whole((offset,))
    _check_whole(stride)
    if _count(size) == 0:
        return storage.flat.new_empty(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= storage.flat.numel():
        raise pickle.UnpicklingError(f"a tensor of shape {size} in a storage of {storage.flat.numel():,} numbers")
    return storage.flat.as_strided(size, stride, offset)


def _meta_tensor(_: Budget, dtype: Any, size: Any, *rest: Any) -> Tensor:
    _count(size)
    return torch.empty(size, dtype=dtype if isinstance(dtype, torch.dtype) else None, device="meta")


def _parameter(_: Budget, data: Any, *rest: Any) -> Any:
    return data


def _layout(_: Budget, name: str) -> Inert:
    return Inert(name[:MAX_NAME])


def _inert(_: Budget, kind: Inert, *rest: Any) -> Inert:
    return Inert(kind.name)


OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_CORES = ("numpy.core", "numpy._core")  # before and after numpy 2
_CALLS: dict[str, Callable[..., Any]] = {
    "argparse.Namespace": lambda _: argparse.Namespace(),
    "builtins.complex": _complex,
    "builtins.frozenset": lambda budget, items=(): frozenset(map(plain_key, _members(budget, items))),
    "builtins.set": lambda budget, items=(): set(map(plain_key, _members(budget, items))),
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": _new_dict,
    "copyreg._reconstructor": lambda budget, kind, *_: call(budget, kind, ()),
    "_codecs.encode": _encode,
    "numpy.ndarray": _no_array,
    "numpy.dtype": _dtype,
    **{f"{core}.multiarray._reconstruct": _reconstruct for core in _CORES},
    **{f"{core}.multiarray.scalar": _scalar for core in _CORES},
    **{f"{core}.numeric._frombuffer": _from_buffer for core in _CORES},
    "torch.Size": lambda budget, items=(): tuple(_members(budget, items)),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta_tensor,
    "torch._utils._rebuild_sparse_tensor": _inert,
    "torch._utils._rebuild_qtensor": lambda _, *rest: Inert("a quantised tensor"),
    "torch.serialization._get_layout": _layout,
    "torch._tensor._rebuild_from_type_v2": lambda budget, function, kind, arguments, *_: call(
        budget, function, arguments
    ),
}
FUNCTIONS = {name: Function(name, function) for name, function in _CALLS.items()}
