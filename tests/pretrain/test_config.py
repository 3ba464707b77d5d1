"""The command line: what wins, what is refused and in which words, what a checkpoint holds of it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from common.images import ImageSet
from common.labels import keep_labels
from pretrain.config import (
    CheckpointConfig,
    Config,
    MonitorConfig,
    OptimConfig,
    backbone_id,
    differing_keys,
    parse,
    recipe_id,
    rename_options,
)  # fmt: skip
from pretrain.train import main


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "seed: 5\nmodel:\n  temperature: 0.1\n  queue_size: 64\noptim:\n  batch: 32\n  milestones: [3, 4]\n"
    )
    return path


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command and return the one line that it answers a mistake with."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pretrain: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err.rstrip("\n")


class TestPrecedence:
    def test_nothing_given_is_the_defaults(self) -> None:
        assert parse([]) == Config(name="unnamed")

    def test_defaults_are_those_of_the_paper(self) -> None:
        c = Config()
        assert (c.model.arch, c.model.dim, c.model.queue_size, c.model.ema_momentum) == ("resnet50", 128, 65536, 0.999)
        assert (c.model.temperature, c.model.loss, c.model.head) == (0.2, "unicon", "mlp")
        assert (c.optim.lr, c.optim.batch, c.optim.momentum, c.optim.weight_decay) == (0.03, 256, 0.9, 1e-4)

    def test_a_recipe_changes_what_it_names(self, recipe: Path) -> None:
        c = parse(["--recipe", str(recipe)])
        default = Config()
        model = dataclasses.replace(default.model, temperature=0.1, queue_size=64)
        optim = dataclasses.replace(default.optim, batch=32, milestones=[3.0, 4.0])
        assert c == dataclasses.replace(default, name="mine", seed=5, model=model, optim=optim)

    @pytest.mark.parametrize("joined", [False, True])
    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_the_command_line_wins_wherever_the_recipe_stands(self, recipe: Path, place: int, joined: bool) -> None:
        options = ["--model.temperature=0.5", "--optim.batch=16"]
        chosen = [f"--recipe={recipe}"] if joined else ["--recipe", str(recipe)]
        c = parse([*options[:place], *chosen, *options[place:]])
        assert (c.model.temperature, c.model.queue_size, c.optim.batch, c.seed) == (0.5, 64, 16, 5)

    def test_a_run_is_named_by_hand_or_by_its_recipe(self, recipe: Path) -> None:
        assert parse(["--recipe", str(recipe)]).name == "mine"
        assert parse(["--recipe", str(recipe), "--name", "other"]).name == "other"
        assert parse(["--recipe", "moco_v1"]).name == "moco_v1"

    def test_values_have_their_types(self) -> None:
        c = parse(["--optim.epochs=10", "--views.scale=[0.3,1]", "--data.train=[a,'b c']", "--optim.compile=true"])
        assert (c.optim.epochs, type(c.optim.epochs)) == (10.0, float)
        assert c.views.scale == (0.3, 1.0)
        assert c.data.train == ["a", "b c"]
        assert c.optim.compile is True
        assert parse(["--data.train", "/photos"]).data.train == "/photos"


class TestRefusals:
    @pytest.mark.parametrize(
        ("argument", "nearest"),
        [
            ("--sead=1", "--seed"),
            ("--tempertaure=1", "--model.temperature"),
            ("--model.temprature=1", "--model.temperature"),
            ("--modle.temperature=1", "--model.temperature"),
            ("--label.ratio=0", "--labels.ratio"),
            ("--optim.bach_size=3", "--optim.batch"),
            ("--batch=3", "--optim.batch"),
            ("--recip=moco_v1", "--recipe"),  # an abbreviation is as unknown as a slip
            ("--optim.epoch=1", "--optim.epochs"),
        ],
    )
    def test_unknown_option(self, argument: str, nearest: str, capsys: pytest.CaptureFixture[str]) -> None:
        line = refusal([argument], capsys)
        assert argument.split("=")[0] in line
        assert line.endswith(f"did you mean {nearest}?")

    @pytest.mark.parametrize(
        ("text", "key", "nearest"),
        [
            ("sead: 1", "sead", "--seed"),
            ("modell:\n  temperature: 1", "modell", "--model.temperature"),
            ("model:\n  temprature: 1", "temprature", "--model.temperature"),
            ("seed: 1\noptim:\n  batch: 8\n  base_lrr: 1", "base_lrr", "--optim.base_lr"),
            ("checkpoint:\n  keep: 3", "keep", "--checkpoint.keep_every"),
        ],
    )
    def test_unknown_recipe_key(
        self, text: str, key: str, nearest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        line = refusal(["--recipe", str(path)], capsys)
        assert key in line
        assert line.endswith(f"did you mean {nearest}?")

    @pytest.mark.parametrize(
        ("argument", "words"),
        [
            ("--model.temperature=warm", ["model.temperature", "float", "warm"]),
            ("--optim.batch=1.5", ["optim.batch", "int", "1.5"]),
            ("--seed=abc", ["seed", "int", "abc"]),
            ("--model.loss=unicorn", ["model.loss", "unicon", "info_nce", "unicorn"]),
            ("--optim.schedule=linear", ["optim.schedule", "cosine", "step", "linear"]),
            ("--views.scale=[0.2]", ["views.scale"]),
            ("--views.scale=0.2", ["views.scale", "'[a, b]'"]),
            ("stray", ["stray"]),
        ],
    )
    def test_wrong_type(self, argument: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        line = refusal([argument], capsys)
        assert all(word in line for word in words), line

    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            ("--optim.batch=0", "optim.batch=0: must be 1 or more"),
            ("--optim.accumulate=0", "optim.accumulate=0: must be 1 or more"),
            ("--optim.epochs=0", "optim.epochs=0.0: must be above 0"),
            ("--optim.warmup=200", "optim.warmup=200.0: must lie between 0 and optim.epochs=200"),
            ("--optim.warmup=-1", "optim.warmup=-1.0"),
            ("--optim.base_lr=0", "optim.base_lr=0.0: must be above 0"),
            ("--model.temperature=0", "model.temperature=0.0: must be above 0"),
            ("--labels.ratio=10", "labels.ratio=10.0: must be a fraction of the labelled images, between 0 and 1"),
            ("--views.scale=[1,0.2]", "views.scale=(1.0, 0.2)"),
            ("--monitor.log_every=0", "monitor.log_every=0"),
            ("--monitor.knn_every=-1", "monitor: knn_every and holdout must be 0 or more"),
            ("--checkpoint.keep_every=-1", "checkpoint.last_every and checkpoint.keep_every must be 0 or more"),
            ("--data.max_corrupt=2", "data.max_corrupt=2.0: must be a fraction between 0 and 1"),
        ],
    )
    def test_impossible_value(self, argument: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert message in refusal([argument], capsys)

    def test_impossible_value_in_a_recipe(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "bad.yaml"
        path.write_text("optim:\n  batch: 0\n")
        assert "optim.batch=0: must be 1 or more" in refusal(["--recipe", str(path)], capsys)

    @pytest.mark.parametrize("text", ["model: [1, 2\n", "- 1\n", "# nothing\n", "model: 3\n"])
    def test_a_file_that_is_no_recipe(self, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        refusal(["--recipe", str(path)], capsys)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--recipe", "fashion_desc"], "--recipe fashion_desc: no such recipe or file; did you mean fashion_desk?"),
            (["--recipe", "/no/such.yaml"], "no such recipe or file; there are"),
            (["--recipe", "moco_v1", "--recipe=moco_v2"], "--recipe moco_v1 and moco_v2: give one"),
            (["--recipe"], "--recipe: name a recipe or a file"),
            (["--seed=1", "--recipe"], "--recipe: name a recipe or a file"),
            (["--recipe="], "--recipe: name a recipe or a file"),
        ],
    )
    def test_recipe_that_is_not_there(
        self, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert message in refusal(arguments, capsys)


def leaves(config: dict[str, Any], prefix: str = "") -> list[str]:
    return [
        name
        for key, value in config.items()
        for name in (leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"])
    ]


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as stopped:
        parse(["--help"])
    assert not stopped.value.code
    entries = capsys.readouterr().out.split("\n  --")
    for name in leaves(Config().as_dict()):
        (entry,) = [e for e in entries if e.split()[0] == name]
        explanation = " ".join(entry.split()[2:])
        assert len(explanation) > 20, entry
        assert "default: " in explanation, entry


class TestPlainForm:
    def test_loads_where_only_weights_may(self, tmp_path: Path) -> None:
        config = parse(["--recipe", "fashion_desk"])
        torch.save({"config": config.as_dict()}, tmp_path / "c.pth")
        assert torch.load(tmp_path / "c.pth", weights_only=True)["config"] == config.as_dict()

    def test_as_a_recipe_it_gives_the_same_configuration(self, tmp_path: Path) -> None:
        config = parse(["--recipe", "moco_v1", "--data.train=[a, b]", "--views.scale=[0.3, 0.9]", "--seed=7"])
        path = tmp_path / "resolved.yaml"
        path.write_text(yaml.safe_dump(config.as_dict()))
        assert parse(["--recipe", str(path)]) == config

    def test_holds_every_option(self) -> None:
        names = set(leaves(Config().as_dict()))
        for group, kind in (("optim", OptimConfig), ("monitor", MonitorConfig), ("checkpoint", CheckpointConfig)):
            assert {f"{group}.{f.name}" for f in dataclasses.fields(kind)} <= names
        assert {"name", "seed", "data.train", "labels.ratio", "views.size", "model.arch"} <= names


class TestDifferingKeys:
    def test_equal_configurations_differ_in_nothing(self) -> None:
        assert differing_keys(Config().as_dict(), Config().as_dict()) == []

    def test_each_difference_is_named_with_both_values(self) -> None:
        old = parse(["--seed=1"]).as_dict()
        new = parse(["--seed=2", "--model.temperature=0.1", "--views.scale=[0.5,1]", "--data.train=[x]"]).as_dict()
        assert differing_keys(old, new) == [
            "data.train: [] -> ['x']",
            "model.temperature: 0.2 -> 0.1",
            "seed: 1 -> 2",
            "views.scale: [0.2, 1.0] -> [0.5, 1.0]",
        ]

    @pytest.mark.parametrize(
        "argument",
        [
            "--name=other",
            "--runs=elsewhere",
            "--device=cpu",
            "--resume=never",
            "--data.workers=3",
            "--monitor.log_every=7",
            "--checkpoint.last_every=9",
            "--checkpoint.keep_every=2",
        ],
    )
    def test_what_changes_no_result_may_differ(self, argument: str) -> None:
        assert differing_keys(Config().as_dict(), parse([argument]).as_dict()) == []

    def test_an_option_that_one_side_lacks_differs(self) -> None:
        old = Config().as_dict()
        del old["model"]["head"]
        assert differing_keys(old, Config().as_dict()) == ["model.head: None -> mlp"]


def saved_id(*options: str, images: ImageSet, epochs: float = 4) -> str:
    config = parse(list(options))
    return backbone_id(config, images, keep_labels(images, config.labels), epochs)


class TestBackboneId:
    @pytest.mark.parametrize(
        "options",
        [["--seed=3"], ["--labels.seed=1"], ["--name=x"], ["--data.train=elsewhere"], ["--optim.accumulate=2"],
         ["--optim.compile=true"], ["--optim.epochs=200"], ["--monitor.k=3"], ["--model.queue=65536"]],
    )  # fmt: skip
    def test_seeds_and_what_does_not_decide_the_weights_do_not_count(
        self, options: list[str], make_images: Callable[..., ImageSet]
    ) -> None:
        images = make_images([0, 1, 2, -1] * 4)
        assert saved_id("--labels.ratio=0.5", *options, images=images) == saved_id("--labels.ratio=0.5", images=images)

    def test_everything_else_does(self, make_images: Callable[..., ImageSet]) -> None:
        images = make_images([0, 1, 2, -1] * 4)
        options = (
            [], ["--model.temperature=0.1"], ["--optim.base_lr=1"], ["--views.blur=0"], ["--labels.ratio=0.5"],
            ["--optim.epochs=4"], ["--model.loss=supcon"],
        )  # fmt: skip
        ids = {saved_id(*given, images=images) for given in options} | {saved_id(images=images, epochs=3)}
        assert len(ids) == 8

    def test_is_the_method_and_twelve_digits(self, make_images: Callable[..., ImageSet]) -> None:
        images = make_images([0, 1])
        assert re.fullmatch(r"unimoco-[0-9a-f]{12}", saved_id(images=images))
        assert saved_id("--model.loss=info_nce", images=images).startswith("info_nce-")

    def test_a_list_counts_by_the_names_that_it_matches(
        self, make_images: Callable[..., ImageSet], tmp_path: Path
    ) -> None:
        images = make_images([0, 1, 2, -1] * 4)
        texts = {"a": "image0.jpg\nimage1.jpg\n", "b": "folder1/image1.jpg\nimage0.jpg\n", "c": "image0.jpg\n"}
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
        ids = {name: saved_id(f"--labels.list={tmp_path / name}", images=images) for name in texts}
        assert ids["a"] == ids["b"] != ids["c"]


def test_a_recipe_is_one_whatever_its_labels_and_seeds(make_images: Callable[..., ImageSet]) -> None:
    images = make_images([0, 1, 2, -1] * 4)
    given = (["--labels.ratio=0.5", "--seed=3"], [], ["--views.blur=0"], ["--model.temperature=0.1"])
    half, all_labels, *others = (recipe_id(parse(list(options)), images, 4) for options in given)
    assert half == all_labels
    assert len({half, *others}) == 3


def test_options_of_earlier_versions_are_renamed() -> None:
    old = {"seed": 1, "views": {"grey": 0.1}, "model": {"queue": 8, "dim": 4}, "optim": {"every": "step"}}
    assert rename_options(old) == {
        "seed": 1, "views": {"grayscale_prob": 0.1}, "model": {"queue_size": 8, "dim": 4},
        "optim": {"lr_update": "step"},
    }  # fmt: skip
