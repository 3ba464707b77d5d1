"""A file with several sets of weights: which one a benchmark measures, and what it says and records."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from results.record import Record
from tests.transfer.garments import arguments, recorded, write_garments
from tests.transfer.two_sets import KIND, TRIED, assert_refuses_another, write_two_sets


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    return write_two_sets(folder) | {"garments": write_garments(folder / "garments")}


def measure(command: str, files: dict[str, Path], ckpt: str, to: Path, **more: object) -> Record:
    main = importlib.import_module(f"transfer.{command}").main
    assert main(arguments(files["garments"], to, ckpt=files[ckpt], arch="resnet18", **more)) == 0
    (record,) = recorded(to)
    return record


@pytest.mark.parametrize(
    ("command", "more"),
    [
        pytest.param("knn", {"k": "[1, 5]"}, marks=pytest.mark.fault(KIND, "knn", TRIED)),
        pytest.param("linear", {"penalties": "[0.1]"}, marks=pytest.mark.fault(KIND, "linear", TRIED)),
        pytest.param("svm", {"costs": "[1]"}, marks=pytest.mark.fault(KIND, "svm", TRIED)),
    ],
)
def test_metrics_are_those_of_the_chosen_set(
    command: str, more: dict[str, object], files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = {name: measure(command, files, name, tmp_path / name, **more) for name in ("model", "ema")}
    average = measure(command, files, "both", tmp_path / "default", **more)
    note = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(note) <= 1  # once in a process
    assert all("both.pth" in line and "--weights model" in line for line in note)
    trained = measure(command, files, "both", tmp_path / "model only", weights="model", **more)
    assert average.metrics == alone["ema"].metrics
    assert trained.metrics == alone["model"].metrics
    assert average.backbone["weights"] == "ema"
    assert average.backbone_id != trained.backbone_id
    main = importlib.import_module(f"transfer.{command}").main
    given = arguments(files["garments"], tmp_path / "refused", ckpt=files["both"])
    assert_refuses_another(main, given, capsys)
    assert not (tmp_path / "refused").exists()


@pytest.mark.fault(KIND, "finetune", TRIED)
def test_fine_tuning_starts_from_the_chosen_set(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transfer.finetune import main

    given = [*arguments(files["garments"], tmp_path, ckpt=files["both"]), "--labels.ratio=0.5"]
    plans: list[dict[str, Any]] = []
    for weights in ("model", "ema"):
        assert main([*given, f"--weights={weights}", "--dry-run"]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    assert plans[0]["path"] != plans[1]["path"]
    assert plans[0]["config"] == plans[1]["config"]
    assert_refuses_another(main, given, capsys)
