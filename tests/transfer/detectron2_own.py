"""detect.py on a user's data set, with every protocol. Run by test_detect.py on its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from converters import VerificationError, backbone_state
from converters.backbone import is_counter
from converters.conversion import convert
from results.record import Record, read_all
from tests.pages import OWN_DATA, documented, own_data
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


def test_the_commands_and_the_code_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own_cache: Path
) -> None:
    """docs/own_data.md: every command checks its data, the first measures; the code builds a detector with the file."""
    monkeypatch.chdir(tmp_path)
    own_sets.write_coco(tmp_path / "data" / "pets")
    own_sets.write_coco(tmp_path / "data" / "tool_scenes")
    backbone = read_checkpoint("random:resnet18", 7)
    for path in (Path("runs/birds/last.pth"), Path("X")):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(backbone.tensors, path)
    commands = own_data("transfer/detect.py", root=tmp_path)
    for _, words in commands:
        assert main([*words, "--device=cpu", "--check-data"]) == 0
    assert capsys.readouterr().out.count("data check passed") == len(commands) >= 4
    assert main([*commands[0][1], "--device=cpu", *SMALL]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"next: python transfer/detect.py --ckpt random:resnet18 --data {tmp_path}/data/pets")
    convert("runs/birds/last.pth", "detectron2", check="no")
    found: dict[str, Any] = {}
    exec(
        documented("detectron2", OWN_DATA).replace("build_model(cfg)", "build_model(on_cpu(cfg))"),
        {"on_cpu": on_cpu},
        found,
    )
    model = found["model"]
    assert model.roi_heads.num_classes == 20
    trained = {name: tensor for name, tensor in model.state_dict().items() if not is_counter(name)}
    assert backbone.compare(backbone_state(trained, "detectron2"), ignore=is_counter) == 100


def on_cpu(cfg: Any) -> Any:
    cfg.MODEL.DEVICE = "cpu"
    return cfg


@pytest.mark.fault("a newcomer's mistakes", "detect", "one's own data given together with a task")
def test_a_task_and_ones_own_data_exclude_each_other(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--ckpt", "random", "--data", str(pets), "--task", "fashion-fpn"]) == 2
    assert "--task fashion-fpn: your own data has --protocol in its place" in capsys.readouterr().err
