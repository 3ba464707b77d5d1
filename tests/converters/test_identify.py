"""Networks that share every tensor's name and shape are told apart by what else the file says, or asked for."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import converters
from converters import ReadOptions, sources
from converters import arch as archs
from converters.contents import Content
from converters.convert import main
from converters.formats import BY_NAME
from converters.identify import RIVALS, check_config
from tests.converters.samples import randomise

Save = Callable[[object], Path]

pytestmark = pytest.mark.fault("converters", "convert", "networks with the same tensors and another computation")


def made_by_timm(name: str) -> dict[str, Tensor]:
    return randomise(timm.create_model(name, num_classes=0)).state_dict()


def read(path: Path, arch: str | None = None) -> str:
    return converters.read_backbone(path, ReadOptions(arch=arch)).arch


NAMED: dict[str, Callable[[str, Any], Any]] = {
    "arch": lambda name, state: {"arch": name, "state_dict": dict(state)},
    "args.model": lambda name, state: {"args": argparse.Namespace(model=name, lr=1), "state_dict": dict(state)},
    "args.model, a tag": lambda name, state: {"args": {"model": f"{name}.a1_in1k"}, "state_dict_ema": dict(state)},
    "opt.arch": lambda name, state: {"opt": argparse.Namespace(arch=name), "model": dict(state)},
}


@pytest.mark.parametrize("where", NAMED)
@pytest.mark.parametrize(("name", "plain"), [("resnetblur18", "resnet18"), ("resnetaa50", "resnet50")])
def test_the_network_that_the_file_names_counts(name: str, plain: str, where: str, save: Save) -> None:
    path = save(NAMED[where](name, made_by_timm(name)))
    with pytest.raises(ValueError, match=rf"says that it is {name}.*its tensors are {plain}'s.*--arch {plain} says so"):
        read(path)
    assert read(path, plain) == plain


@pytest.mark.parametrize("where", NAMED)
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "tv_resnet50", "resnet34d"])
def test_the_plain_network_by_any_of_its_names(name: str, where: str, save: Save) -> None:
    state = made_by_timm(name)
    reading = sources.read(save(NAMED[where](name, state)))
    assert reading.backbone.arch == name.removeprefix("tv_")
    assert not reading.notes


@pytest.mark.parametrize("name", ["resnet50_16s", "resnet101", "vit_small_patch16_224", "ResNet34"])
def test_a_name_that_contradicts_the_tensors(name: str, save: Save) -> None:
    with pytest.raises(ValueError, match=f"says that it is {name}, its tensors are resnet50's"):
        read(save({"arch": name, "state_dict": dict(archs.build("resnet50").state_dict())}))


@pytest.mark.parametrize("name", ["simclr", "moco_v2", "my model", "x" * 1000])
def test_an_entry_that_names_no_network(name: str, save: Save) -> None:
    assert read(save({"arch": name, "state_dict": dict(archs.build("resnet18").state_dict())})) == "resnet18"


@pytest.mark.parametrize("name", ["resnetblur18", "resnetblur50"])
def test_blur_pooling_shows_in_the_list_of_modules(name: str, save: Save) -> None:
    with pytest.raises(ValueError, match="a second layer behind its max-pool"):
        read(save(made_by_timm(name)))


@pytest.mark.parametrize("name", ["resnetaa50", "resnet50", "resnet34d"])
def test_files_of_timm_that_could_be_either_are_asked_for(name: str, save: Save) -> None:
    path, plain = save(made_by_timm(name)), name.replace("aa", "")
    with pytest.raises(ValueError, match=rf"made by timm.*resnetaa{plain[6:]}.*--arch {plain} says"):
        read(path)
    assert read(path, plain) == plain


def test_torchvisions_files_are_not_asked_for(save: Save) -> None:
    reading = sources.read(save(archs.build("resnet50").state_dict()))
    assert (reading.backbone.arch, reading.notes) == ("resnet50", ())


def test_without_the_list_of_modules_the_assumption_is_told(save: Save) -> None:
    reading = sources.read(save(dict(archs.build("resnet50").state_dict())))
    assert reading.notes == (
        "the file names no network: resnet50 is assumed; timm's resnetaa50 and resnetblur50 have its tensors too",
    )


def test_every_rival_in_timm_is_known() -> None:
    found: dict[str, list[str]] = {}
    for name in timm.list_models("resnet*"):
        if name in archs.ARCHS or name.startswith(("resnetv2", "resnetrs")):  # other classes
            continue
        with torch.device("meta"):
            shapes = {k: tuple(v.shape) for k, v in timm.create_model(name, num_classes=0).state_dict().items()}
        try:
            arch = archs.infer(shapes)
            archs.check_whole(shapes, arch)
        except ValueError:
            continue
        found.setdefault(arch, []).append(name)
    assert {arch: tuple(names) for arch, names in found.items()} == RIVALS


@pytest.mark.parametrize(("arch", "asked"), [("resnet18", "resnet50"), ("resnet50", "wide_resnet50_2")])
def test_the_tensors_must_be_those_of_arch(arch: str, asked: str, save: Save) -> None:
    with pytest.raises(ValueError, match=f"not one whole {asked}"):
        read(save(archs.build(arch).state_dict()), asked)
    with pytest.raises(ValueError, match="architecture 'resnet51' is unknown"):
        read(save(archs.build(arch).state_dict()), "resnet51")


def test_two_networks_of_one_file_are_two_backbones(save: Save) -> None:
    path = save({"state_dict": {f"backbone.{k}": v for k, v in archs.build("resnet18_cifar").state_dict().items()}
                 | {"projector.0.weight": torch.zeros(2)}})  # fmt: skip
    ids = {converters.read_backbone(path, ReadOptions(arch=f"resnet18{stem}")).backbone_id for stem in STEMS}
    assert len(ids) == 2


STEMS = ("_cifar", "_cifar_pad2")


STEM_LAYOUTS: dict[str, dict[str, Tensor]] = {
    "backbone.": {"projector.0.weight": torch.zeros(2)},
    "encoder_q.": {"queue": torch.zeros(2)},
    "encoder.": {"encoder.fc.weight": torch.zeros(2), "predictor.0.weight": torch.zeros(1)},
}


@pytest.mark.parametrize("prefix", STEM_LAYOUTS)
def test_the_padding_of_a_small_stem_is_asked_for(prefix: str, save: Save) -> None:
    state = {prefix + key: value for key, value in archs.build("resnet18_cifar").state_dict().items()}
    path = save({"state_dict": state | STEM_LAYOUTS[prefix]})
    with pytest.raises(ValueError, match=r"3×3 stem.*--arch resnet18_cifar reads.* padding 1.*resnet18_cifar_pad2"):
        read(path)
    for stem in STEMS:
        assert read(path, f"resnet18{stem}") == f"resnet18{stem}"


def test_solo_learns_stem_is_assumed_for_its_files_and_told(sample: Callable[..., Path]) -> None:
    reading = sources.read(sample("solo-learn, CIFAR stem"))
    assert reading.backbone.arch == "resnet18_cifar_pad2"
    (note,) = [note for note in reading.notes if "stem" in note]
    assert note == (
        "the padding of the 3×3 stem is assumed, resnet18_cifar_pad2, as is usual in solo-learn files; "
        "or --arch resnet18_cifar"
    )


def test_a_bare_small_stem_is_assumed_and_told(save: Save) -> None:
    path = save(archs.build("resnet18_cifar").state_dict())
    reading = sources.read(path)
    assert (reading.backbone.arch, len(reading.notes)) == ("resnet18_cifar", 1)
    assert reading.notes[0].endswith("as is usual in torchvision files; or --arch resnet18_cifar_pad2")
    assert read(path, "resnet18_cifar_pad2") == "resnet18_cifar_pad2"


CAFFE = {
    "meta.cfg": lambda text: {"meta": {"cfg": text}},
    "meta.config": lambda text: {"meta": {"config": text}},
    "cfg, nested": lambda text: {"cfg": {"model": {"backbone": {"style": "caffe"}}, "list": [{"a": text}]}},
}  # fmt: skip
LAYOUTS: dict[str, tuple[str, dict[str, Tensor], str]] = {
    "mmpretrain classifier": ("backbone.", {"head.fc.weight": torch.zeros(2)}, "openselfsup"),
    "mmpretrain self-supervision": ("backbone.", {"neck.0.weight": torch.zeros(2)}, "openselfsup"),
    "mmdet": ("backbone.", {"neck.0.weight": torch.zeros(2), "rpn_head.x": torch.zeros(2)}, "openmmlab"),
    "bare": ("", {}, "torchvision"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("where", CAFFE)
def test_caffe_style_is_refused_in_every_layout_and_under_from(layout: str, where: str, save: Save) -> None:
    prefix, more, name = LAYOUTS[layout]
    state = {prefix + k: v for k, v in archs.build("resnet18").state_dict().items()} | more
    path = save({"state_dict": state} | CAFFE[where]("model = dict(backbone=dict(style='caffe'))"))
    for options in (ReadOptions(), ReadOptions(format=name), ReadOptions(arch="resnet18")):
        with pytest.raises(ValueError, match=r"its config says .*style.*another network than"):
            converters.read_backbone(path, options)


def test_dilations_are_told(save: Save) -> None:
    state = {f"backbone.{k}": v for k, v in archs.build("resnet18").state_dict().items()}
    config = "backbone=dict(type='ResNet', depth=18, dilations=(1, 1, 2, 4), style='pytorch')"
    notes = sources.read(save({"meta": {"cfg": config}, "state_dict": state})).notes
    assert notes == (
        "its config says dilations=(1, 1, 2, 4): these weights are read into the network without dilation",
    )
    plain = config.replace("2, 4", "1, 1")
    assert sources.read(save({"meta": {"cfg": plain}, "state_dict": state})).notes == ()


@pytest.mark.fault("converters", "convert", "configs nested at any depth, step counters of another shape")
def test_a_config_nested_very_deep() -> None:
    config: dict[str, Any] = {"style": "caffe"}
    for _ in range(100_000):
        config = {"a": config}
    content = Content(Path("deep.pth"), {"config": config})
    with pytest.raises(ValueError, match="its config says style='caffe: the stride is in the first 1×1 convolution"):
        check_config(content, BY_NAME["torchvision"], forced=False)


@pytest.mark.fault("converters", "convert", "configs nested at any depth, step counters of another shape")
def test_a_counter_of_another_shape(save: Save) -> None:
    state = dict(archs.build("resnet18").state_dict()) | {"bn1.num_batches_tracked": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"bn1.num_batches_tracked has shape \(3,\), a step counter is one number"):
        read(save(state))


def test_mistakes_end_with_status_2_and_no_file(save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = save(NAMED["arch"]("resnetaa50", made_by_timm("resnetaa50"))), tmp_path / "x.safetensors"
    assert main([str(path), "--to", "timm", "--out", str(out)]) == 2
    assert not out.exists()
    assert capsys.readouterr().err.count("\n") == 1
