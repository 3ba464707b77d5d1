"""Every file is read once, in worker processes; results are kept until a file changes."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from common import scan
from common.scan import scan_files

ROOT = Path(__file__).parents[2]
MANY = 2 * scan.FEW


def length(path: Path, log: Path | None = None, factor: int = 1) -> list[int]:
    """Return the number of bytes; note the call in a log."""
    if log is not None:
        with log.open("a") as file:
            file.write(f"{path.name}\n")
    return [len(path.read_bytes()) * factor]


def picky(path: Path) -> int:
    """Return the number that a file holds: not an odd one."""
    number = int(path.read_text())
    if number % 2:
        raise ValueError(f"{path}: {number} is odd")
    if number == 4:
        raise SyntaxError("broken chunk")
    return number


def deadly(path: Path) -> int:
    """Die at the ninetieth file, as a process that the kernel kills for its memory."""
    if path.name == "090":
        os.kill(os.getpid(), signal.SIGKILL)
    return 0


def slow(path: Path) -> int:
    time.sleep(0.05)
    return 0


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """MANY files of 0, 1, 2 ... bytes."""
    (tmp_path / "files").mkdir()
    paths = [tmp_path / "files" / f"{i:03}" for i in range(MANY)]
    for i, path in enumerate(paths):
        path.write_bytes(b"x" * i)
    return paths


def read_now(log: Path) -> list[str]:
    """Return the names of the files read since the last call."""
    names = sorted(log.read_text().split()) if log.exists() else []
    log.unlink(missing_ok=True)
    return names


def test_results_keep_the_order_and_a_second_scan_opens_only_what_has_changed(
    files: list[Path], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    wanted = [[i] for i in range(MANY)]
    scanned = partial(scan_files, files, partial(length, log=log), "files", tmp_path / "cache")
    first = scanned()
    assert first == wanted
    assert first.opened == MANY
    assert read_now(log) == [path.name for path in files]
    again = scanned()
    assert again == wanted
    assert again.opened == 0
    assert again.describe("files") == f"{MANY} files (unchanged since an earlier check)"
    assert read_now(log) == []
    files[7].write_bytes(b"more")
    assert scanned() == [*wanted[:7], [4], *wanted[8:]]
    assert read_now(log) == ["007"]


def test_a_file_replaced_by_one_of_the_same_size_and_date_is_read_again(files: list[Path], tmp_path: Path) -> None:
    log = tmp_path / "log"
    scan_files(files[:4], partial(length, log=log), "files", tmp_path / "cache")
    read_now(log)
    date = files[3].stat().st_mtime_ns
    files[3].write_bytes(b"yyy")
    os.utime(files[3], ns=(date, date))
    scan_files(files[:4], partial(length, log=log), "files", tmp_path / "cache")
    assert read_now(log) == ["003"]


def test_other_arguments_and_other_files_are_another_scan(files: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert scan_files(files[:3], length, "files", cache) == [[0], [1], [2]]
    assert scan_files(files[:3], partial(length, factor=2), "files", cache) == [[0], [2], [4]]
    assert scan_files(files[1:4], length, "files", cache) == [[1], [2], [3]]
    assert scan_files([], length, "files", cache) == []


def test_a_broken_cache_is_written_anew(files: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    scan_files(files[:3], length, "files", cache)
    (stored,) = cache.iterdir()
    stored.write_text(stored.read_text()[:9])
    assert scan_files(files[:3], length, "files", cache).opened == 3
    assert scan_files(files[:3], length, "files", cache).opened == 0


@pytest.mark.parametrize("content", ["[]", "{}", "[[1]]", "null", '["a", "b", "c"]'])
def test_a_cache_of_another_form_is_written_anew(content: str, files: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    scan_files(files[:3], length, "files", cache)
    (stored,) = cache.iterdir()
    stored.write_text(content)
    assert scan_files(files[:3], length, "files", cache) == [[0], [1], [2]]


def test_wrong_files_are_counted_and_only_they_are_read_again(tmp_path: Path) -> None:
    paths = [tmp_path / str(i) for i in range(MANY + 6)]
    for i, path in enumerate(paths):
        path.write_text("1" if i in (5, 100) else "2")
    paths[101].write_text("4")
    paths[102].unlink()
    paths[103].write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="1 is odd") as raised:
        scan_files(paths, picky, "files", tmp_path / "cache")
    assert str(raised.value) == f"{paths[5]}: 1 is odd (5 of {len(paths)} files are wrong; this is the first)"
    for i, wanted in ((101, "cannot be read, SyntaxError: broken chunk"), (102, "No such file"), (103, "utf-8")):
        with pytest.raises(ValueError, match=wanted) as raised:
            scan_files([paths[i]], picky, "files", tmp_path / "cache")
        assert str(raised.value).startswith(f"{paths[i]}: ")
    for i in (5, 100, 101, 102, 103):
        paths[i].write_text("6")
    assert scan_files(paths, picky, "files", tmp_path / "cache").opened == 5


def test_a_worker_that_dies_is_one_line(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a process that read them died after \d+ of 128 files, at .*--skip-check"):
        scan_files(files, deadly, "test masks", tmp_path / "cache")


def test_a_folder_that_cannot_be_written_costs_only_the_cache(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    for _ in range(2):
        assert scan_files(files[:3], length, "files", tmp_path / "cache") == [[0], [1], [2]]
        (line,) = capsys.readouterr().err.splitlines()
        assert "results of the check are not kept" in line
        assert str(tmp_path / "cache") in line


def test_progress_is_shown_on_a_terminal_only(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scan_files(files, length, "test masks", tmp_path / "cache")
    assert capsys.readouterr().err == ""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    scan_files(files, length, "test masks", tmp_path / "another cache")
    assert f"check test masks:   0%|          | 0/{MANY} [" in terminal.getvalue()
    assert terminal.getvalue().endswith(" \r"), "the bar is removed at the end"


def test_the_generator_of_the_run_is_left_alone(files: list[Path], tmp_path: Path) -> None:
    import torch

    before = torch.get_rng_state()
    scan_files(files, length, "files", tmp_path / "cache")
    assert torch.equal(before, torch.get_rng_state())


SCRIPT = """
import sys
from pathlib import Path
from common.cli import run_cli
from common.scan import scan_files
from tests.common.test_scan import slow
def scan():
    print("scans", flush=True)
    scan_files(sorted(Path(sys.argv[1]).iterdir()), slow, "files", Path(sys.argv[2]))
sys.exit(run_cli("scan", scan))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, None), (signal.SIGKILL, -9)])
def test_a_signal_stops_the_scan_and_its_workers(
    number: int, status: int | None, files: list[Path], tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(files[0].parent), str(tmp_path / "cache")],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "scans\n"  # the imports before it start programs, too
    deadline = time.time() + 60
    workers: list[psutil.Process] = []
    while not workers and time.time() < deadline:
        time.sleep(0.05)
        workers = psutil.Process(process.pid).children(recursive=True)
    assert workers, "no worker was started"
    time.sleep(0.3)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == status or (status is None and process.returncode)
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(workers, timeout=15)
    assert not alive
