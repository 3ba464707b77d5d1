"""Files that are made to do harm, by name; and what reading one costs.

python -m tests.converters.hostile FOLDER reads every file of a folder and prints JSON.
"""

import io
import json
import pickle
import resource
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

SECONDS, MEMORY = 2.0, 512 << 20  # of processor time; of memory beside four times the file's size
_P2, _DTYPE = b"\x80\x02", b"cnumpy\ndtype\nX\x02\x00\x00\x00%sK\x00K\x01\x87R"
_EMPTY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"


def _int(value: int) -> bytes:
    return pickle.dumps(value, protocol=2)[2:-1]


def _bytes(data: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(data)) + data


def _nested(depth: int, pair: bytes) -> bytes:
    """Return a pickle whose object has 2**depth leaves and little memory."""
    return b"N" + b"".join(b"q\x00h\x00" + pair for _ in range(depth))


def _short_pickles() -> dict[str, bytes]:
    """Return hostile pickles without their first opcode."""
    huge = _int(1 << 33)
    return {
        "a memo index": b"Nr\xff\xff\xff\x7f.",
        "bytearray(n)": b"c__builtin__\nbytearray\n" + huge + b"\x85R.",
        "bytes(n)": b"cbuiltins\nbytes\n" + huge + b"\x85R.",
        "a list of a range": b"cbuiltins\nlist\ncbuiltins\nrange\n" + huge + b"\x85R\x85R.",
        "a set of a range": b"cbuiltins\nset\ncbuiltins\nrange\n" + huge + b"\x85R\x85R.",
        "a string times n": b"coperator\nmul\nX\x01\x00\x00\x00x" + huge + b"\x86R.",
        "str.join": b"cbuiltins\ngetattr\nX\x01\x00\x00\x00xX\x04\x00\x00\x00join\x86R.",
        "ndarray((n,))": b"cnumpy\nndarray\n" + huge + b"\x85\x85R.",
        "zeros(n)": b"cnumpy\nzeros\n" + huge + b"\x85R.",
        "an array before its bytes": _EMPTY.replace(b"K\x00\x85", huge + b"\x85") + b".",
        "Size of a string": b"ctorch\nSize\nX\x01\x00\x00\x00x\x85R.",
        "BYTEARRAY8 of 8 GB": b"\x80\x05\x96" + struct.pack("<Q", 1 << 33) + b"x.",
        "BINBYTES8 of 8 GB": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 33) + b"x.",
        "BINBYTES of 4 GB": b"\x80\x03B" + struct.pack("<I", (1 << 32) - 1) + b"x.",
        "a frame of 8 GB": b"\x80\x04\x95" + struct.pack("<Q", 1 << 33) + b"x.",
        "LONG4 of 2 GB": b"\x8b" + struct.pack("<i", (1 << 31) - 1) + b"x.",
        "a million bits": _int(1 << 1_000_000) + b".",
        "a million hexadecimal digits": b"I0x" + b"f" * 1_000_000 + b"\n.",
        "a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
        "bytes in 10,000 arrays": _bytes(bytes(1 << 20)) + b"q\x00" + _DTYPE % b"u1" + b"q\x01"
        + b"".join(_EMPTY + b"(K\x01" + _int(1 << 20) + b"\x85h\x01\x89h\x00tb" for _ in range(10_000)) + b".",
        "a string in 10,000 arrays": b"X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20) + b"q\x00"
        + b"c_codecs\nencode\nq\x02" + b"h\x02h\x00X\x06\x00\x00\x00latin1\x86R" * 10_000 + b".",
        "a list in 10,000 sets": b"(" + b"".join(map(_int, range(10_000))) + b"lq\x00cbuiltins\nset\nq\x02"
        + b"h\x02h\x00\x85R" * 10_000 + b".",
        "a tuple in 10,000 calls": b"(" + b"N" * 100_000 + b"tq\x00ccollections\nOrderedDict\nq\x02"
        + b"h\x02h\x00R" * 10_000 + b".",
        "a hash of 2**60 steps": b"}" + _nested(60, b"\x86") + b"Ns.",
        "a set's hash of 2**60 steps": b"\x80\x04\x8f(" + _nested(60, b"\x86") + b"\x90.",
        "a byte order of 2**60 leaves": _DTYPE % b"f4" + b"(K\x03" + _nested(60, b"\x86") + b"tb.",
        "a config of 2**60 leaves": b"}(U\x04meta}U\x03cfg" + _nested(60, b"\x86") + b"su.",
        "a config 100,000 deep": b"}(U\x04meta}U\x03cfg" + b"]" * 100_000 + b"a" * 99_999 + b"su.",
        "keys of one hash": b"}(" + b"".join(_int(n * (2**61 - 1)) + b"N" for n in range(1, 200_000)) + b"u.",
        "a set of one hash": b"\x80\x04\x8f(" + b"".join(_int(n * (2**61 - 1)) for n in range(1, 200_000)) + b"\x90.",
        "a name of 10 MB, 1,000 times": b"\x80\x04X" + struct.pack("<I", 3 * 10**6) + b"x" * 10**7 + b"q\x00"
        + b"h\x00h\x00\x93" * 1000 + b".",
        "an unknown object as a function": b"}}\x85R.",
        "a state for a function": b"ccollections\nOrderedDict\n}X\x01\x00\x00\x00xNsb.",
        "an entry for a function": b"ccollections\nOrderedDict\nX\x01\x00\x00\x00xNs.",
        "a persistent id": b"X\x01\x00\x00\x00xQ.",
        "an extension code": b"\x82\x01.",
        "an out-of-band buffer": b"\x80\x05\x97.",
    }  # fmt: skip


def pickles() -> dict[str, bytes]:
    """Return hostile pickles of at most 20 MB."""
    found = {name: data if data[:1] == b"\x80" else _P2 + data for name, data in _short_pickles().items()}
    for name, code in (
        ("dicts", b"}"), ("lists", b"]"), ("marks", b"("), ("objects", b"ca\na\n)R"), ("integers", b"K\x01"),
        ("memo entries", b"N\x94"), ("empty sets", b"\x8f"),
    ):  # fmt: skip
        found[f"millions of {name}"] = b"\x80\x04" + code * 3_000_000 + b"."
    # numpy's state of a dtype: a size that the type does not have, fields outside of it, objects in plain bytes.
    for name, code, state in (
        ("size", b"V8", b"K\x04U\x01|NNN" + _int(1 << 30) + b"K\x01K\x00t"),
        ("fields", b"V8", b"K\x03U\x01|N(U\x01at}U\x01a" + _DTYPE % b"f8" + _int(1 << 30) + b"\x86sK\x08K\x01K\x1bt"),
        ("flags", b"O8", b"K\x03U\x01|NNNK\x08K\x08K\x00t"),
        ("subarray", b"V8", b"K\x03U\x01|" + _DTYPE % b"f8" + b"(" + _int(1 << 40) + b"t\x86NNK\x08K\x01K\x00t"),
    ):
        dtype = _DTYPE % code + b"(" + state + b"b"
        raw = _bytes(bytes(8))
        found[f"a dtype's {name} in a scalar"] = _P2 + b"cnumpy.core.multiarray\nscalar\n" + dtype + raw + b"\x86R."
        found[f"a dtype's {name} in an array"] = _P2 + _EMPTY + b"(K\x01K\x01\x85" + dtype + b"\x89" + raw + b"tb."
        found[f"a dtype's {name} in a buffer"] = (
            _P2 + b"cnumpy.core.numeric\n_frombuffer\n(" + raw + dtype + b"K\x01\x85U\x01CtR."
        )
    return found


def zipped(content: bytes, storage: bytes = b"", **more: bytes) -> bytes:
    """Return a torch file of a pickle and one storage."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in {"data.pkl": content, "byteorder": b"little", "data/0": storage, **more}.items():
            archive.writestr(f"archive/{name}", data)
    return out.getvalue()


def legacy(content: bytes, rest: bytes = b"") -> bytes:
    """Return a file of torch < 1.6."""
    out = io.BytesIO()
    torch.save({}, out, _use_new_zipfile_serialization=False)
    data = out.getvalue()
    start = data.index(b"\x80\x02", data.index(b"little_endian"))
    return data[:start] + content + (rest or data[data.index(b"\x80\x02", start + 2) :])


def tensor(count: int, offset: int, size: int, stride: int, kind: bytes = b"Float") -> bytes:
    """Return a pickle of one tensor of a storage that is said to have `count` numbers."""
    pid = (
        b"(X\x07\x00\x00\x00storagectorch\n"
        + kind
        + b"Storage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        + _int(count)
        + b"%stQ"
    )
    shape = _int(offset) + _int(size) + b"\x85" + _int(stride) + b"\x85\x89}"
    return _P2 + b"}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n(" + pid + shape + b"tRs."


def containers() -> dict[str, bytes]:
    """Return hostile zips, older torch files and safetensors, with the suffix in the name."""
    claims = {
        "8 GB": (1 << 31, 0, 1 << 31, 1), "more than its storage": (1, 0, 1 << 31, 1), "an offset": (1, 1 << 40, 1, 1),
        "a stride": (1, 0, 2, 1 << 40), "less than nothing": (1, -1, 1, 1), "a negative size": (-1, 0, -1, 1),
        "2**70 numbers": (1 << 70, 0, 1 << 70, 1),
    }  # fmt: skip
    found = {}
    keys = _P2 + b"]X\x01\x00\x00\x000a."
    for name, claim in claims.items():
        found[f"a zip whose tensor claims {name}.pth"] = zipped(tensor(*claim) % b"", bytes(4))
        stored = struct.pack("<q", min(claim[0], 2**62)) + bytes(4)
        found[f"a legacy file whose tensor claims {name}.pth"] = legacy(tensor(*claim) % b"N", keys + stored)
    found["a legacy file without its storage.pth"] = legacy(tensor(1 << 26, 0, 1 << 26, 1) % b"N", _P2 + b"].")
    found["a zip without records.pth"] = b"PK\x05\x06" + bytes(18)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for n in range(100_000):
            archive.writestr(zipfile.ZipInfo(f"a/{n}"), b"")
    found["a zip of 100,000 records.pth"] = out.getvalue()
    bomb = bytearray(zipped(_P2 + b"}.", bytes(1 << 20)))
    entry = bomb.rindex(b"PK\x01\x02", 0, bomb.rindex(b"archive/data/0"))
    bomb[entry + 42 : entry + 46] = bytes(4)  # the offset of the first record
    found["a zip of overlapping records.pth"] = bytes(bomb)
    tail = bytearray(zipped(_P2 + b"}."))
    tail[-10:-6] = struct.pack("<I", (1 << 32) - 2)
    found["a zip whose directory claims 4 GB.pth"] = bytes(tail)

    def safetensors(header: bytes, claim: int | None = None, data: bytes = b"") -> bytes:
        return struct.pack("<Q", len(header) if claim is None else claim) + header + data

    entry_of = b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    found["a header of 8 GB.safetensors"] = safetensors(b'{"a":1}', 1 << 33)
    found["a header of 16 EB.safetensors"] = safetensors(b'{"a":1}', (1 << 64) - 1)
    found["400,000 tensors.safetensors"] = safetensors(b"{" + b",".join(entry_of % n for n in range(400_000)) + b"}")
    found["a header 100,000 deep.safetensors"] = safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    found["a tensor of 2**60.safetensors"] = safetensors(
        b'{"a":{"dtype":"F32","shape":[1073741824,1073741824],"data_offsets":[0,4]}}'
    )
    return found


def write(folder: Path) -> list[str]:
    """Write every hostile file below `folder`; return their names."""
    found = {f"{name}.pkl": data for name, data in pickles().items()} | containers()
    for name, data in pickles().items():
        if len(data) < 10_000:
            found[f"{name}, in a zip.pth"] = zipped(data)
    for name, data in found.items():
        (folder / name.replace("*", "^")).write_bytes(data)
    return [name.replace("*", "^") for name in found]


def _memory(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(field))


def cost(path: Path, read: Callable[[Path], object]) -> tuple[str, float, int]:
    """Read a file.

    Returns:
        How it ended, the seconds of processor time, and the bytes it took beside four times the file's size.
    """
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, start = _memory("VmRSS"), time.process_time()
    try:
        read(path)
        how = "read"
    except ValueError as error:
        how = f"refused: {error}"
    except Exception as error:  # noqa: BLE001  # what it is, the caller judges
        how = f"{type(error).__name__}: {error}"
    return how, time.process_time() - start, _memory("VmHWM") - before - 4 * path.stat().st_size


def main(folder: Path) -> Iterator[tuple[str, tuple[str, float, int]]]:
    """Yield what reading each file of a folder cost."""
    from converters import arch, read_backbone

    arch.expected("resnet18")
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + (3 << 30),) * 2)
    for path in sorted(folder.iterdir()):
        yield path.name, cost(path, read_backbone)


if __name__ == "__main__":
    print(json.dumps(dict(main(Path(sys.argv[1])))))
