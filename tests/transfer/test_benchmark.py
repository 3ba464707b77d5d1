"""What every benchmark command keeps to: records, receipts, dry runs, where files go."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from results.record import read
from tests.transfer.garments import ROOT, arguments, recorded, write_garments
from transfer import finetune, knn, linear, svm
from transfer.classification import features

CKPT = "--ckpt=random:resnet18?seed=0"


@pytest.fixture(scope="module")
def garments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_garments(tmp_path_factory.mktemp("garments"), train=6, test=3)


def test_the_receipt_lists_the_records_measured_or_on_record(garments: Path, tmp_path: Path) -> None:
    receipt = tmp_path / "made" / "receipt.json"
    given = [*arguments(garments, tmp_path, k="[1]", receipt=receipt), "--seeds", "0", "1"]
    assert knn.main(given) == 0
    listed = json.loads(receipt.read_text())
    assert [read(Path(path)) for path in listed] == recorded(tmp_path)
    assert len(listed) == 2
    receipt.unlink()
    written = [Path(path).stat().st_mtime_ns for path in listed]
    assert knn.main(given) == 0
    assert json.loads(receipt.read_text()) == listed
    assert [Path(path).stat().st_mtime_ns for path in listed] == written  # on record: not measured again


def test_a_failed_command_writes_no_receipt(garments: Path, tmp_path: Path) -> None:
    receipt = tmp_path / "receipt.json"
    assert knn.main(arguments(garments, tmp_path, k="[1000]", receipt=receipt)) == 2
    assert not receipt.exists()


@pytest.mark.parametrize(
    ("command", "recipe", "column"),
    [
        (knn, "fashion_knn", "knn/50cf4f57625b"),
        (linear, "fashion_linear", "linear/c90cf83eb34d"),
        (linear, "fashion_linear_moco", "linear/50c6f2f96543"),
        (finetune, "fashion_finetune", "finetune/9e7280081128"),
        (svm, "fashion_lowshot", "lowshot/fa890128a1eb"),
    ],
)
def test_a_dry_run_prints_the_columns_of_the_records_and_measures_nothing(
    command: Any, recipe: str, column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The hashes of results/records: a changed config would silently start a column of its own."""

    def fail(*_: Any) -> None:
        raise AssertionError("a dry run computes no features")

    monkeypatch.setattr(features, "raw_features", fail)
    monkeypatch.chdir(tmp_path)
    bf16 = ["--precision=bf16"] if recipe in ("fashion_linear_moco", "fashion_finetune") else []  # auto on records' CPU
    given = [CKPT, f"--recipe={recipe}", "--size=32", "--receipt=receipt.json", "--dry-run", *bf16]
    assert command.main(given) == 0
    (line,) = capsys.readouterr().out.splitlines()
    planned = json.loads(line)
    assert f"{planned['task']}/{planned['config_hash']}" == column
    assert planned["backbone_id"] == "random:resnet18"
    assert planned["path"] == f"{planned['task']}/random-resnet18_s0/{planned['config_hash']}_seed0.json"
    assert planned["title"]
    assert not list(tmp_path.iterdir())
    task, config_hash = column.split("/")
    kept = list((ROOT / "results" / "records" / task).glob(f"*/{config_hash}_seed0.json"))
    assert read(kept[0]).config == planned["config"]


def test_a_record_names_the_job_that_asked_for_it(
    garments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert knn.main(arguments(garments, tmp_path / "by hand", k="[1]")) == 0
    monkeypatch.setenv("UNIMOCO_JOB", "desk/knn")
    assert knn.main(arguments(garments, tmp_path / "by a study", k="[1]")) == 0
    (by_hand,), (by_a_study,) = recorded(tmp_path / "by hand"), recorded(tmp_path / "by a study")
    assert "job" not in by_hand.environment
    assert by_a_study.environment["job"] == "desk/knn"


def test_without_options_all_files_go_where_git_ignores_them(
    garments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(ROOT / ".gitignore", tmp_path)
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    assert knn.main([CKPT, f"--data={garments}", "--size=32", "--k=[1]", "--device=cpu", "--workers=0"]) == 0
    (record,) = (tmp_path / "runs" / "records").glob("knn/*/*.json")
    assert read(record).config["k"] == [1]
    status = subprocess.run(["git", "status", "--porcelain", "-uall"], check=True, capture_output=True, text=True)
    assert status.stdout == "?? .gitignore\n"
