"""Read pickles of unknown origin: plain data, numpy arrays and torch tensors. Nothing else is imported or called.

Python's own unpickler reads the instructions. Those that call, build or fill an object are replaced here: they know
the functions of converters/stand_ins.py and turn everything else into an `Inert` object. `Budget` bounds the cost.
"""

import argparse
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from converters.stand_ins import (
    CALL,
    FUNCTIONS,
    INSTRUCTION,
    MAX_NAME,
    OLD_MODULES,
    Budget,
    DType,
    Inert,
    Storage,
    call,
    fill,
    plain_key,
)

# Named in a message rather than ignored: a checkpoint has no use for them. They are not called either way.
_RUNS_CODE = re.compile(
    r"(os|posix|nt|sys|subprocess|pty|shutil|socket|importlib|imp|runpy|ctypes|_ctypes|code|pdb|timeit|webbrowser)\."
    r"|builtins\.(eval|exec|compile|open|__import__|input|breakpoint|globals|locals|vars|setattr|delattr)$"
)
_MAX_BITS = 8192
_COSTS = [INSTRUCTION] * 256
for _code in (pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.EMPTY_SET, pickle.MARK):  # objects for the collector
    _COSTS[_code[0]] = 3 * INSTRUCTION
_STORAGES = {
    f"torch.{name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
    }.items()
}  # fmt: skip


class _Dispatch(dict[int, Callable[..., None]]):
    """The unpickler's table of instructions, which counts them."""

    def __init__(self, table: dict[int, Callable[..., None]], budget: Budget) -> None:
        super().__init__(table)
        self.budget = budget

    def __getitem__(self, instruction: int) -> Callable[..., None]:
        self.budget.spend(_COSTS[instruction])
        return super().__getitem__(instruction)


class Readable(Protocol):
    """A file whose `read` never allocates more than it has left."""

    def read(self, size: int, /) -> bytes: ...
    def readline(self) -> bytes: ...


class Unpickler(pickle._Unpickler):  # the one in Python: instructions can be replaced
    """Reads one pickle.

    Args:
        file: positioned at the pickle.
        budget: of the whole file.
        storage: returns the storage of a torch file as a one-dimensional tensor, by key, dtype and number of elements.

    Attributes:
        code: names in the file that run code where a pickle is trusted.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]

    def __init__(
        self, file: Readable, budget: Budget, storage: Callable[[str, torch.dtype, int], Tensor] | None = None
    ) -> None:
        super().__init__(file, encoding="latin1")  # as detectron2 reads its zoo, pickled by Python 2
        self.dispatch = _Dispatch(_INSTRUCTIONS, budget)  # type: ignore[misc]
        self.budget, self.storage = budget, storage
        self.code: list[str] = []

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name; nothing is imported."""
        if len(module) + len(name) > MAX_NAME:
            raise pickle.UnpicklingError(f"a name of {len(module) + len(name):,} characters")
        self.budget.spend(CALL)
        full = f"{OLD_MODULES.get(module, module)}.{name}"
        if full in _STORAGES:
            return _STORAGES[full]
        if _RUNS_CODE.match(full):
            self.code.append(full)
        return FUNCTIONS.get(full) or Inert(full)

    def persistent_load(self, pid: Any) -> Any:
        """Return the storage, or the class of a module, that a torch file refers to."""
        if self.storage is None or type(pid) is not tuple or len(pid) not in (4, 5, 6):
            raise pickle.UnpicklingError("a reference that is not to a storage of a torch file")
        if len(pid) == 4:  # ("module", class, its file, its source), by torch < 1.6
            return pid[1]
        kind, dtype, key, _location, count, *view = pid
        if kind != "storage" or type(key) is not str or type(count) is not int or any(view):
            raise pickle.UnpicklingError("a reference that is not to a storage of a torch file")
        self.budget.spend(CALL)
        return Storage(self.storage(key, dtype, count)) if isinstance(dtype, torch.dtype) else Inert(dtype.name)

    def _instantiate(self, klass: Any, arguments: list[Any]) -> None:
        self.append(call(self.budget, klass, tuple(arguments)))

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = call(self.budget, self.stack[-1], arguments)

    def load_newobj_ex(self) -> None:
        if self.stack.pop():
            raise pickle.UnpicklingError("a call with keywords")
        self.load_reduce()

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is np.ndarray:
            fill(self.budget, target, state)
        elif isinstance(target, DType):
            target.set_byte_order(state)
        elif isinstance(target, Inert | argparse.Namespace):
            fields = target.fields if isinstance(target, Inert) else vars(target)
            if isinstance(state, dict):
                self.budget.spend(INSTRUCTION * len(state))
                fields.update({key: value for key, value in state.items() if type(key) is str})
        elif isinstance(target, OrderedDict):
            if isinstance(state, dict) and "_metadata" in state:  # a state_dict's versions of its modules
                target._metadata = state["_metadata"]  # type: ignore[attr-defined]
        elif not isinstance(target, Tensor):  # whose attributes are not needed
            raise pickle.UnpicklingError(f"a state for a {type(target).__name__}")

    def _set(self, target: Any, items: list[Any]) -> None:
        entries = target.fields if isinstance(target, Inert) else target
        if not isinstance(entries, dict):
            raise pickle.UnpicklingError(f"entries for a {type(target).__name__}")
        entries.update((plain_key(items[i]), items[i + 1]) for i in range(0, len(items), 2))

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self._set(self.stack[-1], items)

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set(self.stack[-1], items)

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is set:
            target.update(map(plain_key, items))
        elif not isinstance(target, Inert):
            raise pickle.UnpicklingError(f"items for a {type(target).__name__}")

    def load_append(self) -> None:
        self._extend([self.stack.pop()])

    def load_extend(self) -> None:
        self._extend(self.pop_mark())

    def load_frozenset(self) -> None:
        self.append(frozenset(map(plain_key, self.pop_mark())))

    def load_bytearray8(self) -> None:
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))


def _number(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return an instruction that refuses whole numbers which Python does not print."""

    def instruction(unpickler: Unpickler) -> None:
        load(unpickler)
        if unpickler.stack[-1].bit_length() > _MAX_BITS:
            raise pickle.UnpicklingError(f"a whole number of {unpickler.stack[-1].bit_length():,} bits")

    return instruction


_INSTRUCTIONS: dict[int, Callable[..., None]] = dict(pickle._Unpickler.dispatch)
_INSTRUCTIONS |= {
    code[0]: handler
    for code, handler in {
        pickle.REDUCE: Unpickler.load_reduce,
        pickle.NEWOBJ: Unpickler.load_reduce,
        pickle.NEWOBJ_EX: Unpickler.load_newobj_ex,
        pickle.BUILD: Unpickler.load_build,
        pickle.SETITEM: Unpickler.load_setitem,
        pickle.SETITEMS: Unpickler.load_setitems,
        pickle.DICT: Unpickler.load_dict,
        pickle.APPEND: Unpickler.load_append,
        pickle.APPENDS: Unpickler.load_extend,
        pickle.ADDITEMS: Unpickler.load_extend,
        pickle.FROZENSET: Unpickler.load_frozenset,
        pickle.BYTEARRAY8: Unpickler.load_bytearray8,
    }.items()
}
for _code in (pickle.INT, pickle.LONG, pickle.LONG4):
    _INSTRUCTIONS[_code[0]] = _number(_INSTRUCTIONS[_code[0]])
for _code in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER):
    del _INSTRUCTIONS[_code[0]]
