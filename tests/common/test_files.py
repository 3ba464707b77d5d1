"""Atomic writes, errors that name the file, locks of folders."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from common import files
from common.files import append_text, lock_folder, naming, require_writable, write_atomically, write_tensors, write_text

ROOT = Path(__file__).parents[2]


def fail(number: int, name: str | None = None) -> NoReturn:
    raise OSError(number, os.strerror(number), name)


def test_an_error_without_a_name_gets_one_and_others_keep_theirs(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.json'"):
        write_atomically(path, lambda part: fail(errno.ENOSPC))
    with pytest.raises(PermissionError, match=r"a\.json'"):
        write_atomically(path, lambda part: fail(errno.EACCES, str(part)))
    with pytest.raises(FileNotFoundError, match=r"'image\.png'"):
        write_atomically(path, lambda part: fail(errno.ENOENT, "image.png"))
    with pytest.raises(OSError, match="no number"), naming(path):
        raise OSError("no number")
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_stays_when_a_write_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "made" / "a.txt"
    write_text(path, "old")
    monkeypatch.setattr(files.os, "fsync", lambda _: fail(errno.EIO))
    with pytest.raises(OSError, match=r"a\.txt"):
        write_text(path, "new")
    assert [file.read_text() for file in path.parent.iterdir()] == ["old"]


def test_tensors_on_a_file_that_may_not_grow_are_an_os_error(tmp_path: Path) -> None:
    """torch alone says: unexpected pos 576 vs 534."""
    code = (
        "import resource, sys, torch; from pathlib import Path; from common.files import write_tensors\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))\n"
        "try: write_tensors(Path(sys.argv[1]), {'a': torch.ones(10**6)})\n"
        "except OSError as error: print(error.errno, error.filename)"
    )
    path = tmp_path / "a.pth"
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{errno.EFBIG} {path}\n"
    assert list(tmp_path.iterdir()) == []
    write_tensors(path, {"a": torch.ones(2)})
    assert torch.load(path, weights_only=True)["a"].tolist() == [1, 1]


def test_an_error_of_torch_that_is_no_disk_passes(tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="local object"):
        write_tensors(tmp_path / "a.pth", {"a": lambda: None})
    assert list(tmp_path.iterdir()) == []


def test_appending_names_the_file(tmp_path: Path) -> None:
    append_text(tmp_path / "a", "é\n")
    append_text(tmp_path / "a", "b\n")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "é\nb\n"
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        append_text(tmp_path, "c")


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file"):
        require_writable(tmp_path / "file" / "b")


HOLD = """
import sys, time
from pathlib import Path
from common.files import lock_folder
with lock_folder(Path(sys.argv[1]), "advice"):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_lock_is_exclusive_until_its_process_dies(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "{a}"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        message = rf"\{{a\}} is in use by process {process.pid} on .* since .*; do this"
        with pytest.raises(ValueError, match=message), lock_folder(folder, "do this"):
            pytest.fail("two have the lock")
        process.kill()
    with lock_folder(folder, "do this"):
        assert (tmp_path / "runs" / ".{a}.lock").exists()
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_lock_leaves_what_the_run_has_made(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "runs" / "a", ""):
        (tmp_path / "runs" / "a").mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "a"]


def test_a_file_system_without_locks_does_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "lockf", lambda *_: fail(errno.ENOLCK))
    with lock_folder(tmp_path / "a", ""):
        pass
