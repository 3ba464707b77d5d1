"""Fuzz the reader of checkpoints with atheris, guided by the coverage of its code.

    pip install atheris==3.0.0    # no part of the suite's environment
    python tests/benchmarks/fuzz_reader.py [--minutes 7.5] [--record results/benchmarks/fuzz.jsonl]

Each kind of file is fuzzed in a process of its own. Inputs grow from small valid files and from the hostile ones of
the tests. A mutation changes a pickle by whole instructions, a header by its JSON, a record of a zip inside the zip;
lengths and checksums are written anew, as otherwise no input would pass the container. Every input is read as
`convert.py` reads it. A finding is a crash, an exception other than ValueError, more than 2 s of processor time, or
more memory than four times the file's size and 512 MiB. Inputs that fail stay in --folder.
"""

import argparse
import contextlib
import io
import json
import os
import pickle
import pickletools
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import torch
from safetensors.torch import save

KINDS = {"zip": ".pth", "legacy": ".pth", "pickle": ".pkl", "safetensors": ".safetensors"}
SECONDS, MEMORY = 2.0, 512 << 20  # beside four times the file's size
MAX_BYTES = 8192
STATE = "state.json"  # written every second, so that it outlives a crash


def content() -> dict[str, Any]:
    """Return a small checkpoint with every kind of object that the reader knows."""
    tensors = OrderedDict({"layer1.0.conv1.weight": torch.ones(2, 2, 1, 1), "bn1.num_batches_tracked": torch.tensor(1)})
    return {
        "state_dict": tensors,
        "parameter": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
        "sparse": torch.eye(2).to_sparse(),
        "arrays": {"f4": np.ones((2, 2), np.float32), ">i8": np.arange(2, dtype=">i8"), "U": np.array(["a"])},
        "args": argparse.Namespace(lr=np.float64(0.1), arch="resnet18", path=Path("x")),
        "plain": [{1, "a"}, 1j, 3, None, b"x"],
    }


def seeds(kind: str) -> list[bytes]:
    """Return the files from which inputs grow."""
    from tests.converters import hostile

    whole = content()
    if kind == "safetensors":
        found = [save({"conv1.weight": torch.ones(2, 2), "n": torch.tensor(1)}, {"format": "pt"}), save({})]
        return found + [data for name, data in hostile.containers().items() if name.endswith(kind)]
    if kind == "pickle":
        plain = {key: whole[key] for key in ("arrays", "args", "plain")}
        found = [pickle.dumps(plain, protocol=protocol) for protocol in range(6)] + list(hostile.pickles().values())
    else:
        found = [data for name, data in hostile.containers().items() if (" zip " in name) == (kind == "zip")]
        for value in (whole, whole["state_dict"]):
            out = io.BytesIO()
            torch.save(value, out, _use_new_zipfile_serialization=kind == "zip")
            found.append(out.getvalue())
    return found


_OPCODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]
_WORDS = [
    b"c%s\n%s\n" % (module, name)
    for module, names in {
        b"builtins": b"set frozenset complex bytearray bytes range list getattr eval", b"copyreg": b"_reconstructor",
        b"collections": b"OrderedDict defaultdict", b"_codecs": b"encode", b"argparse": b"Namespace",
        b"numpy": b"dtype ndarray", b"numpy.core.multiarray": b"_reconstruct scalar",
        b"numpy.core.numeric": b"_frombuffer",
        b"torch": b"Size FloatStorage LongStorage BoolStorage", b"torch.serialization": b"_get_layout",
        b"torch._tensor": b"_rebuild_from_type_v2",
        b"torch._utils": b"_rebuild_tensor _rebuild_tensor_v2 _rebuild_parameter _rebuild_parameter_with_state "
        b"_rebuild_meta_tensor_no_storage _rebuild_sparse_tensor _rebuild_qtensor",
    }.items() for name in names.split()
]  # fmt: skip


def _number(rng: random.Random) -> bytes:
    """Return an instruction that pushes a whole number, often an extreme one."""
    value = rng.choice([0, 1, 2, -1, 255, 2**31 - 1, 2**31, 2**32, 2**60, 2**63 - 1, 2**63, 2**64, rng.getrandbits(70)])
    return pickle.dumps(value, protocol=2)[2:-1]


def mutate_pickle(data: bytes, rng: random.Random) -> bytes:
    """Change a pickle by a few instructions: remove, repeat, move, replace, insert."""
    starts: list[int] = []
    with contextlib.suppress(Exception):  # as far as it can be taken apart
        for _, _, position in pickletools.genops(data):
            starts.append(position or 0)
    ends = [*starts[1:], len(data)]
    parts = [data[a:b] for a, b in zip(starts, ends, strict=True)] or [data]
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        i, j = sorted(rng.randrange(len(parts) + 1) for _ in range(2))
        action = rng.randrange(6)
        if action == 0:
            del parts[i : min(j, i + 3)]
        elif action == 1:
            parts[i:i] = parts[i:j] * rng.choice([1, 1, 1, 2, 50])
        elif action == 2:
            k = rng.randrange(len(parts) + 1)
            parts[k:k] = parts[i : min(j, i + 8)]
        elif action == 3:
            parts.insert(i, rng.choice([_number(rng), rng.choice(_WORDS), rng.choice(_OPCODES)]))
        elif action == 4 and i < len(parts):
            parts[i] = rng.choice([_number(rng), rng.choice(_WORDS), rng.choice(_OPCODES)])
        elif i < len(parts) and parts[i]:  # a byte of an argument
            part = bytearray(parts[i])
            part[rng.randrange(len(part))] ^= 1 << rng.randrange(8)
            parts[i] = bytes(part)
    return b"".join(parts)


def mutate_zip(data: bytes, rng: random.Random) -> bytes:
    """Change one record of a zip, or the list of records; checksums are valid again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [(record.filename, archive.read(record)) for record in archive.infolist()[:40]]
    i = rng.randrange(len(records))
    if rng.random() < 0.8:
        i = next((n for n, (name, _) in enumerate(records) if name.endswith("data.pkl")), i)
    name, record = records[i]
    action = rng.randrange(10)
    if action == 0:
        records[i] = (rng.choice(["a/data.pkl", "archive/byteorder", "archive/data/0", name + "x"]), record)
    elif action == 1:
        records[i] = (name, rng.choice([b"big", b"", record * 2, record[: len(record) // 2]]))
    else:
        records[i] = (name, mutate_pickle(record, rng))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED])) as archive:
        for name, record in records:
            archive.writestr(zipfile.ZipInfo(name), record)
    return out.getvalue()


def mutate_legacy(data: bytes, rng: random.Random) -> bytes:
    """Change one of the pickles of an older torch file, or the storages behind them."""
    file, ends = io.BytesIO(data), [0]
    for _ in range(5):
        for _ in pickletools.genops(file):
            pass
        ends.append(file.tell())
    pieces = [data[a:b] for a, b in zip(ends, [*ends[1:], len(data)], strict=True)]
    i = rng.choice([2, 3, 3, 3, 3, 4, 5])
    pieces[i] = mutate_pickle(pieces[i], rng)
    return b"".join(pieces)


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Change an entry of the header; its length is valid again."""
    size = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    entry = header.setdefault(
        rng.choice([*header, "layer1.0.conv1.weight"]), {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    )
    extreme = [0, 1, -1, 4, 2**31, 2**63, 2**64, 2**70, 0.5, None, "x", [], [2**32, 2**32]]
    if isinstance(entry, dict):
        entry[rng.choice(["dtype", "shape", "data_offsets", "x"])] = rng.choice(
            [
                "F32",
                "F16",
                "BF16",
                "I64",
                "BOOL",
                "F8_E4M3",
                "C64",
                [rng.choice(extreme), rng.choice(extreme)],
                rng.choice(extreme),
            ]
        )
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if rng.random() < 0.95 else rng.getrandbits(64)) + text + rest


class Watch:
    """Reads inputs and counts what they cost; its numbers are in a file that outlives a crash."""

    def __init__(self, kind: str, folder: Path) -> None:
        from converters import files, sources

        self.read, self.path, self.folder = sources.read, folder / f"input{KINDS[kind]}", folder
        self.found: dict[str, Any] = {"executions": 0, "read": 0, "longest s": 0.0, "peak MiB": 0.0, "findings": []}
        self.told, self.kept = time.monotonic(), set[str]()
        read_file = files.read

        def counted(*args: Any) -> Any:
            content = read_file(*args)
            self.found["read"] += 1  # as a container; hardly any holds a whole network
            return content

        files.read = counted

    def __call__(self, data: bytes) -> None:
        """Read one input."""
        found = self.found
        self.path.write_bytes(data)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        before, start = _memory("VmRSS"), time.process_time()
        try:
            self.read(self.path)
        except ValueError as error:
            if str(self.path) not in str(error):  # the reader's own errors name the file
                self._keep(data, traceback.format_exc(limit=-2))
        except Exception:  # noqa: BLE001  # that is a finding
            self._keep(data, traceback.format_exc(limit=-2))
        seconds, taken = time.process_time() - start, _memory("VmHWM") - before
        if seconds > SECONDS:
            self._keep(data, f"slow: {seconds:.1f} s")
        if taken > MEMORY + 4 * len(data):
            self._keep(data, f"large: {taken >> 20} MiB")
        found["executions"] += 1
        found["longest s"] = max(found["longest s"], round(seconds, 3))
        found["peak MiB"] = max(found["peak MiB"], round(taken / 2**20, 1))
        if time.monotonic() - self.told > 1:
            (self.folder / STATE).write_text(json.dumps(found))
            self.told = time.monotonic()

    def _keep(self, data: bytes, reason: str) -> None:
        """Keep the first input of each kind of finding."""
        key = re.sub(r"\d+|'.*?'", "", reason)[:300]
        if key not in self.kept:
            self.kept.add(key)
            (self.folder / f"finding-{len(self.kept)}{self.path.suffix}").write_bytes(data)
            self.found["findings"].append(reason)


def _memory(field: str) -> int:
    """Return a line of the process's status in bytes."""
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10  # type: ignore[index]


def fuzz(kind: str, seconds: int, folder: Path, seed: int) -> None:
    """Fuzz one kind of file in this process, which libFuzzer ends."""
    import atheris

    for code, handler in pickle._Unpickler.dispatch.items():  # before converters.pickles copies them
        pickle._Unpickler.dispatch[code] = atheris.instrument_func(handler)
    with atheris.instrument_imports(include=["converters"]):
        from converters import arch, sources  # noqa: F401
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for n, data in enumerate(seeds(kind)):
        if len(data) <= MAX_BYTES:
            (corpus / f"seed-{n}").write_bytes(data)
    mutators = {"zip": mutate_zip, "legacy": mutate_legacy, "pickle": mutate_pickle, "safetensors": mutate_safetensors}

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.9:
            with contextlib.suppress(Exception):  # an input that cannot be taken apart is changed by its bytes
                return mutators[kind](bytes(data), rng)[:max_size]
        return atheris.Mutate(bytes(data), max_size)

    options = [f"-max_total_time={seconds}", f"-max_len={MAX_BYTES}", f"-seed={seed}", "-rss_limit_mb=0", "-timeout=60",
               "-print_final_stats=1", f"-artifact_prefix={folder}/"]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(corpus)], Watch(kind, folder), custom_mutator=mutate)
    atheris.Fuzz()


def run(kind: str, minutes: float, folder: Path) -> dict[str, Any]:
    """Fuzz one kind of file; start again after a crash until the time is over."""
    end, total, crashes, seed = time.monotonic() + 60 * minutes, {}, [], 1
    while (left := int(end - time.monotonic())) > 1:
        state = folder / kind / STATE
        state.unlink(missing_ok=True)
        command = [
            sys.executable,
            __file__,
            "--child",
            kind,
            "--minutes",
            str(left / 60),
            "--folder",
            str(folder),
            "--seed",
            str(seed),
        ]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
        if done.returncode:
            crashes.append(f"status {done.returncode}: {done.stderr[-600:]}")
        found = json.loads(state.read_text()) if state.exists() else {}
        for key, value in found.items():
            total[key] = (
                max(total.get(key, 0), value) if isinstance(value, float) else total.get(key, type(value)()) + value
            )
        coverage = [line for line in done.stderr.splitlines() if " cov: " in line]
        total["coverage"] = coverage[-1].split("cov: ")[1].split()[0] if coverage else "?"
        print(f"{kind}: {json.dumps(total)}", flush=True)
        seed += 1
        if len(crashes) > 20:
            break
    return total | {"minutes": minutes, "crashes": crashes}


def main() -> None:
    """Fuzz every kind in turn and append one line to the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=7.5, help="for each kind of file")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--folder", type=Path, help="for inputs that fail; a temporary folder if not given")
    parser.add_argument("--record", type=Path, help="JSON Lines file to append to")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="fuzz-"))
    if options.child:
        fuzz(options.child, round(60 * options.minutes), folder / options.child, options.seed)
    found = {kind: run(kind, options.minutes, folder) for kind in options.kinds}
    cpu = next(
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    )
    line = json.dumps(
        {"cpu": f"{cpu}, {os.cpu_count()} cores", "limits": {"s": SECONDS, "MiB": MEMORY >> 20}, "kinds": found}
    )
    print(line)
    if options.record:
        with options.record.open("a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
