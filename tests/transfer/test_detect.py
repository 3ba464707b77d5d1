"""Detection. What needs detectron2 runs in processes of its own: it does not go together with mmseg."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from transfer.detect import split
from transfer.detection.tasks import TASKS, config_file, headline

ROOT = Path(__file__).parents[2]
INSIDE = sorted(Path(__file__).parent.glob("detectron2_*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("file", INSIDE, ids=lambda path: path.stem)
def test_inside_detectron2(file: Path) -> None:
    """Runs the tests of a file that imports detectron2."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(file), "-q", "-p", "no:cacheprovider"],
        cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


BLOCKED = "import sys; sys.modules.update(dict.fromkeys(['detectron2', 'mmseg', 'mmcv', 'mmengine']))"


def test_it_imports_and_helps_without_detectron2() -> None:
    code = f"{BLOCKED}; from transfer.detect import main; main(['--help'])"
    done = run(code)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    for task in TASKS:
        assert task in said
    assert "family B" in said


def test_a_missing_detectron2_is_one_line() -> None:
    code = """
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.startswith("detectron2") else found(name, *rest)
from transfer.detect import main
sys.exit(main(["--ckpt", "random", "--task", "fashion-fpn"]))
"""
    done = run(code)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == (
        "detect: error: detectron2 is not installed: bash setup.sh installs it"
    )


@pytest.mark.parametrize(
    ("given", "options", "settings"),
    [
        (["--seeds", "0", "1", "SOLVER.MAX_ITER", "9"], ["--seeds", "0", "1"], ["SOLVER.MAX_ITER", "9"]),
        (["--ckpt", "a.pth", "TEST.AUG.ENABLED", "True"], ["--ckpt", "a.pth"], ["TEST.AUG.ENABLED", "True"]),
        (["--ckpt", "A/B.pth", "--resume"], ["--ckpt", "A/B.pth", "--resume"], []),
    ],
)
def test_settings_stand_behind_the_options(given: list[str], options: list[str], settings: list[str]) -> None:
    assert split(given) == (options, settings)


def test_a_task_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    from transfer.detect import main

    assert main(["--ckpt", "random"]) == 2
    assert "--task is missing: one of cityscapes-instance" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--task voc: choose one of"):
        config_file("voc")
    assert headline("fashion-c4").startswith("Mask R-CNN R18-C4")
