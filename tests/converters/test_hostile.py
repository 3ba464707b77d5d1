"""Files made to do harm: refused in one line, within the limits of time and memory, and no made-up content returned."""

import importlib
import json
import pickle
import re
import struct
import subprocess
import sys
import time
import timeit
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import converters
from converters import files
from converters.convert import main
from converters.formats import FORMATS
from tests.converters import hostile


@pytest.mark.fault("hostile files", "convert", "sizes, counts, nesting and hashes meant to take memory and time")
def test_reading_is_bounded_in_time_and_memory(tmp_path: Path) -> None:
    names = hostile.write(tmp_path)
    command = [sys.executable, "-m", "tests.converters.hostile", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == set(names)
    wrong = {
        name: (how, seconds, memory >> 20)
        for name, (how, seconds, memory) in found.items()
        if not how.startswith("refused: ") or "\n" in how or seconds > hostile.SECONDS or memory > hostile.MEMORY
    }
    assert wrong == {}


def _numbers(content: Any) -> list[Any]:
    """Return the arrays of plain numbers in the content of a file."""
    if isinstance(content, dict):
        return [found for value in content.values() for found in _numbers(value)]
    return [content] if isinstance(content, np.ndarray | np.generic) and content.dtype != object else []


@pytest.mark.fault("hostile files", "convert", "numpy's state of a dtype, which reaches memory outside of the array")
@pytest.mark.parametrize("name", [name for name in hostile.pickles() if name.startswith("a dtype's")])
def test_no_array_is_made_from_the_state_of_a_dtype(name: str, tmp_path: Path) -> None:
    data = hostile.pickles()[name]
    path = tmp_path / "x.pkl"
    path.write_bytes(data[:2] + b"}U\x01a" + data[2:-1] + b"s.")
    content = files.read(path)
    assert set(content) == {"a"}
    assert _numbers(content) == []


def _records(path: Path, change: Callable[[bytearray, zipfile.ZipInfo], None], name: str) -> None:
    with zipfile.ZipFile(path) as archive:
        record = next(r for r in archive.infolist() if r.filename.endswith(name))
    content = bytearray(path.read_bytes())
    change(content, record)
    path.write_bytes(content)


@pytest.mark.fault("hostile files", "convert", "a run of zeros inside a zip")
@pytest.mark.parametrize("name", ["data/0", "data.pkl", "data/60"])
def test_a_run_of_zeros_inside_a_zip_is_damage(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save(converters.read_backbone("random:resnet18").tensors, path)

    def zero(content: bytearray, record: zipfile.ZipInfo) -> None:
        start = content.index(b"PK\x03\x04", record.header_offset) + 30
        middle = start + len(record.filename) + 64 + record.file_size // 2
        content[middle : middle + 16] = bytes(16)

    _records(path, zero, name)
    with pytest.raises(
        ValueError, match=rf"is cut off or damaged: the record '\w+/{name}' does not match its checksum"
    ):
        converters.read_backbone(path)


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(3)}, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert files.read(tmp_path / "x.pth")["a"].tolist() == [0, 1, 2]


def test_storages_that_are_not_aligned_are_read(tmp_path: Path) -> None:
    content = hostile.tensor(3, 1, 2, 1) % b""
    for shift in range(4):
        data = hostile.zipped(content, struct.pack("<3f", 1, 2, 3), **{"x" * (shift + 1): b""})
        (tmp_path / "x.pth").write_bytes(data)
        assert files.read(tmp_path / "x.pth")["a"].tolist() == [2, 3]


@pytest.mark.parametrize("kind", [b"Float", b"Half", b"BFloat16", b"Long", b"Double", b"Bool"])
def test_a_view_is_within_its_storage_and_not_one_number_more(kind: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    size = torch.tensor([], dtype=getattr(torch, {b"Half": "float16", b"BFloat16": "bfloat16", b"Long": "int64"}.get(
        kind, kind.decode().lower()))).element_size()  # fmt: skip
    path.write_bytes(hostile.zipped(hostile.tensor(4, 1, 2, 2, kind) % b"", bytes(4 * size)))
    assert files.read(path)["a"].shape == (2,)
    for claim in ((4, 2, 2, 2), (4, 0, 5, 1), (4, 4, 1, 1), (5, 0, 1, 1)):
        path.write_bytes(hostile.zipped(hostile.tensor(*claim, kind) % b"", bytes(4 * size)))
        with pytest.raises(ValueError, match=r"is cut off or damaged: a (tensor of shape|storage of)"):
            files.read(path)


@pytest.mark.fault("hostile files", "convert", "keys of 100,000 characters, and 100,000 keys")
def test_long_and_many_keys_are_refused_at_once(tmp_path: Path) -> None:
    start = time.process_time()
    for key in (
        "projector_" + "1" * 100_000,
        "projection_head" * 10_000,
        "backbone" * 20_000,
        "encoder_q." + "a" * 301,
    ):
        torch.save({"state_dict": {key: torch.ones(1), "layer1.0.conv1.weight": torch.ones(1)}}, tmp_path / "x.pth")
        with pytest.raises(ValueError, match=r"holds a name of \d+(,\d+)? characters, more than 300: ") as error:
            converters.read_backbone(tmp_path / "x.pth")
        assert len(str(error.value)) < 600
    arrays = {f"layer1.{n}.conv1.weight": np.ones(1, np.float32) for n in range(20_001)}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(arrays))
    with pytest.raises(ValueError, match="holds 20,001 tensors in one mapping, more than 20,000"):
        converters.read_backbone(tmp_path / "x.pkl")
    assert time.process_time() - start < 5


@pytest.mark.fault("hostile files", "convert", "keys that make a key rule's regular expression backtrack")
def test_key_rules_take_linear_time() -> None:
    patterns = {mark for entry in FORMATS for mark in (*entry.marks, *entry.unless)} | {
        p for e in FORMATS for p in e.drop.values()
    }
    patterns |= {pattern for entry in FORMATS for pattern, _ in entry.names}
    patterns |= {place.prefix for entry in FORMATS for places in entry.weights.values() for place in places}
    words = {word for pattern in patterns for word in re.findall(r"[a-z_]{3,}", pattern)} | {"1", "_", "a.", "."}
    keys = [(word * 300)[:300] for word in words] + [(f"{word}_" + "1_" * 300)[:300] for word in words]
    slow = {
        (pattern, key)
        for pattern in patterns
        for key in keys
        if min(timeit.repeat(lambda p=re.compile(pattern), k=key: p.search(k), number=1, repeat=3)) > 1e-4  # type: ignore[misc]
    }
    assert slow == set()


@pytest.mark.fault(
    "hostile files", "convert", "negative variances, NaN in counters and weights, counters of another shape"
)
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("bn1.running_var", torch.ones(64).index_fill(0, torch.arange(2), -1e-3), "holds 2 negative values"),
        ("bn1.running_var", torch.full((64,), torch.nan), "holds 64 values that are not finite"),
        ("layer1.0.bn1.running_mean", torch.full((64,), -torch.inf), "holds 64 values that are not finite"),
        ("conv1.weight", torch.full((64, 3, 7, 7), torch.inf), "holds 9408 values that are not finite"),
        ("bn1.num_batches_tracked", torch.tensor(torch.nan), "is nan, a step counter is a whole number"),
        ("bn1.num_batches_tracked", torch.tensor(torch.inf), "is inf, a step counter is a whole number"),
        ("bn1.num_batches_tracked", torch.tensor(-3), "is -3, a step counter is a whole number"),
        ("bn1.num_batches_tracked", torch.tensor(2.5), "is 2.5, a step counter is a whole number"),
        ("bn1.num_batches_tracked", torch.tensor(1j), "is 1j, a step counter is a whole number"),
        ("bn1.num_batches_tracked", torch.zeros(2, dtype=torch.int64), r"has shape \(2,\), a step"),
        ("bn1.num_batches_tracked", torch.zeros(0, dtype=torch.int64), r"has shape \(0,\), a step"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_numbers_that_no_training_gives(
    name: str, value: torch.Tensor, message: str, kind: str, tmp_path: Path
) -> None:
    tensors = converters.read_backbone("random:resnet18").tensors | {name: value}
    path = tmp_path / "x.pth"
    if kind == "torch":
        torch.save(tensors, path)
    else:
        path.write_bytes(pickle.dumps({key: tensor.numpy() for key, tensor in tensors.items()}))
    with pytest.raises(ValueError, match=rf"{re.escape(name)} {message}") as error:
        converters.read_backbone(path)
    assert "\n" not in str(error.value)


def test_counters_of_one_number_are_read_whatever_their_type(tmp_path: Path) -> None:
    tensors = converters.read_backbone("random:resnet18").tensors
    for value in (torch.tensor([5]), torch.tensor(5.0), torch.tensor(5, dtype=torch.int32)):
        torch.save(tensors | {"bn1.num_batches_tracked": value}, tmp_path / "x.pth")
        counter = converters.read_backbone(tmp_path / "x.pth").tensors["bn1.num_batches_tracked"]
        assert (counter.dtype, counter.shape, counter.item()) == (torch.int64, (), 5)


ESCAPES = "\x1b]0;title\x07\x1b[31m\u202e\x9b2J\r\n"  # what a terminal would obey, and a change of direction


@pytest.mark.fault("hostile files", "convert", "control characters in keys and in the names of classes")
def test_control_characters_do_not_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = converters.read_backbone("random:resnet18").tensors
    state = {f"encoder_q.{key}": value for key, value in tensors.items()} | {f"encoder_q.fc.{ESCAPES}": torch.ones(1)}
    files_of = {
        "dropped": {"state_dict": state, "meta": {"method": ESCAPES}},
        "unknown": {"state_dict": state | {ESCAPES: torch.ones(1)}},
        "no network": {ESCAPES: torch.ones(1)},
        "not finite": {"state_dict": state | {"encoder_q.bn1.weight": torch.full((64,), torch.nan)}},
        "twice": {"state_dict": state | {f"module.{ESCAPES}": torch.ones(1), ESCAPES: torch.ones(1)}},
    }
    for name, content in files_of.items():
        torch.save(content, tmp_path / f"{name}{ESCAPES}.pth")
        out = ["--to", "torchvision", "--out", str(tmp_path / "out.pth"), "--verify", "no", "--force"]
        status = main([str(tmp_path / f"{name}{ESCAPES}.pth"), *out])
        output = capsys.readouterr()
        assert status == (0 if name == "dropped" else 2), output
        assert all(line.isprintable() for line in (output.out + output.err).splitlines())
        assert status == 0 or output.err.count("\n") == 1
    (tmp_path / "class.pkl").write_bytes(b"\x80\x02c\x1b[31m\nx\n)R.")
    assert main([str(tmp_path / "class.pkl"), "--to", "timm"]) == 2
    assert capsys.readouterr().err.rstrip("\n").isprintable()


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=pytest.mark.fault("hostile files", command, "control characters in keys"))
        for command in ("knn", "linear", "finetune", "svm")
    ],
)
def test_control_characters_in_the_errors_of_the_benchmarks(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": {ESCAPES: torch.ones(1)}}, tmp_path / "x.pth")
    entry = importlib.import_module(f"transfer.{command}")
    assert entry.main(["--ckpt", str(tmp_path / "x.pth")]) == 2
    error = capsys.readouterr().err
    assert "in no known format" in error, error
    assert error.rstrip("\n").isprintable(), error


def bombs() -> dict[str, Any]:
    """Return values of little memory that take 2**60 steps, or 100,000 levels of recursion, to print or to walk."""
    pair, mapping, tuples, deep, deeper = [], {}, (), [], {}
    for _ in range(60):
        pair, mapping, tuples = [pair, pair], {"a": mapping, "b": mapping}, (tuples, tuples)
    for _ in range(100_000):
        deep, deeper = [deep], {"a": deeper}
    cycle: dict[str, Any] = {}
    cycle["a"] = cycle["b"] = [cycle, cycle]
    return {"lists": pair, "dicts": mapping, "tuples": tuples, "deep lists": deep, "deep dicts": deeper, "cycle": cycle}


def pickled(value: Any) -> bytes:
    """Return the pickle of nested lists, tuples and dicts, of any depth, without its first and last instruction."""
    parts: list[bytes] = []
    memo: dict[int, int] = {}
    left: list[Any] = [value]
    while left:
        node = left.pop()
        if isinstance(node, bytes):
            parts.append(node)
        elif id(node) in memo:
            parts.append(b"j" + struct.pack("<I", memo[id(node)]))
        elif isinstance(node, list | dict) or (isinstance(node, tuple) and len(node) == 2):
            memo[id(node)] = len(memo)
            put = b"r" + struct.pack("<I", memo[id(node)])
            if isinstance(node, tuple):
                left += [b"\x86" + put, node[1], node[0]]
            elif isinstance(node, list):
                parts += [b"]", put, b"("]
                left += [b"e", *reversed(node)]
            else:
                parts += [b"}", put, b"("]
                left += [b"u", *(each for key, item in node.items() for each in (item, key))]
        else:
            parts.append(pickle.dumps(node, protocol=2)[2:-1].replace(b"q\x00", b""))
    return b"".join(parts)


@pytest.mark.fault("hostile files", "convert", "a config nested very deep or shared 2**60 times, in a whole checkpoint")
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", bombs())
def test_what_lies_beside_the_weights_takes_no_time(name: str, own: bool, tmp_path: Path) -> None:
    prefix = "encoder_q." if own else "backbone."
    state = {prefix + key: tensor for key, tensor in converters.read_backbone("random:resnet18").tensors.items()}
    path, bomb = tmp_path / "x.pth", bombs()[name]
    torch.save({"state_dict": state, "format": "unimoco-suite" if own else "x"}, path)
    places = {"meta": {"cfg": bomb, "config": bomb, "arch": bomb}, "version" if own else "epoch": bomb}
    places |= dict.fromkeys(
        ("cfg", "config", "args", "opt", "hyper_parameters", "arch", "__author__", "num_features"), bomb
    )
    more = b"(" + pickled(places)[7:]  # into the mapping that the file has, not one of its own
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for each, data in records.items():
            archive.writestr(each, data[:-1] + more + b"." if each.endswith("data.pkl") else data)
    start = time.process_time()
    if own:
        with pytest.raises(ValueError, match=r"is version a (list|dict|tuple) of this suite's checkpoints"):
            converters.read_backbone(path)
    else:
        assert converters.read_backbone(path).arch == "resnet18"
    assert time.process_time() - start < hostile.SECONDS
