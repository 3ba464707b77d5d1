"""Detection. Tests that need detectron2 or mmdet run in processes of their own: the two cannot share one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.inside import run_inside
from transfer.detect import main, split
from transfer.detection.pictures import SIDE, Objects, side_by_side
from transfer.tasks import DETECTION

ROOT = Path(__file__).parents[2]
INSIDE = sorted(path for name in ("detectron2", "mmdet") for path in Path(__file__).parent.glob(f"{name}_*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("file", INSIDE, ids=lambda path: path.stem)
def test_inside_an_engine(file: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Run the tests of a file that imports detectron2 or mmdet."""
    run_inside(file, request, tmp_path)


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


BLOCKED = "import sys; sys.modules.update(dict.fromkeys(['detectron2', 'mmseg', 'mmcv', 'mmengine']))"


def test_what_engines_share_needs_no_engine() -> None:
    modules = sorted(f"transfer.detection.{path.stem}" for path in (ROOT / "transfer" / "detection").glob("[a-z]*.py"))
    modules.append("transfer.tasks")
    assert len(modules) >= 5
    done = run(f"{BLOCKED}; import {', '.join(modules)}")
    assert done.returncode == 0, done.stderr


def test_help_needs_no_detectron2() -> None:
    code = f"{BLOCKED}; from transfer.detect import main; main(['--help'])"
    done = run(code)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    for task in DETECTION.names():
        assert task in said
    assert "family B" in said


@pytest.mark.parametrize("file", sorted(DETECTION.folder.rglob("*.yaml")), ids=lambda path: path.stem)
def test_comments_of_configs_quote_no_measured_scores(file: Path) -> None:
    """Published scores have a source; measured ones change with every record and are in the generated tables."""
    comments = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert not [line for line in comments if re.search(r"Measured here|\d ± \d", line)]


def test_objects_are_drawn_in_both_panels() -> None:
    image = np.full((60, 100, 3), 128, np.uint8)
    masks = torch.zeros(1, 60, 100, dtype=torch.bool)
    masks[:, 20:40, 30:70] = True
    box, points = torch.tensor([[30.0, 20.0, 70.0, 40.0]]), torch.full((1, 17, 3), 25.0)
    truth = Objects(box, torch.tensor([3]), ["dog"], masks, points)
    nothing = Objects(torch.zeros(0, 4), torch.zeros(0), [])
    picture = side_by_side(image, truth, nothing)
    height, width = picture.shape[:2]
    assert width >= 2 * SIDE
    panels = picture[30 : height - 4, 4 : width // 2 - 4], picture[30 : height - 4, width // 2 + 4 : -4]
    zoom = panels[0].shape[0] / 60
    inside = (slice(int(25 * zoom), int(35 * zoom)), slice(int(45 * zoom), int(60 * zoom)))
    assert (panels[0][inside] != 128).any(axis=-1).all(), "the mask is filled"
    assert (panels[0][: int(15 * zoom), : int(15 * zoom)] == 128).all()
    assert (panels[1] == 128).all()


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
        (
            ["--ckpt", "a.pth", "SOLVER.BASE_LR", "1", "--force"],
            ["--ckpt", "a.pth", "--force"],
            ["SOLVER.BASE_LR", "1"],
        ),
        (["--ckpt", "A/B.pth", "--resume"], ["--ckpt", "A/B.pth", "--resume"], []),
    ],
)
def test_settings_come_after_the_options(given: list[str], options: list[str], settings: list[str]) -> None:
    assert split(given) == (options, settings)


def test_a_missing_task_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--ckpt", "random"]) == 2
    assert "--task is missing: one of cityscapes-instance" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--task xyz: no such task or file; there are cityscapes-instance"):
        DETECTION.find("xyz")
    with pytest.raises(ValueError, match="no such task"):  # a base is no task
        DETECTION.find("c4")
    assert DETECTION.describe("fashion-c4").startswith("Mask R-CNN R18-C4")


def test_a_mistyped_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--ckpt", "random", "--taks", "fashion-fpn"]) == 2
    assert capsys.readouterr().err.strip() == "detect: error: --taks: unknown option; did you mean --task?"


@pytest.mark.fault("a newcomer's mistakes", "detect", "--check printed a warning of torch")
def test_check_prints_no_warning(tmp_path: Path) -> None:
    done = run(f"from transfer.detect import main; main(['--check', '--data-root', {str(tmp_path)!r}])")
    assert "RoIAlign" in done.stdout
    assert done.stderr == ""
