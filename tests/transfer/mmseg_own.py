"""segment.py on a user's images and masks. Run by test_segment.py in a process of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from converters import backbone_state
from converters.backbone import is_counter
from converters.conversion import convert
from results.record import read_all
from tests.pages import OWN_DATA, documented, own_data
from tests.transfer.mask_sets import CLASSES, write_mask, write_set
from tests.transfer.test_own_masks import given, load
from transfer.benchmark import read_checkpoint
from transfer.segment import main
from transfer.segmentation.own import OwnDataset
from transfer.tasks import SEGMENTATION

COLOURS = [[10, 20, 30], [200, 0, 0], [0, 0, 200]]


@pytest.fixture
def mine(tmp_path: Path, own_cache: Path) -> Path:
    """A set whose masks have a palette."""
    root = write_set(tmp_path)
    for path in (root / "masks").rglob("*.png"):
        mask = Image.fromarray(np.asarray(Image.open(path)), mode="P")
        mask.putpalette(np.resize(COLOURS, 768).astype(np.uint8).tobytes())
        mask.save(path)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


def command(root: Path, *more: str) -> list[str]:
    return ["--ckpt=random:resnet18", "--device=cpu", f"--records={root.parent / 'records'}", *given(root), *more]


SMALL = ["--epochs=1", "--cfg-options", "model.decode_head.channels=8", "model.auxiliary_head.channels=8"]


def test_a_set_with_palettes_is_measured_and_a_moved_one_is_on_record(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(mine).palette == COLOURS
    assert main(command(mine, *SMALL)) == 0
    said = capsys.readouterr().out
    assert "mine: 3 training and 2 test images, 3 classes (ground, cat, dog)" in said
    assert "data check passed" in said
    (record,) = read_all(mine.parent / "records")
    assert record.task == "own-mine-fcn"
    assert record.environment["data"] == "mine"
    assert record.config["train_dataloader"]["dataset"]["identity"] == record.environment["data_identity"]
    assert str(mine.parent) not in json.dumps(record.config), "no path"
    assert {f"IoU/{name}" for name in CLASSES} < record.metrics.keys()
    moved = mine.parent / "elsewhere" / "mine"
    moved.parent.mkdir()
    mine.rename(moved)
    again = command(moved, f"--records={mine.parent / 'records'}", *SMALL)
    assert main(again) == 0
    assert "on record" in capsys.readouterr().out
    assert main([*again[:-3], "--task=fashion-fcn", *again[-3:]]) == 2
    assert "--task fashion-fcn: your own data makes its own" in capsys.readouterr().err


def test_the_commands_and_the_code_of_the_page(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/own_data.md: every command checks its data, the first measures; the code builds a network with the file."""
    monkeypatch.chdir(tmp_path)
    for copy in ("roads", "tool_scenes"):
        shutil.copytree(mine, tmp_path / "data" / copy)
    backbone = read_checkpoint("random:resnet18", 7)
    Path("runs/birds").mkdir(parents=True)
    torch.save(backbone.tensors, "runs/birds/last.pth")
    commands = own_data("transfer/segment.py", root=tmp_path)
    for _, words in commands:
        assert main([*words, "--device=cpu", "--check-data"]) == 0
    assert capsys.readouterr().out.count("data check passed") == len(commands) == 2
    assert main([*commands[0][1], "--device=cpu", *SMALL]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(
        f"next: python transfer/segment.py --ckpt random:resnet18 --images {tmp_path}/data/roads/images"
    )
    convert("runs/birds/last.pth", "openmmlab", check="no")
    base = SEGMENTATION.folder / "bases" / "fcn-d8.yaml"
    Path("your_config.py").write_text(Config({"model": Config.fromfile(base).model}).pretty_text)
    found: dict[str, Any] = {}
    exec(documented("mmengine", OWN_DATA), found)
    model = found["model"]
    assert (model.decode_head.num_classes, model.auxiliary_head.num_classes) == (20, 20)
    assert backbone.compare(backbone_state(model.state_dict(), "openmmlab"), ignore=is_counter) == 120
    model.eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape[1] == 20


def dataset(root: Path, **options: Any) -> OwnDataset:
    (root / "list.tsv").write_text("train/0.jpg\ttrain/0.png\n")
    return OwnDataset(
        data_root=str(root), ann_file="list.tsv", data_prefix={"img_path": "images", "seg_map_path": "masks"},
        metainfo={"classes": CLASSES},
        pipeline=[{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}, {"type": "PackSegInputs"}], **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ignore", "wanted"),
    [(255, {0: 0, 1: 1, 2: 2, 255: 255}), (0, {0: 255, 1: 0, 2: 1, 3: 2, 255: 255}), (7, {0: 0, 1: 1, 2: 2, 7: 255})],
)
def test_the_ignored_label_is_mapped_and_the_classes_have_the_others(
    ignore: int, wanted: dict[int, int], mine: Path
) -> None:
    labels = np.resize([*wanted], (16, 20)).astype(np.uint8)
    write_mask(mine / "masks" / "train" / "0.png", labels)
    read = dataset(mine, ignore=ignore)[0]["data_samples"].gt_sem_seg.data[0].numpy()
    np.testing.assert_array_equal(read, np.vectorize(wanted.get)(labels))


def test_a_label_without_a_class_is_refused(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = np.asarray(Image.open(mine / "masks" / "val" / "1.png")).copy()
    mask[3, 3] = 3
    write_mask(mine / "masks" / "val" / "1.png", mask)
    assert main(command(mine, "--check-data")) == 2
    assert "1.png: labels [3] are neither below 3 nor 255 (ignored)" in capsys.readouterr().err
    assert main(command(mine, "--check-data", "--ignore=3")) == 0
