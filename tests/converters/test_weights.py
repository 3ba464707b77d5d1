"""A file with several sets of weights says which was read, and --weights chooses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import converters
from common.files import sha256
from converters import ReadOptions, sources
from converters import arch as archs
from converters.convert import main
from tests.converters.samples import randomise

Save = Callable[[object], Path]
State = dict[str, Tensor]

pytestmark = pytest.mark.fault("choice of weights", "convert", "files with several sets of weights")


@pytest.fixture(scope="module")
def two() -> tuple[State, State]:
    """Return the trained weights and their average."""
    torch.manual_seed(0)
    one, other = (randomise(archs.build("resnet18")).state_dict() for _ in range(2))
    return dict(one), dict(other)


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def conv1(path: Path, weights: str | None = None) -> Tensor:
    return converters.read_backbone(path, ReadOptions(weights)).tensors["conv1.weight"]


LAYOUTS: dict[str, Callable[[State, State], dict[str, Any]]] = {
    "state_dict_ema": lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema, "arch": "resnet18"},
    "model_ema": lambda raw, ema: {"model": raw, "model_ema": ema},
    "model_ema of AveragedModel": lambda raw, ema: {
        "model": raw, "model_ema": prefixed("module.", ema) | {"n_averaged": torch.tensor(3)}
    },
    "ema_state_dict": lambda raw, ema: {"state_dict": raw, "ema_state_dict": ema},
    "model_state_dict": lambda raw, ema: {"model_state_dict": raw, "ema_model_state_dict": ema},
    "ema": lambda raw, ema: {"net": raw, "ema": ema},
    "ema.module": lambda raw, ema: {"model": raw, "ema": {"module": ema, "updates": 3}},
    "a callback": lambda raw, ema: {"state_dict": raw, "callbacks": {"EMA{'d': 0.9}": {"ema_state_dict": ema}}},
    "MoCo": lambda raw, ema: {"state_dict": prefixed("encoder_q.", raw), "state_dict_ema": prefixed("encoder_q.", ema)},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_average_is_read_and_the_trained_weights_on_request(
    layout: str, two: tuple[State, State], save: Save
) -> None:
    raw, ema = two
    path = save(LAYOUTS[layout](raw, ema))
    reading = sources.read(path)
    assert torch.equal(reading.backbone.tensors["conv1.weight"], ema["conv1.weight"])
    assert reading.weights == reading.backbone.source.weights == "ema"
    (note,) = [note for note in reading.notes if "sets of weights" in note]
    assert note.startswith("the file holds 2 sets of weights: ema (")
    assert "ema was read, --weights " in note
    assert torch.equal(conv1(path, "model"), raw["conv1.weight"])
    assert not [note for note in sources.read(path, ReadOptions("ema")).notes if "sets of weights" in note]


def test_timm_reads_the_same(two: tuple[State, State], save: Save) -> None:
    from timm.models import load_state_dict

    path = save(LAYOUTS["state_dict_ema"](*two))
    assert torch.equal(conv1(path), load_state_dict(str(path))["conv1.weight"])
    assert torch.equal(conv1(path, "model"), load_state_dict(str(path), use_ema=False)["conv1.weight"])


PAIRS = ("teacher", "student"), ("online", "target"), ("query", "key")


@pytest.mark.parametrize(("default", "other"), PAIRS)
@pytest.mark.parametrize("layout", ["entries", "modules", "backbones"])
def test_pairs_of_encoders(default: str, other: str, layout: str, two: tuple[State, State], save: Save) -> None:
    state = dict(zip((default, other), two, strict=True))
    if layout == "entries":
        content: Any = {name: prefixed("module.", each) for name, each in state.items()}
    elif layout == "modules":
        content = {"model": prefixed(f"{default}.", two[0]) | prefixed(f"{other}.backbone.", two[1])}
    else:
        content = {"state_dict": prefixed(f"{default}_encoder.", two[0]) | prefixed(f"{other}_encoder.net.", two[1])}
    path = save(content)
    reading = sources.read(path)
    assert (reading.weights, reading.backbone.source.format) == (default, "pairs")
    for name, each in state.items():
        assert torch.equal(conv1(path, name), each["conv1.weight"])
    assert f"{default} was read, --weights {other} reads the other" in reading.notes[0]


def test_mmengine_keeps_the_average_in_state_dict(two: tuple[State, State], save: Save) -> None:
    raw, ema = (prefixed("backbone.", each) for each in two)
    meta = {"mmengine_version": "0.10", "cfg": ""}
    path = save(
        {"meta": meta, "state_dict": ema, "ema_state_dict": prefixed("module.", raw) | {"steps": torch.tensor(1)}}
    )
    assert torch.equal(conv1(path), two[1]["conv1.weight"])
    assert torch.equal(conv1(path, "model"), two[0]["conv1.weight"])
    assert sources.read(path).weights == "ema"


def test_what_is_not_there_is_named(two: tuple[State, State], save: Save) -> None:
    path = save(LAYOUTS["state_dict_ema"](*two))
    with pytest.raises(ValueError, match="read as torchvision has no teachr weights: --weights takes ema or model"):
        conv1(path, "teachr")
    path = save({"state_dict": prefixed("encoder_q.", two[0]) | prefixed("encoder_k.", two[1]), "state_dict_ema":
                 prefixed("encoder_q.", two[0])})  # fmt: skip
    with pytest.raises(ValueError, match="has no momentum weights: --weights takes ema or query or key"):
        conv1(path, "momentum")  # of the two averages


def test_sets_of_one_file_are_different_backbones(two: tuple[State, State], save: Save) -> None:
    path = save(LAYOUTS["state_dict_ema"](*two))
    default, named, other = (converters.read_backbone(path, ReadOptions(w)) for w in (None, "ema", "model"))
    assert default.backbone_id == named.backbone_id == f"sha256-{sha256(path)}"
    assert other.backbone_id == f"sha256-{sha256(path)}-model"
    assert (default.source.content_id, other.source.content_id) == (sha256(path), f"{sha256(path)}-model")


def test_the_key_encoder_of_our_checkpoints_is_another_backbone(sample: Callable[..., Path], save: Save) -> None:
    content = torch.load(sample("this suite"), weights_only=True)
    content["meta"] |= {"backbone_id": "unimoco-3f2a00112233", "seed": 5}
    path = save(content)
    query, key = (converters.read_backbone(path, ReadOptions(weights)) for weights in ("query", "key"))
    assert (query.backbone_id, key.backbone_id) == ("unimoco-3f2a00112233", "unimoco-3f2a00112233-key")
    assert (query.seed, key.seed) == (5, 5)


WRAPPED: dict[str, Callable[[str], str]] = {
    "torch.compile of a part": lambda key: "backbone._orig_mod." + key,
    "FSDP of each stage": lambda key: "_fsdp_wrapped_module.backbone." + key.replace(".0.", ".0._fsdp_wrapped_module."),
    "activation checkpointing": lambda key: "backbone." + key.replace("layer2.", "layer2._checkpoint_wrapped_module."),
    "DDP around torch.compile around FSDP": lambda key: "module._orig_mod._fsdp_wrapped_module.backbone.module." + key,
}  # fmt: skip


@pytest.mark.fault("converters", "convert", "wrappers' parts anywhere in a key; containers of DeepSpeed and others")
@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("container", ["state_dict", "module", "model_state_dict", "net"])
def test_wrappers_are_stripped_anywhere(wrapper: str, container: str, two: tuple[State, State], save: Save) -> None:
    state = {WRAPPED[wrapper](key): value for key, value in two[0].items()}
    state |= {"projection_head.0.weight": torch.zeros(2)}
    path = save({container: state, "ds_config": {"a": 1}})
    assert converters.read_backbone(path).compare(two[0]) == len(two[0])


def test_a_module_compiled_by_torch(save: Save) -> None:
    model = nn.Module()
    model.backbone = torch.compile(archs.build("resnet18"))
    model.projection_head = nn.Linear(512, 8)
    assert any("._orig_mod." in key for key in model.state_dict())
    backbone = converters.read_backbone(save({"state_dict": model.state_dict()}))
    assert torch.equal(backbone.tensors["conv1.weight"], model.backbone.conv1.weight)


def test_the_report_names_the_set_and_the_others(
    two: tuple[State, State], save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = save(LAYOUTS["state_dict_ema"](*two)), tmp_path / "x.pth"
    assert main([str(path), "--to", "torchvision", "--out", str(out), "--verify", "no"]) == 0
    report = capsys.readouterr().out
    assert ", ema weights, resnet18, sha256" in report
    assert (
        "note: the file holds 2 sets of weights: ema (state_dict_ema), model (state_dict); "
        "ema was read, --weights model reads the other"
    ) in report
    assert torch.equal(torch.load(out, weights_only=True)["conv1.weight"], two[1]["conv1.weight"])


def test_the_old_name_of_the_option(
    two: tuple[State, State], save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = save(LAYOUTS["state_dict_ema"](*two)), tmp_path / "x.pth"
    assert main([str(path), "--to", "torchvision", "--out", str(out), "--verify", "no", "--branch", "model"]) == 0
    assert "--branch is deprecated: --weights chooses the weights" in capsys.readouterr().err
    assert torch.equal(torch.load(out, weights_only=True)["conv1.weight"], two[0]["conv1.weight"])
