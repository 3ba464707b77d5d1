"""--dry-run: memory against torch's allocator, time against published figures, and what does not fit."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from pretrain.config import parse_command
from pretrain.plan import GIB, GPUS, Plan, make_plan, views_per_second
from pretrain.train import main

RECORD = Path(__file__).parents[2] / "results" / "benchmarks" / "gpu.jsonl"
PAPER = ("--recipe", "imagenet_800ep")
# Peaks of torch's CUDA allocator in a whole eager step, in GiB, measured by tests/benchmarks/bench_gpu.py.
PEAKS = [
    (11.1, ()),
    (1.9, ("--optim.accumulate", "8")),
    (21.1, ("--optim.precision", "fp32")),
    (21.7, ("--optim.batch", "512")),
    (32.3, ("--optim.batch", "768")),
    (1.8, ("--gpus", "8")),
]


@cache
def plan(*arguments: str) -> Plan:
    return make_plan(*parse_command([*PAPER, "--dry-run", "--gpus", "1", *arguments]))


@pytest.mark.parametrize(("peak", "options"), PEAKS)
def test_memory_is_that_of_the_allocator(peak: float, options: tuple[str, ...]) -> None:
    assert plan(*options).memory == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize(
    ("published", "options"),
    [(2470, ("--gpu", "a100")), (1156, ("--gpu", "v100", "--optim.precision", "fp16")), (356, ("--gpu", "v100"))],
)
def test_time_is_near_what_nvidia_publishes_for_training(published: float, options: tuple[str, ...]) -> None:
    """Training alone is three of the four passes of a step: see the source beside `REACHED`."""
    assert plan(*options).images_per_second * 4 / 3 == pytest.approx(published, rel=0.12)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("CUDA graphs", ()),
        ("CUDA graphs, 1024 images", ("--optim.batch", "1024")),
        ("CUDA graphs, 32 images, one of 8 GPUs", ("--optim.batch", "32", "--model.bn_groups", "1")),
    ],
)
def test_time_is_near_what_was_measured(name: str, options: tuple[str, ...]) -> None:
    rows = [json.loads(line) for line in RECORD.read_text().splitlines()]
    measured = [row["step_ms"] for row in rows if row["name"] == name and "H200" in row["environment"]["device"]]
    assert measured
    assert plan("--gpu", "h200", *options).seconds * 1000 == pytest.approx(measured[-1], rel=0.12)


def test_operations_of_a_resnet50() -> None:
    """4.09 G multiply-adds an image, two operations each; a step is four passes."""
    p = plan()
    assert p.flops == pytest.approx(4 * 2 * 4.09e9, rel=0.01)
    assert p.parameters == 23_508_032 + 2048 * 2048 + 2048 + 2048 * 128 + 128
    assert p.steps == 800 * (1_281_167 // 256)


def test_the_network_carries_gradients_views_and_keys() -> None:
    p = plan("--gpus", "8")
    gradients, views, keys = 2 * 7 / 8 * 4 * p.parameters, 7 / 8 * 32 * 224 * 224 * 3, 7 * 32 * (128 * 4 + 2 * 8)
    assert p.network * GIB == pytest.approx(gradients + views + keys)
    assert plan().network == 0


def test_a_gpu_without_bfloat16_computes_in_fp32() -> None:
    assert plan("--gpu", "v100").precision == "float32"
    assert plan().precision == "bfloat16"


@pytest.mark.parametrize("gpus", ["8", "64"])
def test_many_gpus_share_a_large_batch(gpus: str) -> None:
    p = plan("--gpus", gpus, "--optim.batch", "2048", "--model.bn_groups", "64")
    assert p.gpus == int(gpus)
    assert p.memory < GPUS["h100"].memory
    assert p.hours == pytest.approx(p.steps * p.seconds / 3600)


def test_supervised_training_has_one_encoder() -> None:
    p = plan("--model.loss", "cross_entropy", "--labels.ratio", "1")
    assert p.flops == pytest.approx(3 * 2 * 4.09e9, rel=0.01)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--gpus", "3"), "optim.batch=256 does not divide by 3 processes"),
        (("--gpus", "16"), "model.bn_groups=8 does not divide over 16 processes x 1 micro-batches"),
        (("--gpu", "h20"), "--gpu h20: must be one of h200, h100, a100, v100, 4090"),
        (("--gpus", "0"), "--gpus 0: must be 1 or more"),
        (("--images", "100"), "100 training images do not fill a batch; use --optim.batch 100 or less"),
    ],
)
def test_a_mistake_is_one_line(options: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PAPER, "--dry-run", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"pretrain: error: {line}")
    assert err.count("\n") == 1


def test_own_images_are_counted_or_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--recipe", "my_folder", "--dry-run", "--data.train", str(tmp_path / "not_there")]) == 2
    assert "give it with --images" in capsys.readouterr().err
    assert main(["--recipe", "my_folder", "--dry-run", "--images", "5000", "--gpus", "1"]) == 0
    assert "5,000 images" in capsys.readouterr().out


def test_nothing_is_trained_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*PAPER, "--dry-run"]) == 0
    table = capsys.readouterr().out
    for part in ("28.0 M", "GFLOP an image", "1.8 of 80 GiB a GPU at 32 images each: fits", "GPU-hours"):
        assert part in table
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_says_how_to_make_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PAPER, "--dry-run", "--gpus", "1", "--gpu", "4090", "--optim.batch", "768"]) == 0
    assert "does NOT fit: raise --optim.accumulate or --gpus" in capsys.readouterr().out


def test_the_rate_of_the_views_is_measured() -> None:
    config = parse_command([*PAPER])[0]
    assert 1 < views_per_second(config, 0.3) < 100_000
