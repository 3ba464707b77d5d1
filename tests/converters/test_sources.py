"""Every format is recognised; every key is read, dropped for a reason, or an error."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import converters
from converters import ReadOptions, sources
from converters import arch as archs
from converters.formats import BY_NAME, FORMATS
from converters.targets import TARGETS
from tests.converters.samples import SAMPLES

HERE = [name for name, row in SAMPLES.items() if not row.package]
Save = Callable[[object], Path]


@pytest.mark.parametrize("name", HERE)
def test_formats_are_recognised(name: str, sample: Callable[..., Path]) -> None:
    backbone = converters.read_backbone(sample(name), ReadOptions(weights=SAMPLES[name].weights))
    assert backbone.source.format == SAMPLES[name].format
    assert backbone.arch == "resnet18" + SAMPLES[name].stem
    assert list(backbone.tensors) == list(archs.expected(backbone.arch))
    assert backbone.feature_dim == 512


@pytest.mark.parametrize("name", ["MoCo v1", "DINO", "lightly, nn.Sequential", "torchvision .safetensors"])
def test_naming_the_format_reads_the_same(name: str, sample: Callable[..., Path]) -> None:
    recognised = converters.read_backbone(sample(name))
    named = converters.read_backbone(sample(name), ReadOptions(format=SAMPLES[name].format))
    assert recognised.compare(named.tensors) == len(named.tensors)


def test_every_format_has_a_sample() -> None:
    # A bare OpenMMLab stem is what this suite's own V1c files hold: test_targets reads one back.
    assert {sample.format for sample in SAMPLES.values()} == set(BY_NAME) - {"openmmlab-bare"}
    assert len(BY_NAME) == len(FORMATS)


def test_every_key_is_accounted_for(sample: Callable[..., Path]) -> None:
    reading = sources.read(sample("UniMoCo"))
    assert {what: len(keys) for what, keys in reading.dropped.items()} == {
        "projection heads": 4,
        "the key encoder": 120,
        "queues": 3,
    }
    assert reading.total == 120 + 127
    assert reading.backbone.meta == {"method": "unimoco", "epoch": 200}


def test_our_own_checkpoint_says_how_it_was_trained(sample: Callable[..., Path]) -> None:
    meta = converters.read_backbone(sample("this suite")).meta
    assert (meta["method"], meta["label_ratio"], meta["epochs"]) == ("unimoco", 0.1, 20.0)


def test_our_own_checkpoint_without_a_key_encoder(sample: Callable[..., Path], save: Save) -> None:
    content = torch.load(sample("this suite"), weights_only=True)
    state = {k: v for k, v in content["state_dict"].items() if k.startswith("encoder_q.") and ".fc." not in k}
    state |= {"encoder_q.fc.weight": torch.zeros(10, 512), "encoder_q.fc.bias": torch.zeros(10)}
    path = save(content | {"state_dict": state, "meta": {"method": "ce", "arch": "resnet18", "stem": "imagenet"}})
    assert converters.read_backbone(path).meta["method"] == "ce"


def test_our_own_cifar_stem(save: Save) -> None:
    state = {f"encoder_q.{k}": v for k, v in archs.build("resnet18_cifar").state_dict().items()}
    content = {"format": "unimoco-suite", "state_dict": state, "meta": {"arch": "resnet18", "stem": "cifar"}}
    assert converters.read_backbone(save(content)).arch == "resnet18_cifar"


def test_a_checkpoint_that_contradicts_itself(sample: Callable[..., Path], save: Save) -> None:
    content = torch.load(sample("this suite"), weights_only=True)
    content["meta"]["arch"] = "resnet50"
    with pytest.raises(ValueError, match="says it is resnet50, its tensors are resnet18's"):
        converters.read_backbone(save(content))


@pytest.mark.parametrize(
    ("name", "asked", "found"),
    [
        ("MoCo v1", "key", "key"),
        ("MoCo v1", "momentum", "key"),
        ("DINO", "student", "student"),
        ("lightly", "key", "momentum"),
    ],
)
def test_a_branch_goes_by_any_of_its_names(name: str, asked: str, found: str, sample: Callable[..., Path]) -> None:
    default, other = sources.read(sample(name)), sources.read(sample(name), ReadOptions(weights=asked))
    assert other.weights == found
    assert not torch.equal(default.backbone.tensors["conv1.weight"], other.backbone.tensors["conv1.weight"])


def test_a_branch_that_the_format_does_not_have(sample: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="read as mocov3 has no teachr weights: --weights takes query or key"):
        converters.read_backbone(sample("MoCo v3"), ReadOptions(weights="teachr"))


def test_a_branch_that_the_file_does_not_have(moco: dict[str, Tensor], save: Save) -> None:
    path = save({"state_dict": moco})
    with pytest.raises(ValueError, match="read as moco has no key weights: --weights takes query"):
        converters.read_backbone(path, ReadOptions(weights="key"))


def test_a_wrong_name_of_the_format(sample: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="format 'mocov9' is unknown; --from takes one of unimoco-suite"):
        converters.read_backbone(sample("MoCo v1"), ReadOptions(format="mocov9"))
    with pytest.raises(ValueError, match="read as swav has no model weights, nor any other"):
        converters.read_backbone(sample("MoCo v1"), ReadOptions(format="swav"))


def test_an_unknown_file_shows_its_keys(save: Save) -> None:
    with pytest.raises(ValueError, match=r"in no known format.*it holds blocks.0.weight.*--from takes one of"):
        converters.read_backbone(save({"state_dict": {"blocks.0.weight": torch.zeros(2)}}))
    with pytest.raises(ValueError, match="it holds a list"):
        converters.read_backbone(save([torch.zeros(2)]))


def test_wrappers_may_be_nested(moco: dict[str, Tensor], save: Save) -> None:
    path = save({"state_dict": {f"_orig_mod.{key}": value for key, value in moco.items()}})
    assert converters.read_backbone(path).source.format == "moco"


def test_a_key_with_and_without_its_wrapper(moco: dict[str, Tensor], save: Save) -> None:
    twice = moco | {"encoder_q.bn1.bias": torch.zeros(64)}
    with pytest.raises(ValueError, match=r"holds encoder_q.bn1.bias twice"):
        converters.read_backbone(save({"state_dict": twice}))


def test_an_unknown_key_is_refused_until_it_is_named(moco: dict[str, Tensor], save: Save) -> None:
    path = save({"state_dict": moco | {"module.extra.weight": torch.zeros(1)}})
    with pytest.raises(ValueError, match=r"has 1 keys without a rule: extra.weight; --drop REGEX"):
        converters.read_backbone(path)
    assert sources.read(path, ReadOptions(drop=(r"^extra\.",))).dropped[r"--drop ^extra\."] == ["extra.weight"]
    with pytest.raises(ValueError, match=r"--drop \( is no regular expression"):
        sources.read(path, ReadOptions(drop=("(",)))


ENCODER = "module.encoder_q."


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_missing_tensor_is_named(data: st.DataObject, moco: dict[str, Tensor], save: Save) -> None:
    name = data.draw(st.sampled_from(list(archs.expected("resnet18"))))
    broken = {k: v for k, v in moco.items() if k != ENCODER + name}
    with pytest.raises(ValueError, match=name if name != "layer1.0.conv1.weight" else "in no known format"):
        converters.read_backbone(save({"state_dict": broken}))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_tensor_of_another_shape_is_named(data: st.DataObject, moco: dict[str, Tensor], save: Save) -> None:
    names = [
        n for n, shape in archs.expected("resnet18").items() if shape and not n.startswith(("conv1", "layer1.0.conv"))
    ]
    name = data.draw(st.sampled_from(names))
    with pytest.raises(ValueError, match=f"1 of another shape: {name} has shape"):
        converters.read_backbone(save({"state_dict": moco | {ENCODER + name: torch.zeros(3, 3)}}))


def test_a_tensor_left_over_is_named(moco: dict[str, Tensor], save: Save) -> None:
    path = save({"state_dict": moco | {ENCODER + "layer1.0.se.weight": torch.zeros(3)}})
    with pytest.raises(ValueError, match=r"1 left over: layer1.0.se.weight"):
        converters.read_backbone(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(value: float, moco: dict[str, Tensor], save: Save) -> None:
    moco[ENCODER + "bn1.running_var"] = torch.full((64,), value)
    with pytest.raises(ValueError, match=r"encoder_q.bn1.running_var holds 64 values that are not finite"):
        converters.read_backbone(save({"state_dict": moco}))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.complex64, torch.bool])
def test_a_wrong_dtype_is_named(dtype: torch.dtype, moco: dict[str, Tensor], save: Save) -> None:
    moco[ENCODER + "conv1.weight"] = torch.zeros(64, 3, 7, 7, dtype=dtype)
    with pytest.raises(ValueError, match=f"encoder_q.conv1.weight is {dtype}, a backbone's tensors are float32"):
        converters.read_backbone(save({"state_dict": moco}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_and_noted(dtype: torch.dtype, moco: dict[str, Tensor], save: Save) -> None:
    half = {k: v.to(dtype) if v.is_floating_point() else v for k, v in moco.items()}
    reading = sources.read(save({"state_dict": half}))
    assert reading.notes == (f"stored as {str(dtype)[6:]}, read as float32: no value changes",)
    stored, read = half[ENCODER + "conv1.weight"], reading.backbone.tensors["conv1.weight"]
    assert read.dtype == torch.float32
    assert torch.equal(read, stored.float())


def test_a_view_that_claims_more_than_the_file(moco: dict[str, Tensor], save: Save) -> None:
    moco[ENCODER + "conv1.weight"] = torch.zeros(1).expand(10**6, 10**6)
    with pytest.raises(ValueError, match=r"encoder_q.conv1.weight claims 4,000,000,000,000 bytes where the file has"):
        converters.read_backbone(save({"state_dict": moco}))


def test_views_that_claim_more_than_the_file_together(moco: dict[str, Tensor], save: Save) -> None:
    shared = torch.zeros(3_000_000)  # 12 MB, stored once and viewed many times
    views = {key: shared for key in moco if "conv" in key}
    with pytest.raises(ValueError, match=r"claims 12,000,000 bytes where the file has \d+,\d+ left for it"):
        converters.read_backbone(save({"state_dict": moco | views}))


def test_a_newer_checkpoint_of_ours(sample: Callable[..., Path], save: Save) -> None:
    content = torch.load(sample("this suite"), weights_only=True)
    with pytest.raises(ValueError, match="is version 2 of this suite's checkpoints; this code reads version 1"):
        converters.read_backbone(save(content | {"version": 2}))


def test_a_tensor_without_values(moco: dict[str, Tensor], save: Save) -> None:
    moco[ENCODER + "bn1.weight"] = torch.ones(64, device="meta")
    with pytest.raises(ValueError, match=r"encoder_q.bn1.weight is a tensor of the meta device"):
        converters.read_backbone(save({"state_dict": moco}))


@pytest.mark.parametrize("dtype", ["O", "U3", "M8[s]"])
def test_arrays_that_are_no_numbers(dtype: str, sample: Callable[..., Path], tmp_path: Path) -> None:
    arrays = {k: v.numpy() for k, v in converters.read_backbone(sample("torchvision")).tensors.items()}
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(arrays | {"bn1.weight": np.full(64, 1).astype(dtype)}))
    with pytest.raises(ValueError, match=r"bn1.weight is an array of \S+, not of plain numbers"):
        converters.read_backbone(path)


def test_a_sparse_tensor(moco: dict[str, Tensor], save: Save) -> None:
    moco[ENCODER + "bn1.weight"] = torch.ones(64).to_sparse()
    with pytest.raises(ValueError, match=r"encoder_q.bn1.weight is stored as torch.sparse_coo"):
        converters.read_backbone(save({"state_dict": moco}))


def test_absent_counters_are_noted(moco: dict[str, Tensor], save: Save) -> None:
    reading = sources.read(save({"state_dict": {k: v for k, v in moco.items() if "num_batches" not in k}}))
    assert reading.notes == ("the file has no BN step counters: 20 num_batches_tracked set to 0",)
    assert reading.backbone.tensors["bn1.num_batches_tracked"].dtype == torch.int64


def test_a_backbone_no_longer_needs_its_file(moco: dict[str, Tensor], save: Save) -> None:
    path = save({"state_dict": moco})
    backbone = converters.read_backbone(path)
    before = backbone.tensors["conv1.weight"].clone()
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(backbone.tensors["conv1.weight"], before)


def test_detectron2_zoo_files_are_another_network(sample: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "zoo.pkl"
    TARGETS["detectron2"].save(converters.read_backbone(sample("MoCo v1")), path)
    content = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(content | {"__author__": "Detectron2 Model Zoo"}))
    with pytest.raises(ValueError, match=r"BGR images with STRIDE_IN_1X1.*say so with --from detectron2"):
        converters.read_backbone(path)
    assert converters.read_backbone(path, ReadOptions(format="detectron2")).arch == "resnet18"


@pytest.mark.parametrize("config", ["backbone=dict(style='caffe')", "'style': 'caffe'", "bgr_to_rgb=False"])
def test_caffe_style_openmmlab_files_are_another_network(config: str, sample: Callable[..., Path], save: Save) -> None:
    state = {f"backbone.{k}": v for k, v in converters.read_backbone(sample("MoCo v1")).tensors.items()}
    with pytest.raises(ValueError, match=r"its config says .*another network than torchvision's"):
        converters.read_backbone(save({"meta": {"cfg": config}, "state_dict": state}))


def test_the_backbone_of_a_built_model_is_compared() -> None:
    backbone = converters.read_backbone("random:resnet18")
    network = backbone.build()
    assert backbone.compare(converters.backbone_state(network.state_dict(), "torchvision")) == 120
    network.layer2[0].conv1.weight.data[0, 0, 0, 0] += 1e-6
    with pytest.raises(converters.VerificationError, match=r"1 different: layer2.0.conv1.weight"):
        backbone.compare(network.state_dict())
    state = dict(backbone.tensors)
    state["other"] = state.pop("bn1.bias")
    with pytest.raises(converters.VerificationError, match=r"1 absent: bn1.bias; 1 left over: other"):
        backbone.compare(state)
