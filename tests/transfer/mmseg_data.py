"""The check of images and masks before the first step. Run by test_segment.py in a process of its own."""

from __future__ import annotations

import io
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from results.record import read_all
from tests.transfer.mask_sets import CLASSES, SIZE, command, write_image, write_mask, write_set, write_task
from transfer.segment import main

FIGURES = "segmentation figures"
H, W = SIZE[::-1]
RNG = np.random.default_rng(1)


@pytest.fixture(autouse=True)
def cache(own_cache: Path) -> Path:
    return own_cache


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return write_set(tmp_path)


def check(root: Path, capsys: pytest.CaptureFixture[str], *more: str, **settings: Any) -> tuple[int, str]:
    """Check the data of a task; return the status, and the line that was printed. Nothing may be written."""
    status = main(command(root, write_task(root / "task.yaml", **settings), "--check-data", *more))
    said = capsys.readouterr()
    assert not (root / "out").exists()
    assert not (root / "records").exists()
    (line,) = (said.err if status else said.out).strip().splitlines()
    return status, line


def test_a_data_set_in_order_passes_and_the_second_check_opens_nothing(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, line = check(tmp_path, capsys)
    assert (status, line.split(": ", 2)[2]) == (0, "3 training and 2 test images with their masks")
    status, line = check(tmp_path, capsys)
    assert status == 0
    assert line.endswith("3 training and 2 test images with their masks, unchanged since an earlier check")
    mask = np.full((H, W), 255, np.uint8)
    mask[0, :3] = 0, 1, 7
    write_mask(mine / "masks" / "val" / "1.png", mask)
    status, line = check(tmp_path, capsys)
    assert status == 2
    assert "masks/val/1.png: labels [7] are neither below 3 nor 255" in line


def uniform(labels: np.ndarray) -> Callable[[Path], None]:
    """Write these labels into every test mask."""

    def write(mine: Path) -> None:
        for path in (mine / "masks" / "val").iterdir():
            write_mask(path, labels)

    return write


def block(*labels: int) -> np.ndarray:
    """Return a mask that shows these labels in stripes."""
    return np.resize(np.array(labels, np.uint8), W)[None].repeat(H, 0)


def turned(orientation: int, name: str = "train/1.jpg", **more: Any) -> Callable[[Path], None]:
    return lambda mine: write_image(mine / "images" / name, RNG, orientation=orientation, **more)


def mask(content: np.ndarray, name: str = "train/2.png") -> Callable[[Path], None]:
    return lambda mine: write_mask(mine / "masks" / name, content)


def grey_of_4_bits(mine: Path) -> None:
    """Write labels 0, 1, 2 as 4-bit grey, which decoders stretch to 0, 17, 34."""
    rows = b"".join(b"\0" + bytes([0x01, 0x20] * (W // 4)) for _ in range(H))

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", W, H, 4, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (mine / "masks" / "train" / "0.png").write_bytes(png)


def reordered_palettes(mine: Path) -> None:
    """Save two masks with palettes, one of them in another order, as programs do that sort or shorten palettes."""
    colours = {0: (0, 0, 0), 1: (200, 0, 0), 2: (0, 200, 0)}
    for name, order in (("0", (0, 1, 2)), ("1", (0, 2, 1))):
        image = Image.fromarray(block(0, 1, 2)).convert("P")
        image.putpalette([value for i in order for value in colours[i]])
        image.save(mine / "masks" / "train" / f"{name}.png")


def as_jpeg(mine: Path) -> None:
    """Save a mask as JPEG under its name."""
    buffer = io.BytesIO()
    Image.fromarray(block(0, 1, 2)).save(buffer, "jpeg")
    (mine / "masks" / "train" / "0.png").write_bytes(buffer.getvalue())


def cut(name: str) -> Callable[[Path], None]:
    """Cut a file, as an interrupted copy does."""

    def write(mine: Path) -> None:
        content = (mine / name).read_bytes()
        (mine / name).write_bytes(content[: len(content) // 2])

    return write


def fault(what: str, kind: str = FIGURES) -> Any:
    return pytest.mark.fault(kind, "segment", what)


WRONG = [
    pytest.param(
        uniform(block(0, 1, 255)), "no test mask shows 2 (dog), 1 of 3 classes, and 30 % of the pixels are ignored",
        marks=fault("a class drawn as the ignore value in every test mask"),
    ),
    pytest.param(
        lambda mine: [mask(block(0, 2), f"train/{i}.png")(mine) for i in range(3)], "no training mask shows 1 (cat)",
        marks=fault("a class that no training mask shows"),
    ),
    pytest.param(
        mask(block(0, 1, 2, 3)), "masks/train/2.png: labels [3] are neither below 3 nor 255 (ignored); do they count",
        marks=fault("labels that count from 1"),
    ),
    pytest.param(
        mask(np.where(block(0, 1) == 1, 256, 0).astype(np.uint16)), "train/2.png: labels [256] are neither below 3",
        marks=fault("a 16-bit mask whose labels mmseg takes modulo 256"),
    ),
    pytest.param(mask(block(0, 1).repeat(2, 1)), "train/2.png: 40 x 16 pixels, and its image ",
                 marks=fault("a mask of another size than its image")),
    pytest.param(mask(block(0, 1).T.copy()), "train/2.png: 16 x 20 pixels, and its image ",
                 marks=fault("a mask that is turned")),
    pytest.param(mask(np.zeros((H, W, 3), np.uint8)), "train/2.png: RGB is no mask", marks=fault("an RGB mask")),
    pytest.param(grey_of_4_bits, "train/0.png: grey with 4 bits", marks=fault("a mask of 4-bit grey, read stretched")),
    pytest.param(as_jpeg, "train/0.png: JPEG changes the class indices", marks=fault("a mask saved as JPEG")),
    pytest.param(reordered_palettes, "train/1.png: the colour #00c800 is label 1, and 2 in ",
                 marks=fault("masks whose palettes are in different orders")),
    pytest.param(turned(6), "images/train/1.jpg: its EXIF orientation 6 turns the image",
                 marks=fault("EXIF orientation 6 of a training image")),
    pytest.param(turned(3, "val/0.jpg"), "images/val/0.jpg: its EXIF orientation 3",
                 marks=fault("EXIF orientation 3 of a test image")),
    pytest.param(cut("images/train/1.jpg"), "images/train/1.jpg: ", marks=fault("a truncated image")),
    pytest.param(cut("masks/val/1.png"), "masks/val/1.png: this mask cannot be read",
                 marks=fault("a truncated mask")),
    pytest.param(lambda mine: (mine / "masks/val/1.png").write_bytes(b""), "val/1.png: this mask cannot be read",
                 marks=fault("an empty mask")),
    pytest.param(uniform(block(255)), "nothing in the test masks can be scored: 100 % of the pixels are ignored",
                 marks=fault("test masks in which everything is ignored", "figures that mean nothing")),
    pytest.param(lambda mine: [mask(block(255), f"train/{i}.png")(mine) for i in range(3)],
                 "nothing in the training masks can be learned",
                 marks=fault("training masks in which everything is ignored", "figures that mean nothing")),
    pytest.param(lambda mine: (mine / "masks/train/1.png").unlink(), "1 of 6 files are missing, the first is ",
                 marks=fault("an image without a mask")),
    pytest.param(lambda mine: (mine / "images/val/1.jpg").rename(mine / "images/val/1.JPG"),
                 "masks/val/1.png: 1 of 2 masks have no image that ends in .jpg",
                 marks=fault("an image whose suffix is in capitals", "walking folders")),
    pytest.param(lambda mine: shutil.copytree(mine / "images/val", mine / "images/val/.ipynb_checkpoints"),
                 "2 images lie in hidden folders", marks=fault("images in a hidden folder", "walking folders")),
    pytest.param(lambda mine: [(mine / kind / "val" / "loop").symlink_to("..") for kind in ("images", "masks")],
                 "images/val/loop: a link to a folder that encloses it; remove it",
                 marks=fault("a link to the parent folder among images and masks", "walking folders")),
]  # fmt: skip


@pytest.mark.parametrize(("break_it", "message"), WRONG)
def test_a_wrong_file_is_named_in_one_line(
    break_it: Callable[[Path], None], message: str, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_it(mine)
    status, line = check(tmp_path, capsys)
    assert status == 2
    assert message in line
    assert str(mine) in line


@fault("labels that are none in the second of 130 masks")
def test_every_mask_is_read(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(130):
        shutil.copy(mine / "images" / "train" / "0.jpg", mine / "images" / "train" / f"{i:03}.jpg")
        mask(block(0, 1, 2), f"train/{i:03}.png")(mine)
    mask(block(0, 1, 9), "train/001.png")(mine)
    status, line = check(tmp_path, capsys)
    assert (status, "masks/train/001.png: labels [9] are neither below 3" in line) == (2, True)


@fault("EXIF orientation in a PNG, before and behind the pixels")
@pytest.mark.parametrize("behind", [False, True])
def test_the_orientation_of_a_png_is_refused_wherever_its_tag_stands(
    behind: bool, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (mine / "images").glob("*/*.jpg"):
        Image.open(path).save(path.with_suffix(".png"))
        path.unlink()
    path = mine / "images" / "train" / "1.png"
    write_image(path, RNG, orientation=6)
    if behind:
        content = path.read_bytes()
        start = content.index(b"eXIf") - 4
        end = start + 12 + struct.unpack(">I", content[start : start + 4])[0]
        path.write_bytes(content[:start] + content[end:-12] + content[start:end] + content[-12:])
    assert cv2.imread(str(path)).shape[:2] == (W, H), "it is turned when it is read"
    status, line = check(tmp_path, capsys, dataset_img_suffix=".png")
    assert (status, "train/1.png: its EXIF orientation 6" in line) == (2, True)


def test_a_jpeg_with_something_behind_its_end_is_complete(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = mine / "images" / "train" / "1.jpg"
    path.write_bytes(path.read_bytes() + b"\0\0")
    assert check(tmp_path, capsys)[0] == 0


def lines(*text: str) -> Callable[[Path], None]:
    return lambda mine: (mine / "train.txt").write_bytes("".join(text).encode())


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        pytest.param(lines("0\r\n1\r\n2\r\n"), None, marks=fault("a list with CRLF")),
        pytest.param(lines("0\n1\n2"), None, marks=fault("a list without a last line break")),
        pytest.param(lines("0\n1\n\n2\n"), "train.txt, line 3: blank", marks=fault("a list with a blank line")),
        pytest.param(lines("0\n1\n2\n\n"), "train.txt, line 4: blank", marks=fault("a list with a blank end")),
        pytest.param(lines("0\n1\n0\n"), "train.txt, line 3: 0 stands in line 1 too", marks=fault("a line twice")),
        pytest.param(lines("0\n1\n2.jpg\n"), "2.jpg.jpg (", marks=fault("a list with suffixes")),
        pytest.param(lines("﻿0\n1\n2\n"), r"line 1: '\ufeff0'", marks=fault("a list with a byte order mark")),
        pytest.param(lambda mine: (mine / "train.txt").write_bytes(b"\xe9\n"), "dataset cannot be read",
                     marks=fault("a list that is not UTF-8", "third-party exceptions")),
        pytest.param(lines(), "no images for train_dataloader", marks=fault("an empty list")),
    ],
)  # fmt: skip
def test_a_list_is_read_as_meant_or_its_line_is_named(
    break_it: Callable[[Path], None], message: str | None, mine: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (mine / "val.txt").write_text("0\n1\n")
    break_it(mine)
    status, line = check(tmp_path, capsys, lists=True)
    assert status == (2 if message else 0)
    assert (message or "3 training and 2 test images") in line


@pytest.mark.parametrize("named", ["dog", "[dog]", "[2]", "any"])
def test_a_class_named_as_absent_may_be_absent(
    named: str, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uniform(block(0, 1, 255))(mine)
    assert check(tmp_path, capsys, "--cfg-options", f"absent_classes={named}")[0] == 0
    status, line = check(tmp_path, capsys, absent_classes=["dog"])
    assert status == 0
    status, line = check(tmp_path, capsys, absent_classes=["dogs"])
    assert (status, "there is no class 'dogs'; did you mean dog?" in line) == (2, True)


@fault("masks that show one class only", "figures that mean nothing")
def test_one_class_is_refused_whatever_is_named_as_absent(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uniform(block(1))(mine)
    status, line = check(tmp_path, capsys, absent_classes="any")
    assert (status, "all test masks show one class only, cat" in line) == (2, True)


def test_label_0_is_ignored_where_the_task_says_so(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With reduce_zero_label two classes are labels 1 and 2; label 3 is none."""
    two = {"classes": CLASSES[1:], "dataset_reduce_zero_label": True}
    assert check(tmp_path, capsys, **two)[0] == 0
    mask(block(0, 1, 2, 3))(mine)
    status, line = check(tmp_path, capsys, **two)
    assert (status, "labels [3] are neither below 3 nor 255" in line) == (2, True)


@fault("an ignore value of the metric that is a class")
def test_what_the_metric_ignores_is_no_class(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in mine.glob("masks/*/*.png"):
        write_mask(path, block(0, 1, 2))
    status, line = check(tmp_path, capsys, val_evaluator={"type": "ClassIoU", "ignore_index": 1})
    assert (status, "no test mask shows 1 (cat)" in line) == (2, True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset_type": "NoSuchDataset"}, "train_dataloader.dataset cannot be read, KeyError"),
        ({"dataset_metainfo": {"classes": CLASSES, "palette": [[0, 0, 0]]}}, "train_dataloader.dataset cannot be read"),
        ({"dataset_type": "ADE20KDataset"}, "train_dataloader.dataset cannot be read, ValueError: new classes"),
        ({"dataset_data_prefix": {"img_path": "nowhere", "seg_map_path": "masks"}}, "cannot be read, FileNotFound"),
        ({"dataset_data_prefix": {"img_path": "images/val"}}, "masks have no image that ends in .jpg"),
        ({"dataset_pipeline": [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotation"}]}, "LoadAnnotation is not in"),
        ({"dataset_pipeline": [{"type": "LoadImageFromFile"}, {"type": "PackSegInputs"}]}, "needs one LoadAnnotations"),
        (
            {"dataset_pipeline": [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}]},
            "train_dataloader.dataset.pipeline fails on ",
        ),
        (
            {"dataset_pipeline": [
                {"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"},
                {"type": "Resize", "scale_factor": 2.0, "keep_ratio": True}, {"type": "PackSegInputs"},
            ]},
            "val_dataloader.dataset.pipeline: the truth of ",
        ),
    ],
)  # fmt: skip
@fault("mistakes in the data sets of a config", "third-party exceptions")
def test_what_mmseg_cannot_build_is_one_line(
    settings: dict[str, Any], message: str, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, line = check(tmp_path, capsys, **settings)
    assert status == 2
    assert message in line


def test_a_palette_that_the_reader_would_turn_into_colours_is_refused(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = Image.fromarray(block(0, 1, 2)).convert("P")
    image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    for path in mine.glob("masks/*/*.png"):
        image.save(path)
    assert check(tmp_path, capsys)[0] == 0
    pipeline = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations", "imdecode_backend": "cv2"}]
    status, line = check(tmp_path, capsys, dataset_pipeline=[*pipeline, {"type": "PackSegInputs"}])
    assert (status, "leave imdecode_backend out" in line) == (2, True)


@pytest.mark.slow
@fault("a set that is in order is trained on, and the record says that it was checked")
def test_a_run_is_checked_first_and_the_record_says_so(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = write_task(tmp_path / "task.yaml")
    assert main(command(tmp_path, task)) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert said.index("data check passed") < said.index("3 training images, 2 test images")
    (record,) = read_all(tmp_path / "records")
    assert record.environment["data_check"] == "passed"
    uniform(block(0, 1, 255))(mine)
    assert main(command(tmp_path, task, "--force")) == 2
    assert "no test mask shows 2 (dog)" in capsys.readouterr().err
    assert read_all(tmp_path / "records") == [record], "nothing was written"
    assert main(command(tmp_path, task, "--force", "--skip-check")) == 0
    (unchecked,) = read_all(tmp_path / "records")
    assert unchecked.environment["data_check"] == "skipped"
    assert unchecked.config_hash == record.config_hash


def test_the_config_of_a_task_is_not_changed_by_the_names_of_absent_classes(tmp_path: Path) -> None:
    from transfer.openmmlab.config import recorded, step_batch
    from transfer.segmentation.config import read_task

    one, other = (read_task(str(write_task(tmp_path / "t.yaml", absent_classes=value))) for value in (None, ["dog"]))
    assert isinstance(one, Config)
    assert recorded(one, step_batch(one, 1)) == recorded(other, step_batch(other, 1))
