"""Fine-tuning: a separable toy problem, label subsets, choosing the rates, resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from common.distributed import rank
from common.images import load_images
from common.labels import LabelConfig, keep_labels
from tests.common.gloo import run_two
from tests.transfer.garments import arguments, per_image, recorded, write_garments
from transfer.benchmark import read_checkpoint
from transfer.classification import tuning
from transfer.classification.data import load_class_data
from transfer.classification.heads import best_of
from transfer.classification.schedules import CropConfig, TuneOptim
from transfer.classification.training import Setting
from transfer.classification.tuning import tune
from transfer.finetune import main, parser

CPU = torch.device("cpu")
SHORT = ["--optim.epochs=6", "--optim.batch=16", "--crop.scale=[0.5,1.0]", "--precision=fp32"]


@pytest.fixture(scope="module")
def garments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_garments(tmp_path_factory.mktemp("garments"))


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lying and standing stripes under noise: separable, but not by the mean of any colour."""
    path, rng = tmp_path_factory.mktemp("stripes"), np.random.default_rng(0)
    for split, number in (("train", 32), ("test", 20)):
        for name in ("lying", "standing"):
            (path / split / name).mkdir(parents=True)
            for i in range(number):
                wave = 127 + 90 * np.sin(np.arange(32) * rng.uniform(0.8, 1.6) + rng.uniform(0, 6))
                image = np.broadcast_to(wave[:, None] if name == "lying" else wave, (32, 32))
                noisy = np.clip(image[..., None] + rng.normal(0, 25, (32, 32, 3)), 0, 255).astype(np.uint8)
                cv2.imwrite(str(path / split / name / f"{i}.png"), noisy)
    return path


def test_every_image_of_a_separable_toy_problem_is_learnt(stripes: Path, tmp_path: Path) -> None:
    rates = ["--optim.base_lr=[0.3]", "--optim.head_factor=[1]", "--optim.epochs=12"]
    assert main([*arguments(stripes, tmp_path, pictures="true"), *SHORT, *rates]) == 0
    (record,) = recorded(tmp_path)
    assert record.metrics["top1"] == 1.0
    assert per_image(tmp_path, record)["top1"].tolist() == [True] * 40
    assert record.task == "finetune"
    assert list((tmp_path / "out").rglob("confusion.png"))


def test_the_rates_are_chosen_on_held_out_images_and_training_is_done_again_on_all(
    garments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[int, float]] = []
    real = tuning.tune

    def noted(backbone: object, images: object, optim: TuneOptim, *rest: object) -> object:
        trained.append((len(images), optim.base_lr[0]))  # type: ignore[arg-type]
        return real(backbone, images, optim, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(tuning, "tune", noted)
    rates = ["--optim.base_lr=[1e-9,0.3]", "--optim.head_factor=[1]"]
    assert main([*arguments(garments, tmp_path), *SHORT, *rates]) == 0
    (record,) = recorded(tmp_path)
    assert trained == [(36, 1e-9), (36, 0.3), (40, record.cost["base_lr"])]
    assert not list((tmp_path / "out").rglob("state.pth"))


def test_a_pair_that_diverges_is_skipped(garments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = ["--optim.base_lr=[1e30,0.3]", "--optim.head_factor=[1]"]
    assert main([*arguments(garments, tmp_path), *SHORT, *rates]) == 0
    (record,) = recorded(tmp_path)
    assert record.cost["base_lr"] == 0.3
    assert "lr 1e+30, head x 1: diverged (the loss is not finite in epoch 1" in capsys.readouterr().out


@pytest.mark.ddp
def test_every_rank_continues_with_the_pair_that_rank_0_chose() -> None:
    assert run_two(chosen) == [0.3, 0.3]


def chosen() -> float:
    """Two ranks that see different accuracies."""
    return best_of({0.1: 0.5, 0.3: 0.6 - 0.2 * rank()})


@pytest.mark.parametrize("labels", [{"ratio": 0.25}, {"ratio": 0.5, "seed": 3}, {"list": "three.txt"}])
def test_label_subsets_are_those_of_pre_training(labels: dict[str, object], garments: Path, tmp_path: Path) -> None:
    (tmp_path / "three.txt").write_text("".join(f"{path.name}\n" for path in sorted(garments.rglob("train/*/*"))[::9]))
    if "list" in labels:
        labels = {"list": str(tmp_path / "three.txt")}
    given = [f"--labels.{name}={value}" for name, value in labels.items()]
    data = load_class_data(parser().parse([*arguments(garments, tmp_path), *given]))
    kept = keep_labels(load_images([str(garments / "train")]), LabelConfig(**labels))  # type: ignore[arg-type]
    assert sorted(data.train.names) == kept.names
    assert 0 < len(data.train) < 40
    assert len(data.test) == 20


def test_head_and_backbone_have_separate_learning_rates(garments: Path, tmp_path: Path) -> None:
    """One step of SGD: the backbone hardly changes at a rate of nearly 0, the head moves a million times as far."""
    images, backbone = load_images([str(garments / "train")]), read_checkpoint("random:resnet18", 0)
    setting = Setting(tmp_path, 0, CPU, None, 32, workers=0)
    moved = []
    for times in (1.0, 1e6):
        optim = TuneOptim(base_lr=[1e-6], head_factor=[times], epochs=1, batch=40, weight_decay=0.0)
        model = tune(backbone, images, optim, CropConfig(), setting)
        start = read_checkpoint("random:resnet18", 0).tensors["conv1.weight"]
        backbone_moved = (model.backbone.get_parameter("conv1.weight") - start).norm().item()
        moved.append((backbone_moved, model.head.bias.norm().item()))
    assert moved[0][0] == pytest.approx(moved[1][0], rel=1e-3)
    assert moved[1][1] == pytest.approx(1e6 * moved[0][1], rel=1e-3)


def test_stopped_after_an_epoch_and_resumed_it_ends_as_if_it_had_not(garments: Path, tmp_path: Path) -> None:
    images, backbone = load_images([str(garments / "train")]), read_checkpoint("random:resnet18", 0)
    optim = TuneOptim(base_lr=[0.05], head_factor=[1.0], epochs=4, batch=20)
    setting = Setting(tmp_path / "whole", 0, CPU, None, 32, workers=0)
    whole = tune(backbone, images, optim, CropConfig(), setting)

    reads = 0

    def failing(i: int) -> np.ndarray:
        nonlocal reads
        reads += 1
        if reads > 90:  # in the third epoch
            raise KeyboardInterrupt
        return images.read(i)

    cut = Setting(tmp_path / "cut", 0, CPU, None, 32, workers=0)
    with pytest.raises(KeyboardInterrupt):
        tune(backbone, replace(images, read=failing), optim, CropConfig(), cut)
    assert torch.load(cut.state, weights_only=True)["epoch"] == 2
    resumed = tune(backbone, images, optim, CropConfig(), replace(cut, resume=True))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    with pytest.raises(ValueError, match="belongs to other options"):
        tune(backbone, images, replace(optim, epochs=5), CropConfig(), replace(cut, resume=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--data=GARMENTS/train", "--test=GARMENTS/train/"], "these are the training images; give others"),
        (["--head=/no/head.pth"], "/no/head.pth: no such file"),
        (["--optim.head_factor=[]"], "optim.head_factor=[]: one or more numbers above 0"),
        (["--labels.ratio=0.1"], "4 training images are too few to hold out 10%"),
        (["--optim.batch=64"], "36 training images do not fill a batch; use --optim.batch 36"),
        (["--optim.weight_decy=1"], "--optim.weight_decy: unknown option; did you mean --optim.weight_decay?"),
        (["--recipe=HERE/typo.yaml"], "typo.yaml: optim.weight_decy: unknown option; did you mean"),
        (["--labels.list=/no/list"], "/no/list: no such file"),
        (["--optim.base_lr=[1e30]", "--optim.head_factor=[1]"], "the loss is not finite in epoch 1"),
        (
            ["--optim.base_lr=[1e29,1e30]", "--optim.head_factor=[1]"],
            "all 2 pairs of rates diverged, base lr 1e+29/1e+30",
        ),
    ],
)
def test_a_mistake_is_one_line(
    wrong: list[str], message: str, garments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "typo.yaml").write_text("optim:\n  weight_decy: 1\n")
    wrong = [word.replace("GARMENTS", str(garments)).replace("HERE", str(tmp_path)) for word in wrong]
    assert main([*arguments(garments, tmp_path), *SHORT, "--optim.base_lr=[0.1]", *wrong]) == 2
    error = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()
    assert message in error[-1]
    assert not recorded(tmp_path)
