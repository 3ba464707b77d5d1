"""What a conversion leaves behind: all of its files or none, whatever stops it."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.cli import STOPS
from converters.convert import main

SUFFIX = {"detectron2": ".pkl", "openmmlab": ".pth", "torchvision": ".pth", "timm": ".safetensors"}
ROOT = Path(__file__).parents[2]


@pytest.mark.fault("converters", "convert", "permissions of the files under two umasks")
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
@pytest.mark.parametrize("target", SUFFIX)
def test_permissions_follow_the_umask(target: str, mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        assert (
            main(["random:resnet18", "--to", target, "--out", f"{tmp_path}/x{SUFFIX[target]}", "--verify", "no"]) == 0
        )
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert set(modes.values()) == {0o666 & ~mask}, modes


# Stops at a moment of the conversion: at a function of converters.conversion, which then waits.
WAITS = """
import sys, time
from pathlib import Path
from converters import conversion, convert
moment, *arguments = sys.argv[1:]
function = getattr(conversion, moment)
def wait(*args, **settings):
    result = function(*args, **settings)
    Path("waiting").touch()
    for _ in range(300):
        time.sleep(0.1 if not Path("go").exists() else 0)
    return result
setattr(conversion, moment, wait)
sys.exit(convert.main(arguments))
"""


def start(moment: str, folder: Path, *more: str, ignored: bool = False) -> subprocess.Popen[str]:
    """Start a conversion to detectron2, which writes two files, and return when it waits."""
    arguments = ["random:resnet18", "--to", "detectron2", "--out", "out/x.pkl", *more]
    (folder / "out").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS, moment, *arguments],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=(lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) if ignored else None,
    )  # fmt: skip
    while not (folder / "waiting").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


@pytest.mark.fault("workers and signals", "convert", "SIGTERM, SIGINT, SIGHUP while converting, twice")
@pytest.mark.fault("converters", "convert", "a stop by SIGTERM, SIGINT, SIGHUP while converting")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_leaves_no_temporary_files(number: signal.Signals, tmp_path: Path) -> None:
    process = start("installed", tmp_path, "--verify", "auto")
    process.send_signal(number)
    process.send_signal(number)  # an impatient user; the files are removed all the same
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, f"convert.py: {STOPS[number]}\n")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.fault("workers and signals", "convert", "SIGTERM, SIGINT, SIGHUP with the files half written")
@pytest.mark.fault("converters", "convert", "a stop by a signal with the files half written")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_while_writing_removes_the_files(number: signal.Signals, tmp_path: Path) -> None:
    process = start("verify", tmp_path, "--verify", "yes")
    assert [path.name[:12] for path in (tmp_path / "out").iterdir()] == [".converting-"]
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.splitlines()[-1]) == (128 + number, f"convert.py: {STOPS[number]}")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.fault("converters", "convert", "a stop by a signal between the two files of a target")
def test_a_stop_between_two_files_leaves_both(tmp_path: Path) -> None:
    process = start("write_atomically", tmp_path, "--verify", "no")
    process.send_signal(signal.SIGTERM)
    (tmp_path / "go").touch()
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"x.pkl", "x.yaml"}


@pytest.mark.fault("workers and signals", "convert", "a hang-up under nohup")
def test_a_hang_up_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    process = start("installed", tmp_path, "--verify", "auto", ignored=True)  # as under nohup
    process.send_signal(signal.SIGHUP)
    (tmp_path / "go").touch()
    time.sleep(0.3)
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143


@pytest.mark.fault("surroundings", "convert", "PYTHONIOENCODING=ascii")
def test_a_terminal_that_knows_ascii_alone(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "converters/convert.py"), "random:resnet18", "--to", "torchvision"]
    for name in ("x.pth", "caf\u00e9.pth"):
        done = subprocess.run(
            [*command, "--out", name], cwd=tmp_path, text=True, capture_output=True,
            env=os.environ | {"PYTHONIOENCODING": "ascii"},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert "verified: torchvision resnet18" in done.stdout
        assert done.stdout.isascii()


@pytest.fixture
def full(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Yield a folder on a disk with room for so many kibibytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "none", str(folder)]).returncode:
        pytest.skip("mounting a small disk needs root")
    if request.param == 4:
        (folder / "old").write_bytes(bytes(4096))  # no room for the settings either
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.fault("disks", "convert", "a disk that is full, before or while the file is written")
@pytest.mark.parametrize("full", [4, 1024, 40_000], indirect=True)
@pytest.mark.parametrize("target", SUFFIX)
def test_a_full_disk_is_one_line(target: str, full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name for path in full.iterdir()}
    assert main(["random:resnet18", "--to", target, "--out", f"{full}/x{SUFFIX[target]}", "--verify", "no"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("convert.py: error: ")
    assert output.err.count("\n") == 1
    assert "No space left on device" in output.err or "os error 28" in output.err, output.err
    assert {path.name for path in full.iterdir()} == before


@pytest.mark.fault("disks", "convert", "a limit on the size of files")
@pytest.mark.parametrize("target", SUFFIX)
def test_a_limit_on_the_size_of_files_is_one_line(target: str, tmp_path: Path) -> None:
    limit = 1 << 20
    done = subprocess.run(
        [sys.executable, "-m", "converters.convert", "random:resnet18", "--to", target, "--verify", "no",
         "--out", str(tmp_path / f"x{SUFFIX[target]}")],
        cwd=ROOT, text=True, capture_output=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("convert.py: error: ")
    assert done.stderr.count("\n") == 1
    assert "File too large" in done.stderr or "os error 27" in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []
