"""What classification commands share: recipes, schedules, records on file, and what --data names."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.cli import config_names
from tests.transfer.garments import write_garments
from transfer.classification import options
from transfer.classification.data import ClassData, hold_out, load_class_data, sources
from transfer.classification.schedules import CropConfig, HeadOptim, Schedule
from transfer.linear import parse


class TestSchedule:
    @pytest.mark.parametrize(("epochs", "falls"), [(100, (60, 80)), (20, (12, 16)), (10, (6, 8)), (5, (3, 4))])
    def test_step_equals_torch(self, epochs: int, falls: tuple[int, int]) -> None:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
        theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(falls), 0.2)
        ours = Schedule(epochs=epochs, factor=0.2)
        for epoch in range(epochs):
            assert ours.rate(epoch) == pytest.approx(theirs.get_last_lr()[0])
            optimizer.step()
            theirs.step()

    def test_cosine_equals_torch(self) -> None:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
        theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)
        for epoch in range(7):
            assert Schedule(epochs=7, schedule="cosine").rate(epoch) == pytest.approx(theirs.get_last_lr()[0])
            optimizer.step()
            theirs.step()

    def test_rates_are_per_256_images(self) -> None:
        assert Schedule(batch=64).scaled(30) == 7.5


def test_the_held_out_tenth_is_balanced_and_disjoint() -> None:
    labels = np.repeat(np.arange(5), 40)
    fit, held = hold_out(labels, seed=1)
    assert sorted([*fit, *held]) == list(range(200))
    assert np.bincount(labels[held]).tolist() == [4] * 5
    assert held.tolist() != hold_out(labels, seed=2)[1].tolist()


@pytest.mark.parametrize(
    ("data", "test", "expected"),
    [
        ("fashion", None, (["fashion:train"], "fashion:test")),
        (["fashion:train"], "x", (["fashion:train"], "x")),
        (["a", "b"], "c", (["a", "b"], "c")),
        ("a", "fashion", (["a"], "fashion:test")),
        ("a", "b/../a/", (["a"], "a")),
    ],
)
def test_sources_that_data_and_test_name(data: Any, test: str | None, expected: tuple[list[str], str]) -> None:
    assert sources(data, test) == expected


def test_a_folder_with_train_and_val_names_both(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        (tmp_path / name).mkdir()
    assert sources(str(tmp_path), None) == ([f"{tmp_path}/train"], f"{tmp_path}/val")
    assert sources(str(tmp_path), f"{tmp_path}/train/") == ([f"{tmp_path}/train"], f"{tmp_path}/train")


class TestTestImagesThatAreTrainingImages:
    """Metrics on them would be too good, and nobody would notice."""

    @pytest.fixture
    def garments(self, tmp_path: Path) -> Path:
        write_garments(tmp_path, train=3, test=2)
        (tmp_path / "link").symlink_to(tmp_path / "train")
        files = [f"{path.relative_to(tmp_path)}\t{path.parent.name}\n" for path in tmp_path.glob("train/*/*.png")]
        (tmp_path / "same.tsv").write_text("".join(files))
        (tmp_path / "some.tsv").write_text("".join([*files[:2], f"{next(tmp_path.glob('test/8/*.png'))}\t8\n"]))
        return tmp_path

    def load(self, garments: Path, test: str, leave_one_out: bool, **labels: Any) -> ClassData:
        given = [f"--data={garments}/train", f"--test={test}", *(f"--labels.{k}={v}" for k, v in labels.items())]
        return load_class_data(options.classification_parser("knn", None).parse(given), leave_one_out)

    @pytest.mark.parametrize("test", ["train", "train/", "link", "same.tsv"])
    @pytest.mark.parametrize("ratio", [1.0, 0.5])
    def test_they_are_found_under_any_name(self, test: str, ratio: float, garments: Path) -> None:
        data = self.load(garments, f"{garments}/{test}", True, ratio=ratio)
        assert data.same
        assert len(data.test) == 6 * ratio
        with pytest.raises(ValueError, match="these are the training images; give others"):
            self.load(garments, f"{garments}/{test}", False, ratio=ratio)

    def test_an_overlap_is_counted(self, garments: Path) -> None:
        with pytest.raises(ValueError, match=r"some\.tsv: 2 of its 3 images are training images"):
            self.load(garments, f"{garments}/some.tsv", True)

    def test_different_images_pass(self, garments: Path) -> None:
        assert not self.load(garments, f"{garments}/test", False).same


# Values of the papers' code. SM facebookresearch/simsiam@a7bc177, README and main_lincls.py; SW facebookresearch/swav@
# 06b1b7c, README and eval_semisup.py; DC WXinlong/DenseCL@b64bbb6, configs/benchmarks/semi_classification and
# benchmarks/svm_tools; DI facebookresearch/dino@7c446df, eval_knn.py; MS open-mmlab/mmselfsup@db861f3, test_knn.py.
SEMI = {
    "optim.epochs": 20, "optim.batch": 256, "optim.momentum": 0.9, "optim.schedule": "step", "optim.factor": 0.2,
    "optim.milestones": [0.6, 0.8],  # of 20: 12 and 16
}  # fmt: skip
OPENSELFSUP = SEMI | {  # DC
    "optim.base_lr": [0.001, 0.01, 0.1], "optim.head_factor": [1.0, 10.0, 100.0], "optim.weight_decay": 1e-4,
}  # fmt: skip
PAPERS: dict[str, dict[str, Any]] = {
    "imagenet_linear_lars": {  # SM
        "mode": "lars", "optim.optimizer": "lars", "optim.base_lr": [0.1], "optim.weight_decay": [0.0],
        "optim.batch": 4096, "optim.epochs": 90, "optim.momentum": 0.9, "optim.schedule": "cosine",
    },
    "imagenet_finetune_1percent": OPENSELFSUP,
    "imagenet_finetune_10percent": OPENSELFSUP,
    "imagenet_finetune_swav_10percent": SEMI  # SW: 0.01 for the backbone, 0.2 for the head
    | {"optim.base_lr": [0.01], "optim.head_factor": [20.0], "optim.weight_decay": 0.0},
    "imagenet_finetune_swav_1percent": SEMI  # SW: 0.02 and 5
    | {"optim.base_lr": [0.02], "optim.head_factor": [250.0], "optim.weight_decay": 0.0},
    "imagenet_knn": {"k": [10, 20, 100, 200], "temperature": 0.07},  # DI, MS
    "voc07_svm": {"task": "voc07-svm", "costs": [1, 10, 100, *(0.5**power for power in range(4, 20))]},  # DC
    "voc07_lowshot": {"task": "voc07-lowshot", "k": [1, 2, 4, 8, 16, 32, 64, 96], "samples": 5},  # DC
}  # fmt: skip


@pytest.mark.parametrize("name", PAPERS)
def test_recipes_of_papers_hold_the_papers_values(name: str) -> None:
    name_of = next(word for word in ("linear", "finetune", "knn", "voc07") if word in name)
    module = importlib.import_module(f"transfer.{name_of.replace('voc07', 'svm')}")
    given = module.parser().parse([f"--recipe={name}"])
    assert {key: given[key] for key in PAPERS[name]} == PAPERS[name]
    assert given.size == 224


def test_the_moco_recipe_is_the_protocol_of_moco_and_the_default() -> None:
    """facebookresearch/moco@5a429c0, main_lincls.py; the same in dddzg/unimoco@ccac034."""
    given = parse(["--recipe=imagenet_linear_moco"])
    assert HeadOptim(**given.optim.as_dict()) == HeadOptim(
        optimizer="sgd", base_lr=[30.0], weight_decay=[0.0], batch=256, epochs=100, momentum=0.9, milestones=[0.6, 0.8]
    )
    assert given.optim == parse(["--mode=moco"]).optim
    assert CropConfig(**given.crop.as_dict()) == CropConfig((0.08, 1.0), (3 / 4, 4 / 3), 0.5)


def test_modes_have_their_own_defaults_and_options_override_them() -> None:
    assert parse(["--mode=lars"]).optim.batch == 4096
    assert parse(["--recipe=fashion_linear_moco"]).optim.base_lr == [0.05]
    assert parse(["--optim.epochs=3", "--recipe=fashion_linear_moco"]).optim.epochs == 3
    assert len(HeadOptim(**parse(["--mode=sweep"]).optim.as_dict()).heads) == 14


@pytest.mark.parametrize("name", config_names(options.RECIPES))
def test_every_recipe_parses_and_names_its_command_and_cost(name: str) -> None:
    path = options.RECIPES / f"{name}.yaml"
    head = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert f"--recipe {name}" in head
    assert "# Cost: " in head
    assert "# Published" in head or "# Expected: " in head
    script = next(
        word
        for word in ("linear", "knn", "finetune", "svm")
        if f"transfer/{word}.py" in head or f"transfer.{word} " in head
    )
    module = importlib.import_module(f"transfer.{script}")
    given = module.parser().parse([f"--recipe={name}"])
    if name.startswith("fashion_"):
        assert given.data == "fashion"
    else:  # everybody keeps them elsewhere: they are asked for
        assert given.data is None
        with pytest.raises(ValueError, match=f"--data is missing: recipe {name} needs (ImageNet|voc07:)"):
            options.require_data(given)
