"""The command on small data: public data set trees, mistakes, records. Run by test_segment.py in its own process."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from results.record import read_all
from tests.converters.samples import SAMPLES
from transfer.scenes import ensure_scenes
from transfer.segment import main, parser
from transfer.tasks import SEGMENTATION

ROOT = Path(__file__).parents[2]
CLASSES = {"voc12aug": 21, "cityscapes": 19, "ade20k": 150}


def write(path: Path, content: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(content).save(path)


def cut(path: Path) -> None:
    """Truncate a file, as an interrupted copy does."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training and two test images of noise, in the trees of VOC12aug, Cityscapes and ADE20K."""
    root, rng = tmp_path_factory.mktemp("public"), np.random.default_rng(0)

    def pair(image: Path, mask: Path, labels: int) -> None:
        write(image, rng.integers(0, 256, (72, 96, 3), dtype=np.uint8))
        content = rng.integers(0, labels, (72, 96), dtype=np.uint8)
        content[:4] = 255 if labels < 150 else 0  # ignored
        write(mask, content)

    voc = root / "VOCdevkit" / "VOC2012"
    for names, masks, numbers in (("train", "", (0, 1)), ("aug", "Aug", (2, 3)), ("val", "", (4, 5))):
        for i in numbers:
            pair(voc / f"JPEGImages/2007_{i}.jpg", voc / f"SegmentationClass{masks}/2007_{i}.png", 21)
        (voc / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
        (voc / f"ImageSets/Segmentation/{names}.txt").write_text("".join(f"2007_{i}\n" for i in numbers))
    for split, other, count in (("train", "training", 4), ("val", "validation", 2)):
        for i in range(count):
            name, city = f"ulm_{i:06}_000019", root / "cityscapes"
            mask = city / f"gtFine/{split}/ulm/{name}_gtFine_labelTrainIds.png"
            pair(city / f"leftImg8bit/{split}/ulm/{name}_leftImg8bit.png", mask, 19)
            ade = root / "ade" / "ADEChallengeData2016"
            name = f"ADE_{split}_{i:08}"
            pair(ade / f"images/{other}/{name}.jpg", ade / f"annotations/{other}/{name}.png", 151)
    return root


def small(task: str) -> list[str]:
    """Return options for two iterations of a published task at 64 pixels."""
    values = {"train_cfg.max_iters": 2, "train_cfg.val_interval": 2, "model.data_preprocessor.size": "(64,64)"}
    crop, scale, resize = "3.crop_size=(64,64)", "2.scale=(96,72)", "1.scale=(96,72)"
    inner = ["datasets.0.", "datasets.1."] if task.startswith("voc") else [""]
    given = [f"train_dataloader.dataset.{which}pipeline.{value}" for which in inner for value in (crop, scale)]
    if "16s" not in task:
        given += [f"val_dataloader.dataset.pipeline.{resize}"]
    if task == "cityscapes-fcn-40k":
        values |= {"model.test_cfg.crop_size": "(64,64)", "model.test_cfg.stride": "(43,43)"}
    values |= {"images.train": 4, "images.val": 2}
    return ["--batch", "2", "--cfg-options", *given, *(f"{key}={value}" for key, value in values.items())]


@pytest.mark.parametrize("task", [name for name in SEGMENTATION.names() if name != "fashion-fcn"])
def test_each_published_task_trains_and_evaluates_on_its_data_set_tree(
    task: str, public: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = tmp_path / "records"
    arguments = ["--ckpt", "random", "--task", task, "--data-root", str(public), "--records", str(records)]
    assert main([*arguments, "--out", str(tmp_path / "out"), *small(task)]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "backbone: 318 of 318 tensors in the built model equal those of the checkpoint" in said
    assert int(re.findall(r"BN replaces SyncBN \((\d+) settings\)", said)[0]) >= 2  # of backbone and heads
    assert "4 training images, 2 test images" in said
    (record,) = read_all(records)
    assert record.config["images"] == {"train": 4, "val": 2}
    assert "images.train=4 images.val=2" in record.title
    assert record.backbone["arch"] == "resnet50"
    assert record.headline == "mIoU"
    classes = CLASSES[task.split("-")[0]]
    metrics = record.metrics
    assert len([name for name in metrics if name.startswith("IoU/")]) == classes
    assert metrics["mIoU"] == pytest.approx(np.mean([v for k, v in metrics.items() if k.startswith("IoU/")]))
    assert 0 <= metrics["mIoU"] <= metrics["mAcc"] <= 1
    (run,) = (tmp_path / "out").glob("*/*/seed0")
    for name in ("vis/predictions.png", "curve.png"):
        assert cv2.imread(str(run / name)) is not None
    for name in ("config.yaml", "command.txt", "environment.json", "metrics.jsonl", f"{task}.yaml"):
        assert (run / name).stat().st_size
    assert list(run.glob("tensorboard/events*"))


@pytest.fixture(scope="module")
def garments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("garments")
    (root / "FashionMNIST").symlink_to(ROOT / "data" / "FashionMNIST")
    ensure_scenes(root, train=16, val=4, size=48)
    return root


Command = Callable[..., int]


@pytest.fixture
def fashion(garments: Path, tmp_path: Path) -> Command:
    """Two iterations of fashion-fcn on 16 scenes."""
    sizes = ["scenes.train=16", "scenes.val=4", "scenes.size=48", "train_cfg.max_iters=2", "train_cfg.val_interval=2"]

    def run(*more: str, options: tuple[str, ...] = ()) -> int:
        where = {"data-root": garments, "out": tmp_path / "out", "records": tmp_path / "records"}
        folders = [f"--{name}={value}" for name, value in where.items()]
        fixed = ["--ckpt", "random", "--task", "fashion-fcn"]
        return main([*fixed, *folders, *more, "--cfg-options", *sizes, *options])

    return run


def test_a_run_is_measured_once_resumed_and_evaluated_again(
    fashion: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = tmp_path / "records"
    assert fashion("--eval-only") == 2
    assert "holds no trained model" in capsys.readouterr().err
    assert fashion("--seeds", "0", "1") == 0
    assert "std (n = 2)" in capsys.readouterr().out
    assert fashion("--seeds", "0") == 0
    assert "on record" in capsys.readouterr().out
    one, other = read_all(records)
    assert one.config_hash == other.config_hash
    assert (one.seed, one.pretrain_seed, other.seed, other.pretrain_seed) == (0, 0, 1, 1)
    assert {"seconds", "seconds_per_iteration", "data_share", "peak_mib", "images"} <= one.cost.keys()
    assert one.environment["versions"]["onedl-mmsegmentation"]
    assert fashion("--eval-only", "--force") == 0
    again, _ = read_all(records)
    assert again.metrics == one.metrics
    assert again.cost["seconds_before_resuming"] > 0
    assert fashion("--resume", options=("optim_wrapper.optimizer.lr=0.5",)) == 2
    assert "was started with other settings (" in capsys.readouterr().err
    # The run in the folder is on record; the message must name the other options instead.
    assert fashion(options=("optim_wrapper.optimizer.lr=0.5",)) == 2
    error = capsys.readouterr().err
    assert "was started with other settings (" in error
    assert "not on record" not in error
    assert fashion("--records", str(tmp_path / "other")) == 2
    assert "--resume continues it, --force starts afresh" in capsys.readouterr().err
    assert len(read_all(records)) == 2


def test_an_unfinished_run_is_resumed_and_not_evaluated(
    fashion: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records, pieces = tmp_path / "records", ("train_cfg.max_iters=4", "default_hooks.checkpoint.interval=2")
    assert fashion(options=pieces) == 0
    (whole,) = read_all(records)
    shutil.rmtree(records)
    (pointer,) = tmp_path.glob("out/*/*/seed0/last_checkpoint")
    pointer.write_text(str(pointer.parent / "iter_2.pth"))  # as after SIGKILL in the third iteration
    capsys.readouterr()
    assert fashion("--eval-only", options=pieces) == 2
    assert f"{pointer.parent} is at iteration 2 of 4; --resume finishes it" in capsys.readouterr().err
    assert not records.exists()
    assert fashion("--resume", options=pieces) == 0
    (record,) = read_all(records)
    assert record.metrics == whole.metrics
    assert record.cost["images"] == whole.cost["images"] == 16
    assert "seconds_before_resuming" not in whole.cost
    assert 0 < record.cost["seconds_before_resuming"] < whole.cost["seconds"]
    assert fashion("--eval-only", "--force", options=pieces) == 0
    again = read_all(records)[0].cost
    assert again["images"] == 16
    assert again["seconds_before_resuming"] > record.cost["seconds_before_resuming"]


def test_the_options_of_the_help_make_the_window_slide(fashion: Command, tmp_path: Path) -> None:
    given = re.findall(r"(model\.test_cfg\.\w+)=([^\s;]+)", parser().format_help())
    assert [key.rpartition(".")[2] for key, _ in given] == ["mode", "crop_size", "stride"]
    sizes = {"512,512": "32,32", "341,341": "21,21"}
    assert fashion(options=tuple(f"{key}={sizes.get(value, value)}" for key, value in given)) == 0
    (record,) = read_all(tmp_path / "records")
    assert record.config["model"]["test_cfg"] == {"mode": "slide", "crop_size": [32, 32], "stride": [21, 21]}


@pytest.mark.parametrize(("arch", "tensors"), [("resnet18", 120), ("resnet50", 318)])
def test_every_tensor_of_a_checkpoint_file_is_loaded(
    arch: str, tensors: int, fashion: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(3)
    saved, path = SAMPLES["MoCo v1"].make(arch)[0], tmp_path / "mine" / "last.pth.tar"
    keys = [key for key in saved["state_dict"] if key.startswith("module.encoder_q.")]
    mean = saved["state_dict"]["module.encoder_q.layer1.0.bn1.running_mean"]
    assert keys
    assert mean.abs().min() > 0, "statistics of an untrained network would not show that one is lost"
    path.parent.mkdir()
    torch.save(saved, path)
    assert fashion(f"--ckpt={path}") == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert f"backbone: {tensors} of {tensors} tensors in the built model equal those of the checkpoint" in said
    (record,) = read_all(tmp_path / "records")
    assert (record.backbone["format"], record.backbone["arch"]) == ("moco", arch)


def test_mixed_precision_and_accumulation_train(fashion: Command, tmp_path: Path) -> None:
    assert fashion("--amp", "--accumulate", "2") == 0
    (record,) = read_all(tmp_path / "records")
    assert record.config["optim_wrapper"]["type"] == "CpuAmpOptimWrapper"
    assert record.config["batch"] == 8
    assert "iterations of 8" in record.title
    assert "bfloat16 autocast, gradients of 2 batches accumulated" in record.title


def test_a_loss_that_is_not_finite_stops_the_run(
    fashion: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fashion(options=("optim_wrapper.optimizer.lr=1e30", "train_cfg.max_iters=9")) == 2
    error = capsys.readouterr().err
    assert "the loss is " in error.splitlines()[-1]
    assert "a lower lr may help" in error
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize(
    ("wrong", "options", "message"),
    [
        (["--ckpt=/no/such.pth"], (), "/no/such.pth"),
        (["--task=fashion-fnc"], (), "did you mean fashion-fcn?"),
        (["--batch=0"], (), "--batch 0: must be a multiple"),
        (["--accumulate=0"], (), "--accumulate 0: must be at least 1"),
        (["--launcher=mpi"], (), "--launcher mpi: must be one of auto, none, pytorch, slurm"),
        (["--launcher=pytorch"], (), "torchrun has not started this"),
        (["--launcher=slurm"], (), "srun has not started this"),
        (["--device=gpu"], (), "--device gpu: use auto, cpu or cuda"),
        (["--resume", "--force"], (), "leave one of them out"),
        ([], ("model.decode_head.num_classes=7",), "model.decode_head.num_classes=7"),
        ([], ("model.decode_head.num_convolutions=7",), "num_convolutions"),
        ([], ("train_cfg.max_iter=7",), "max_iter"),
        ([], ("train_cfg.max_iters=abc",), "--cfg-options train_cfg.max_iters=abc: must be a number, as 2 is"),
        ([], ("train_cfg.max_iters=0",), "train_cfg.max_iters=0: must be an integer, at least 1"),
        ([], ("train_cfg.val_interval=1.5",), "train_cfg.val_interval=1.5: must be an integer"),
        ([], ("train_dataloader.batch_size=0",), "train_dataloader.batch_size=0: must be an integer"),
        ([], ("default_hooks.logger.interval=0",), "default_hooks.logger.interval=0: must be an integer"),
        ([], ("optim_wrapper.optimizer.lr=abc",), "--cfg-options optim_wrapper.optimizer.lr=abc: must be a number"),
        ([], ("optim_wrapper.optimizer=None",), "--cfg-options"),
        ([], ("model.decode_head=None",), "--cfg-options"),
        ([], ("model.data_preprocessor.size=64",), "--cfg-options model.data_preprocessor.size=64: must be a list"),
        ([], ("model.data_preprocessor.size=64,",), "model.data_preprocessor.size=[64]: must be two integers"),
        ([], ("model.data_preprocessor.size=(64",), "--cfg-options model.data_preprocessor.size=(64: "),
        (
            [],
            ("model.data_preprocessor.size=64,64",),
            "train_dataloader.dataset.pipeline.3.crop_size=(96, 96): exceeds model.data_preprocessor.size=[64, 64]",
        ),
        ([], ("param_scheduler.0=1",), "--cfg-options param_scheduler.0=1: must be a dict"),
        ([], ("model.test_cfg.mode=slide",), "model.test_cfg.crop_size=None: mode=slide needs two integers"),
        ([], ("model.test_cfg.mode=tiles",), "model.test_cfg.mode='tiles': must be slide or whole"),
        ([], ("model.test_cfg.strides=2,2",), "no such key; did you mean stride?"),
        (
            [],
            ("model.test_cfg.mode=slide", "model.test_cfg.crop_size=32,32", "model.test_cfg.stride=33,33"),
            "model.test_cfg.stride=[33, 33]: must not exceed crop_size=[32, 32]",
        ),
        (["--task=cityscapes-fcn-40k"], (), "Expected below it: cityscapes/leftImg8bit/{train,val}/*/"),
        (["--task=voc12aug-fcn-20k"], (), "VOCdevkit/VOC2012/SegmentationClassAug/*.png"),
        (["--task=ade20k-upernet-80k"], (), "ADEChallengeData2016.zip"),
    ],
)
def test_a_mistake_is_one_line(
    wrong: list[str], options: tuple[str, ...], message: str, fashion: Command, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in ("RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    other = any(word.startswith("--task") for word in wrong)
    assert (bare(wrong, tmp_path) if other else fashion(*wrong, options=options)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "records").exists()


VOC = "_base_ = ['{folder}/voc12aug-fcn-20k.yaml']\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (", "mine.py: not read, SyntaxError"),
        ("_base_ = ['no_such_base.py']", "mine.py: not read, FileNotFoundError"),
        ("# YAML\nx: [1", "mine.yaml: not read, ParserError"),
        ("# YAML\nx: 1", "mine.yaml: train_dataloader, val_dataloader, test_dataloader, model, optim_wrapper"),
        ("x = unknown", "mine.py: not read, NameError"),
        ("x = 1", "mine.py: train_dataloader, val_dataloader, test_dataloader, model, optim_wrapper"),
        (VOC + "val_evaluator = None", "mine.py: val_evaluator missing"),
        (VOC + "model = dict(decode_head=[dict(type='FCNHead')])", "mine.py: the config does not fit"),
        (VOC + "train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=2)", "train_cfg.max_iters=None"),
        (VOC + "layout = 'voc'", "lacks VOC2007/JPEGImages"),
        (VOC + "layout = 'vox'", "no data set tree is named 'vox': use coco, "),
        (
            VOC + "layout = None\ndata_root = 'mine'",
            "train_dataloader.dataset cannot be read, AssertionError: Failed to",
        ),
    ],
)
def test_a_mistake_in_a_user_s_config_is_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / ("mine.yaml" if text.startswith("# YAML") else "mine.py")
    mine.write_text(text.replace("{folder}", str(SEGMENTATION.folder)))
    assert bare(["--task", str(mine), "--out", str(tmp_path / "out")], tmp_path) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def bare(arguments: list[str], root: Path) -> int:
    return main(["--ckpt", "random:resnet18", "--data-root", str(root), "--records", str(root / "records"), *arguments])


def test_a_foreign_file_is_named(fashion: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"transformer.0.weight": torch.zeros(3)}}, tmp_path / "foreign.pth")
    assert fashion(f"--ckpt={tmp_path / 'foreign.pth'}") == 2
    error = capsys.readouterr().err
    assert "foreign.pth" in error
    assert len(error.strip().splitlines()) == 1


def test_missing_mmseg_is_reported(
    fashion: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "mmseg" else real(name, *rest))
    assert fashion() == 2
    assert capsys.readouterr().err.strip() == "segment: error: mmseg is not installed: bash setup.sh installs it"


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda voc: (voc / "SegmentationClass/2007_4.png").unlink(), "1 of 4 files are missing"),
        (lambda voc: write(voc / "SegmentationClass/2007_0.png", np.full((72, 96), 30, np.uint8)), "labels [30]"),
        (lambda voc: write(voc / "SegmentationClassAug/2007_3.png", np.zeros((9, 9, 3), np.uint8)), "is no mask"),
        (lambda voc: (voc / "SegmentationClass/2007_5.png").write_text("?"), "2007_5.png: this mask cannot be read"),
        (
            lambda voc: cut(voc / "SegmentationClassAug/2007_2.png"),
            "2007_2.png: this mask cannot be read",
        ),
        (
            lambda voc: None,
            "VOCdevkit/VOC2012: 4 training and 2 test images are not the 10582 and 1449 of the published set; to use "
            "them, and record that, add --cfg-options images.train=4 images.val=2",
        ),
    ],
)
def test_data_that_do_not_fit_are_named(
    break_it: Callable[[Path], None], message: str, public: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(public / "VOCdevkit", tmp_path / "VOCdevkit")
    break_it(tmp_path / "VOCdevkit" / "VOC2012")
    assert bare(["--task", "voc12aug-fcn-20k", "--out", str(tmp_path / "out")], tmp_path) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_check_reports_what_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0
    said = capsys.readouterr().out
    assert "onedl-mmsegmentation" in said
    assert "a training step of an FCN" in said
