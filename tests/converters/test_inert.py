"""Checkpoints that hold more than arrays: objects of other packages are inert, tensors beside them are read."""

import collections
import pathlib
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import omegaconf
import pytest
import torch
from torch import nn

import converters
from converters import files
from tests.converters.test_files import legacy, modern, pickled


class Ran:
    """Counts what runs when it is unpickled."""

    count = 0

    def __init__(self) -> None:
        self.value = 3

    def __setstate__(self, state: Any) -> None:
        Ran.count += 1

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (), {"value": 3}


def _made() -> Ran:
    Ran.count += 1
    return Ran()


def trained() -> dict[str, Any]:
    """Return a checkpoint with what trainers add to the weights."""
    network = nn.Linear(3, 2)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    return {
        "state_dict": network.state_dict(),
        "parameters": dict(network.named_parameters()),
        "optimizer": optimiser.state_dict(),
        "hyper_parameters": omegaconf.OmegaConf.create({"lr": 0.1, "layers": [1, 2], "name": "x"}),
        "rng": {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()},
        "generator": np.random.default_rng(0),
        "legacy generator": np.random.RandomState(0),
        "counts": collections.Counter("aab"),
        "defaults": collections.defaultdict(dict, {1: {"step": 2}}),
        "path": pathlib.Path("x"),
        "names": np.array(["a", "b"]),
        "objects": np.array([{}, None]),
        "floats": np.arange(6, dtype=">f4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "scalar": np.float64(2.5),
        "size": torch.Size((2, 3)),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "object": Ran(),
        (1, 2): "a tuple as key",
    }


@pytest.mark.fault("converters", "convert", "optimiser, hyper-parameters, random states, callbacks, arrays in a file")
@pytest.mark.parametrize("write", [legacy, modern])
def test_what_trainers_save_beside_the_weights(write: Callable[..., Path], tmp_path: Path) -> None:
    saved = trained()
    Ran.count = 0
    content = files.read(write(saved, tmp_path / "last.ckpt"))
    assert Ran.count == 0
    for name in ("weight", "bias"):
        assert torch.equal(content["state_dict"][name], saved["state_dict"][name])
        assert torch.equal(content["parameters"][name], saved["parameters"][name])
        assert type(content["parameters"][name]) is torch.Tensor
    assert content["state_dict"]._metadata == saved["state_dict"]._metadata
    momentum = [state["momentum_buffer"] for state in content["optimizer"]["state"].values()]
    assert all(
        torch.equal(a, b["momentum_buffer"])
        for a, b in zip(momentum, saved["optimizer"]["state"].values(), strict=True)
    )
    assert torch.equal(content["rng"]["torch"], saved["rng"]["torch"])
    assert content["rng"]["python"] == saved["rng"]["python"]
    np.testing.assert_array_equal(content["rng"]["numpy"][1], saved["rng"]["numpy"][1])
    np.testing.assert_array_equal(content["floats"], saved["floats"])
    np.testing.assert_array_equal(content["fortran"], saved["fortran"])
    assert (content["scalar"], content["size"], content["defaults"]) == (2.5, (2, 3), {1: {"step": 2}})
    assert {key: value.name for key, value in content.items() if isinstance(value, files.Inert)} == {
        "hyper_parameters": "omegaconf.dictconfig.DictConfig",
        "generator": "numpy.random._pickle.__generator_ctor",
        "legacy generator": "numpy.random._pickle.__randomstate_ctor",
        "counts": "collections.Counter",
        "path": f"{pathlib.PosixPath.__module__}.PosixPath",  # pathlib._local in Python 3.13
        "dtype": "torch.float16",
        "device": "torch.device",
        "object": f"{__name__}._made",
    }
    assert content["object"].fields == {"value": 3}
    assert content["names"].item().name == "a numpy array of numpy.dtype U1"
    assert content["objects"].item().name == "a numpy array of numpy.dtype O8"


# A checkpoint of mmengine's Runner and one with a function of __main__, as authors' scripts save them.
SAVE = """
import sys, torch, torchvision
from mmengine.logging import MessageHub
network = torchvision.models.resnet18()
state = {f"backbone.{k}": v for k, v in network.state_dict().items() if not k.startswith("fc.")}
hub = MessageHub.get_instance("x")
hub.update_scalar("train/loss", 0.5)
hub.update_info("iter", 3)
torch.save({"meta": {"iter": 3}, "state_dict": state, "message_hub": hub.state_dict()}, sys.argv[1])
def exclude(p): return p.ndim == 1
optimizer = {"state": {}, "param_groups": [{"weight_decay_filter": exclude, "lars_adaptation_filter": exclude}]}
plain = {f"module.backbone.{k}": v for k, v in network.state_dict().items()}
plain |= {"module.projector.0.weight": torch.ones(2, 2)}
torch.save({"epoch": 1, "model": plain, "optimizer": optimizer}, sys.argv[2])
"""


@pytest.mark.fault("converters", "convert", "a checkpoint of mmengine's Runner, of VICReg with a function of __main__")
def test_checkpoints_of_mmengines_runner_and_of_vicreg(tmp_path: Path) -> None:
    runner, vicreg = tmp_path / "iter_3.pth", tmp_path / "model.pth"
    subprocess.run([sys.executable, "-c", SAVE, runner, vicreg], check=True, capture_output=True)
    a, b = converters.read_backbone(runner), converters.read_backbone(vicreg)
    assert (a.source.format, b.source.format) == ("openmmlab", "vicreg")
    assert a.compare(b.tensors) == 120
    assert files.read(runner)["message_hub"]["log_scalars"]["train/loss"].name.endswith("HistoryBuffer")
    assert files.read(vicreg)["optimizer"]["param_groups"][0]["weight_decay_filter"].name == "__main__.exclude"


@pytest.mark.fault("converters", "convert", "a needed tensor that is quantised, sparse or another object")
@pytest.mark.parametrize("write", [legacy, modern, pickled])
def test_a_needed_tensor_that_is_an_object_is_refused_by_name(write: Callable[..., Path], tmp_path: Path) -> None:
    tensors: dict[str, Any] = converters.read_backbone("random:resnet18").tensors
    if write is pickled:
        tensors = {key: value.numpy() for key, value in tensors.items()}
    wrong = {"x": Ran()}
    if write is modern:
        ones = torch.ones(64)
        wrong |= {
            "q": torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8),
            "s": ones.to_sparse(),
            "m": ones.to("meta"),
        }
    names = {"x": rf"{__name__}\._made", "q": "a quantised tensor", "s": "torch.sparse_coo", "m": "meta device"}
    for kind, value in wrong.items():
        path = write(tensors | {"bn1.weight": value}, tmp_path / f"{kind}.pth")
        with pytest.raises(ValueError, match=rf"bn1.weight is .*{names[kind]}") as error:
            converters.read_backbone(path)
        assert "\n" not in str(error.value)
