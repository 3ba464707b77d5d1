"""Files of unknown origin: no code in them runs, and errors name what is wrong."""

import argparse
import contextlib
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from converters import files

ARRAYS = {"model": {"conv1.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}, "n": [1, "two", {3.0}], "z": 1j}


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def legacy(content: object, path: Path) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def modern(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def pickled(content: object, path: Path) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


@pytest.mark.parametrize("write", [legacy, modern, pickled])
def test_malicious_files_are_refused_by_name_and_do_not_run(write: Callable[..., Path], tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = write({"model": {}, "x": Malicious(marker)}, tmp_path / "evil.pkl")
    with pytest.raises(ValueError, match=r"asks for posix.system.* so it was not read; --trust") as raised:
        files.read(path)
    assert "\n" not in str(raised.value)
    assert not marker.exists()
    files.read(path, trust=True)
    assert marker.exists()


class Other:
    """A class that only its author's environment has."""


@pytest.mark.fault("hostile files", "convert", "functions that run code, in a torch file or pickle")
@pytest.mark.parametrize("write", [legacy, modern, pickled])
def test_every_function_that_runs_code_is_listed(write: Callable[..., Path], tmp_path: Path) -> None:
    class Asks:
        def __init__(self, function: Callable[..., Any]) -> None:
            self.function = function

        def __reduce__(self) -> tuple[Any, ...]:
            return self.function, ("1",)

    path = write([Asks(eval), Asks(os.system), Asks(__import__)], tmp_path / "many.pkl")
    with pytest.raises(
        ValueError, match=r"asks for builtins.__import__, builtins.eval, posix.system: code to run, "
    ) as e:
        files.read(path)
    assert "damaged" not in str(e.value)
    assert "weights_only" not in str(e.value)


@pytest.mark.parametrize("write", [legacy, modern, pickled])
def test_objects_that_are_not_needed_are_named_and_not_loaded(write: Callable[..., Path], tmp_path: Path) -> None:
    content = files.read(write([Other(), Path("/"), slice(1)], tmp_path / "many.pkl"))
    assert all(isinstance(item, files.Inert) for item in content)
    assert content[0].name.endswith(".Other")
    assert content[1].name.startswith("pathlib.")
    assert content[2].name == "builtins.slice"


@pytest.mark.parametrize("write", [legacy, modern, pickled])
def test_one_object_is_refused_by_name(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(torch.nn.Linear(2, 2) if write is not pickled else Other(), tmp_path / "model.pth")
    with pytest.raises(
        ValueError, match=r"asks for .*\.(Linear|Other): an object of that class .* save its state_dict"
    ):
        files.read(path)


def test_a_class_that_is_not_installed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trusted.pkl"
    path.write_bytes(b"\x80\x03cno_such_module\nThing\n)R.")
    with pytest.raises(ValueError, match=r"asks for no_such_module\.Thing"):
        files.read(path)
    with pytest.raises(ValueError, match="needs no_such_module to be read, which is not installed"):
        files.read(path, trust=True)


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_builtins_are_read_in_every_protocol(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "arrays.pkl"
    path.write_bytes(pickle.dumps(ARRAYS | {"s": np.float32(2), "o": OrderedDict(a=1)}, protocol=protocol))
    content = files.read(path)
    np.testing.assert_array_equal(content["model"]["conv1.weight"], ARRAYS["model"]["conv1.weight"])
    assert (content["n"], content["z"], content["s"]) == (ARRAYS["n"], 1j, 2)


@pytest.mark.parametrize("write", [legacy, modern])
def test_options_and_numpy_numbers_beside_the_tensors_are_read(write: Callable[..., Path], tmp_path: Path) -> None:
    content = {
        "opt": argparse.Namespace(lr=0.1),
        "best": np.float64(3),
        "n": np.int64(4),
        "model": {"a": torch.ones(2)},
    }
    assert files.read(write(content, tmp_path / "harmless.pth"))["best"] == 3


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", ["modern", "legacy", "pickled", "safetensors"])
def test_truncated_files_are_reported(kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("cut")
    path = folder / f"x.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file({"conv1.weight": torch.ones(9)}, path)
    elif kind == "pickled":
        pickled(ARRAYS, path)
    else:
        {"modern": modern, "legacy": legacy}[kind]({"a": torch.ones(9)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(1, len(whole) - 1))])
    with pytest.raises(ValueError, match=r"is cut off or damaged|is no torch, safetensors or pickle file|asks for"):
        files.read(path)


@settings(max_examples=150, deadline=None)
@given(index=st.integers(0), bits=st.integers(1, 255), kind=st.sampled_from([modern, legacy, pickled]))
def test_a_flipped_byte_is_an_error_or_harmless(
    index: int, bits: int, kind: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = kind(ARRAYS if kind is pickled else {"a": torch.ones(9)}, tmp_path_factory.mktemp("flip") / "x.pth")
    content = bytearray(path.read_bytes())
    content[index % len(content)] ^= bits
    path.write_bytes(content)
    with contextlib.suppress(ValueError):  # anything else would be a traceback in the user's face
        files.read(path)


def test_a_zip_that_grows_on_reading(tmp_path: Path) -> None:
    path = modern({"a": torch.zeros(10**6)}, tmp_path / "bomb.pth")
    with zipfile.ZipFile(path) as inside, zipfile.ZipFile(tmp_path / "z.pth", "w", zipfile.ZIP_DEFLATED) as out:
        for record in inside.infolist():
            out.writestr(record.filename, inside.read(record))
    with pytest.raises(ValueError, match=r"claims 4,\d+,\d+ bytes in a file of \d,\d+: torch.save writes no such file"):
        files.read(tmp_path / "z.pth")


def test_a_zip_that_lies_about_its_size(tmp_path: Path) -> None:
    path = modern({"a": torch.zeros(1000)}, tmp_path / "lie.pth")
    content = path.read_bytes()
    entry = content.rindex(
        b"PK\x01\x02",
        0,
        content.index(b"archive/data/0" if b"archive/data/0" in content else b"lie/data/0", len(content) // 2),
    )
    lying = content[: entry + 24] + (2**31).to_bytes(4, "little") + content[entry + 28 :]
    path.write_bytes(lying)
    with pytest.raises(ValueError, match=r"claims 2,147,\d+,\d+ bytes in a file of"):
        files.read(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x.",  # BINBYTES8 of a terabyte
        b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"x.",  # BYTEARRAY8
        b"\x80\x04\x95" + (2**40).to_bytes(8, "little") + b"x.",  # FRAME
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85C\x01b\x87R.",
        b"\x80\x02cnumpy\nndarray\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85\x85R.",  # ndarray((2**44,))
    ],
)
def test_a_pickle_that_claims_terabytes(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "claim.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is cut off or damaged"):
        files.read(path)


def test_a_storage_that_claims_more_than_the_file(tmp_path: Path) -> None:
    path, huge = modern({"a": torch.zeros(7)}, tmp_path / "claim.pth"), b"J\x00\x00\x00\x7f"  # 2,130,706,432 numbers
    with zipfile.ZipFile(path) as inside, zipfile.ZipFile(tmp_path / "z.pth", "w") as out:
        for record in inside.infolist():
            out.writestr(record.filename, inside.read(record).replace(b"K\x07", huge))
    with pytest.raises(ValueError, match="is cut off or damaged"):
        files.read(tmp_path / "z.pth")


def test_a_safetensors_header_that_claims_more_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "claim.safetensors"
    header = b'{"a":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    with pytest.raises(ValueError, match="is cut off or damaged"):
        files.read(path)


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "a.pth").touch()
    (tmp_path / "LOG").touch()
    with pytest.raises(ValueError, match=r"is a directory, give one of its files: a.pth, LOG"):
        files.read(tmp_path)
    with pytest.raises(ValueError, match=r"a.pth is empty"):
        files.read(tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"b.pth does not exist; a named network is written timm:NAME"):
        files.read(tmp_path / "b.pth")
    (tmp_path / "c.pth").write_text("<html>Not found</html>")
    with pytest.raises(ValueError, match="an HTML page: the download failed"):
        files.read(tmp_path / "c.pth")
    (tmp_path / "d.jpg").write_bytes(b"\xff\xd8\xff\xe0 JFIF")
    with pytest.raises(ValueError, match=r"no torch, safetensors or pickle file \(it starts with b'\\xff"):
        files.read(tmp_path / "d.jpg")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    with pytest.raises(ValueError, match=r"is a TorchScript program, not a checkpoint; save its state_dict"):
        files.read(tmp_path / "script.pt")


def test_neither_framework_is_needed_to_import_and_read(tmp_path: Path) -> None:
    code = """
import sys
class Blocked:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("detectron2", "mmseg", "mmengine", "mmcv"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
import converters, converters.convert
print(converters.read_backbone("random:resnet18").arch)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "resnet18\n", done.stderr
