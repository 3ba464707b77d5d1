"""detect.py on a user's data set, with every protocol. Run by test_detect.py on its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from converters import VerificationError, backbone_state
from converters.backbone import is_counter
from results.record import Record, read_all
from tests.transfer import own_sets
from tests.transfer.detectron2_runs import SMALL
from transfer.benchmark import read_checkpoint
from transfer.detect import main


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    root = tmp_path / "pets"
    root.mkdir()
    return own_sets.write_coco(root, masks=True)


def measured(data: Path, *options: str, code: int = 0) -> Record:
    """Measure on a data set, with two iterations; return the newest record."""
    records = data.parent / "records"
    given = ["--ckpt", "random:resnet18", "--data", str(data), "--device", "cpu", "--out", str(data.parent / "out")]
    settings = SMALL if "retinanet" not in options else SMALL[: SMALL.index("MODEL.ROI_HEADS.SCORE_THRESH_TEST")]
    assert main([*given, "--records", str(records), *options, *settings]) == code
    return max(read_all(records), key=lambda record: (records / record.path).stat().st_mtime_ns)


@pytest.mark.parametrize("protocol", ["fpn", "c4", "retinanet", "fpn-frozen"])
def test_every_protocol_runs(protocol: str, pets: Path, capfd: pytest.CaptureFixture[str]) -> None:
    record = measured(pets, "--protocol", protocol)
    said = capfd.readouterr()
    assert (
        "pets: 6 training images (1 without objects), 4 test images, 3 classes (ant, bee, cat), boxes and m" in said.out
    )
    assert "100 epochs of the 5 training images with objects, 31 iterations of 16" in said.out
    assert "data check passed" in said.out
    assert "Category ids" not in said.out + said.err
    assert record.task == f"own-pets-{protocol}"
    assert record.environment["data"] == "pets"
    assert record.config["TASK.IDENTITY"] == record.environment["data_identity"]
    assert not [name for name in record.config if str(pets.parent) in str(record.config[name])], "no path"
    kinds = {"bbox"} if protocol == "retinanet" else {"bbox", "segm"}
    assert {name.partition("/")[0] for name in record.metrics} == kinds
    (folder,) = (pets.parent / "out").glob(f"*/own-pets-{protocol}/seed0")
    state = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    trained = {name: tensor for name, tensor in state.items() if not is_counter(name)}
    backbone = read_checkpoint("random:resnet18", 0)
    if protocol == "fpn-frozen":
        assert backbone.compare(backbone_state(trained, "detectron2"), ignore=is_counter) == 100
    else:
        with pytest.raises(VerificationError):
            backbone.compare(backbone_state(trained, "detectron2"), ignore=is_counter)
    assert [*(folder / "vis").iterdir()]


def test_an_accepted_overlap_is_recorded_and_a_data_set_that_was_moved_is_on_record(
    pets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_sets.copy_into_train(pets)
    given = ["--ckpt", "random:resnet18", "--data", str(pets), "--device", "cpu", "--out", str(pets.parent / "out")]
    assert main([*given, "--check-data"]) == 2
    assert "1 of 4 test images are training images" in capsys.readouterr().err
    first = measured(pets, "--allow-overlap")
    assert "1 of 4 test images" in first.environment["overlap"]
    moved = pets.parent / "elsewhere" / "pets"
    moved.parent.mkdir()
    pets.rename(moved)
    capsys.readouterr()
    given = ["--ckpt", "random:resnet18", "--data", str(moved), "--device", "cpu", "--out", str(pets.parent / "out")]
    given += ["--records", str(pets.parent / "records"), "--allow-overlap"]
    assert main([*given, *SMALL]) == 0
    assert "on record" in capsys.readouterr().out
    content = json.loads((moved / "val.json").read_text())
    content["annotations"].pop()
    (moved / "val.json").write_text(json.dumps(content))
    assert main([*given, "--dry-run", *SMALL]) == 0
    assert json.loads(capsys.readouterr().out)["config_hash"] != first.config_hash


@pytest.mark.fault("a newcomer's mistakes", "detect", "one's own data given together with a task")
def test_a_task_and_ones_own_data_exclude_each_other(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--ckpt", "random", "--data", str(pets), "--task", "fashion-fpn"]) == 2
    assert "--task fashion-fpn: your own data has --protocol in its place" in capsys.readouterr().err
