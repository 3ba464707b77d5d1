"""Recipes: each is valid and says what it costs; those of papers resolve to the papers' values.

Tags as in the papers' repositories: U dddzg/unimoco@ccac034 (README and main_unimoco.py), M
facebookresearch/moco@5a429c0 (README and main_moco.py; its pretraining command for v2 is v1's with
--mlp --moco-t 0.2 --aug-plus --cos).
"""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import yaml

from common.cli import config_names
from pretrain.config import RECIPES, Config, parse

# key: (value, where the value stands)
COMMON: dict[str, tuple[Any, str]] = {
    "model.arch": ("resnet50", "U, M: default of --arch"),
    "model.stem": ("imagenet", "U, M: torchvision's resnet50"),
    "model.dim": (128, "U, M: default of --moco-dim"),
    "model.queue_size": (65536, "U, M: default of --moco-k"),
    "model.ema_momentum": (0.999, "U, M: default of --moco-m"),
    "model.bn_groups": (8, "U, M: 8 GPUs with shuffled batch norm"),
    "model.mask_same_image": ("auto", "U, M: no masking; auto is off where K < number of images, as on ImageNet"),
    "optim.base_lr": (0.03, "U, M: --lr 0.03 at --batch-size 256"),
    "optim.batch": (256, "U, M: --batch-size 256"),
    "optim.momentum": (0.9, "U, M: default of --momentum"),
    "optim.weight_decay": (1e-4, "U, M: default of --wd, on all parameters"),
    "optim.warmup": (0.0, "U, M: adjust_learning_rate has none"),
    "optim.lr_update": ("epoch", "U, M: adjust_learning_rate is called once an epoch"),
    "optim.accumulate": (1, "U, M: none"),
    "views.size": (224, "U, M: RandomResizedCrop(224)"),
    "views.scale": ((0.2, 1.0), "U, M: RandomResizedCrop scale=(0.2, 1.)"),
    "views.ratio": ((3 / 4, 4 / 3), "torchvision: default of RandomResizedCrop"),
    "views.flip": (0.5, "U, M: RandomHorizontalFlip()"),
    "views.brightness": (0.4, "U, M: ColorJitter(0.4, ...)"),
    "views.contrast": (0.4, "U, M: ColorJitter(., 0.4, ...)"),
    "views.saturation": (0.4, "U, M: ColorJitter(., ., 0.4, ...)"),
    "views.grayscale_prob": (0.2, "U, M: RandomGrayscale(p=0.2)"),
    "views.rotate": (0.0, "U, M: none"),
    "views.erase": (0.0, "U, M: none"),
}
AUG_PLUS: dict[str, tuple[Any, str]] = {
    "views.jitter": (0.8, "U, M --aug-plus: RandomApply([ColorJitter], p=0.8)"),
    "views.hue": (0.1, "U, M --aug-plus: ColorJitter(0.4, 0.4, 0.4, 0.1)"),
    "views.grayscale_first": (False, "U, M --aug-plus: jitter, then grey"),
    "views.blur": (0.5, "U, M --aug-plus: RandomApply([GaussianBlur], p=0.5)"),
    "views.sigma": ((0.1, 2.0), "U, M --aug-plus: GaussianBlur([.1, 2.])"),
    "model.head": ("mlp", "U, M: --mlp"),
    "model.temperature": (0.2, "U, M: --moco-t 0.2"),
    "optim.schedule": ("cosine", "U, M: --cos"),
}
UNIMOCO = {"model.loss": ("unicon", "U: UnifiedContrastive"), "labels.ratio": (1.0, "U: without --supervised-list")}
MOCO = {"model.loss": ("info_nce", "M: CrossEntropyLoss, target 0"), "labels.ratio": (0.0, "M: no labels")}
TABLE: dict[str, dict[str, tuple[Any, str]]] = {
    "imagenet_200ep": COMMON | AUG_PLUS | UNIMOCO | {"optim.epochs": (200, "U: default of --epochs")},
    "imagenet_800ep": COMMON | AUG_PLUS | UNIMOCO | {"optim.epochs": (800, "U: README, --epochs 800")},
    "moco_v2": COMMON | AUG_PLUS | MOCO | {"optim.epochs": (200, "M: default of --epochs")},
    "moco_v1": COMMON
    | MOCO
    | {
        "model.head": ("linear", "M: without --mlp"),
        "model.temperature": (0.07, "M: default of --moco-t"),
        "optim.epochs": (200, "M: default of --epochs"),
        "optim.schedule": ("step", "M: without --cos"),
        "optim.milestones": ([120, 160], "M: default of --schedule"),
        "views.jitter": (1.0, "M without --aug-plus: ColorJitter always"),
        "views.hue": (0.4, "M without --aug-plus: ColorJitter(0.4, 0.4, 0.4, 0.4)"),
        "views.grayscale_first": (True, "M without --aug-plus: RandomGrayscale, then ColorJitter"),
        "views.blur": (0.0, "M without --aug-plus: none"),
    },
}
SHIPPED = ["fashion_desk", "imagenet_200ep", "imagenet_800ep", "moco_v1", "moco_v2", "my_folder"]


def resolved(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize(("recipe", "key"), [(recipe, key) for recipe, values in TABLE.items() for key in values])
def test_value_of_the_paper(recipe: str, key: str) -> None:
    value, source = TABLE[recipe][key]
    assert resolved(parse([f"--recipe={recipe}"]), key) == value, source


@pytest.mark.parametrize("recipe", sorted(TABLE))
def test_the_table_covers_what_is_computed(recipe: str) -> None:
    """Every option of model, optimiser and views that could change the result, but those that only a switch reads."""
    unread = {"views.sigma"} if recipe == "moco_v1" else {"optim.milestones"}
    technical = {"optim.precision", "optim.compile"}
    plain = parse([f"--recipe={recipe}"]).as_dict()
    names = {f"{group}.{key}" for group in ("model", "optim", "views") for key in plain[group]}
    assert names - technical - unread <= TABLE[recipe].keys()


def test_the_shipped_recipes_are_all_there() -> None:
    assert set(SHIPPED) <= set(config_names(RECIPES))


@pytest.mark.parametrize("recipe", config_names(RECIPES))
class TestEveryRecipe:
    def test_is_valid_and_named_after_its_file(self, recipe: str) -> None:
        assert parse(["--recipe", recipe]).name == recipe

    def test_opens_with_command_cost_and_expectation(self, recipe: str) -> None:
        lines = (RECIPES / f"{recipe}.yaml").read_text().splitlines()
        end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
        comment = "\n".join(lines[:end])
        command = "bash pretrain/run.sh" if recipe == "fashion" else f"bash pretrain/run.sh --recipe {recipe}"
        assert command in comment
        assert "\n# Cost: " in comment
        assert re.search(r"^# (Expected|Published)\b.*: ", comment, re.MULTILINE)

    def test_its_command_is_accepted(self, recipe: str) -> None:
        """The words after `bash pretrain/run.sh`, over continued lines, parse."""
        text = (RECIPES / f"{recipe}.yaml").read_text()
        after = text[text.index("bash pretrain/run.sh") :].split("\n# Cost", 1)[0]
        command = after.replace("\\\n#", " ").splitlines()[0]
        words = shlex.split(command.removeprefix("bash pretrain/run.sh"), comments=True)
        assert parse(words).as_dict()

    def test_holds_plain_yaml(self, recipe: str) -> None:
        assert isinstance(yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text()), dict)
