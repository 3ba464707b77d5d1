"""Checkpoints that peers' own classes make and save: read, and features compared with what their class computes.

    python -m venv --system-site-packages /tmp/peers
    /tmp/peers/bin/pip install --no-deps solo-learn==1.0.2 onedl-mmpretrain==1.3.6 einops mat4py terminaltables
    /tmp/peers/bin/python tests/benchmarks/peers.py [--out results/benchmarks/peers.jsonl]   two minutes on two cores

These packages pin versions that the environment of this project does not have, so they are no part of it. The modules
that they import and do not need here are replaced by empty ones. Each line of the output is one file:

    package, version, model  whose class made it
    format, weights, arch    what the converters recognised
    max_abs_delta            largest |difference| of the features of layer1 … layer4
    keys                     first part of the keys in the file → how many
"""

from __future__ import annotations

import argparse
import importlib.metadata
import inspect
import json
import subprocess
import sys
import tempfile
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    sys.modules["tests"] = types.ModuleType("tests")  # solo-learn installs a package of this name
    sys.modules["tests"].__path__ = [str(Path(__file__).parents[1])]

import torch
from torch import nn

from converters import ReadOptions, sources, verify
from tests.converters.samples import randomise, saved_by_lightning, saved_by_mmengine

RESULTS = Path(__file__).parents[2] / "results/benchmarks/peers.jsonl"
Model = tuple[str, Any, dict[str | None, nn.Module]]  # its name, what is saved, --weights → the network that it means

SOLO_LEARN = {
    "encoder": "resnet18", "num_classes": 10, "optimizer": "sgd", "scheduler": "none", "extra_optimizer_args": {},
    "lars": False, "num_prototypes": 16, "queue_size": 16, "num_large_crops": 2, "num_small_crops": 0,
    "base_tau_momentum": 0.9, "final_tau_momentum": 1.0,
}  # fmt: skip


def solo_learn() -> Iterator[Model]:
    """Make every method of solo-learn, with both stems."""
    scheduler = _empty("pl_bolts.optimizers.lr_scheduler")
    scheduler.LinearWarmupCosineAnnealingLR = object
    from solo.methods import METHODS, base

    base.WeightedKNNClassifier = nn.Identity  # its own passes torchmetrics an option of older versions

    for kind in (base.BaseMethod, base.BaseMomentumMethod):
        del kind.validation_epoch_end  # Lightning 2 refuses it

    for name, method in METHODS.items():
        if name in ("base", "linear"):
            continue
        for cifar in (False, True):
            options = {"backbone_args": {"cifar": cifar, "zero_init_residual": False}}
            for kind_of in method.__mro__:
                for parameter in inspect.signature(kind_of.__init__).parameters.values():
                    kind = str(parameter.annotation)
                    options.setdefault(parameter.name, {"bool": False, "float": 0.1}.get(kind, 8))
            unwanted = ("self", "args", "kwargs", "lr_decay_steps")
            options = {key: SOLO_LEARN.get(key, value) for key, value in options.items() if key not in unwanted}
            if name == "deepclusterv2":
                options["num_prototypes"] = [4, 4]
            model = randomise(method(**options))
            for hook in ("on_train_batch_end", "configure_gradient_clipping"):  # written for an older Lightning
                setattr(model, hook, lambda *_, **__: None)
            networks: dict[str | None, nn.Module] = {None: model.encoder}
            if hasattr(model, "momentum_encoder"):
                networks["momentum"] = model.momentum_encoder
            yield f"{name}{', CIFAR stem' * cifar}", saved_by_lightning(model), networks


def mmpretrain() -> Iterator[Model]:
    """Make the self-supervised methods and a classifier of mmpretrain, with its own configs."""
    for name in ("Collection", "Model", "ModelIndex"):
        setattr(_empty(f"modelindex.models.{name}"), name, object)
        setattr(_empty("modelindex.models"), name, object)
    _empty("modelindex.load_model_index").load = None
    sys.modules["mmdet"] = None  # type: ignore[assignment]  # it is optional, and asserts another mmcv
    import mmpretrain.models
    from mmengine.config import Config

    folder = Path(mmpretrain.__file__).parent / ".mim/configs"
    for name in ("barlowtwins", "byol", "densecl", "mocov2", "mocov3", "simclr", "simsiam", "swav"):
        (path, *_) = sorted((folder / name).glob(f"{name}_resnet50_*_in1k*.py"))
        yield from _openmmlab(name, Config.fromfile(path), mmpretrain.registry.MODELS)
    yield from _openmmlab("classifier", Config.fromfile(folder / "resnet/resnet50_8xb32_in1k.py"),
                          mmpretrain.registry.MODELS)  # fmt: skip


DETECTORS = (
    "faster_rcnn/faster-rcnn_r50_fpn_1x_coco", "mask_rcnn/mask-rcnn_r50_fpn_1x_coco",
    "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco", "retinanet/retinanet_r50_fpn_1x_coco",
    "atss/atss_r50_fpn_1x_coco", "htc/htc_r50_fpn_1x_coco", "solo/solo_r50_fpn_1x_coco", "detr/detr_r50_8xb2-150e_coco",
    "deformable_detr/deformable-detr_r50_16xb2-50e_coco", "dino/dino-4scale_r50_8xb2-12e_coco",
    "conditional_detr/conditional-detr_r50_8xb2-50e_coco", "mask2former/mask2former_r50_8xb2-lsj-50e_coco",
    "sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco", "yolact/yolact_r50_1xb8-55e_coco",
)  # fmt: skip


def mmdet() -> Iterator[Model]:
    """Make detectors of mmdet, with its own configs."""
    from common.openmmlab import prepare_mmdet

    prepare_mmdet()
    import mmdet.models
    from mmengine.config import Config

    for name in DETECTORS:
        cfg = Config.fromfile(Path(mmdet.__file__).parent / f".mim/configs/{name}.py")
        yield from _openmmlab(name.split("/")[0], cfg, mmdet.registry.MODELS)


def _openmmlab(name: str, cfg: Any, registry: Any) -> Iterator[Model]:
    from mmengine.registry import init_default_scope

    init_default_scope(registry.scope)
    _without_weights(cfg.model)
    model = randomise(registry.build(cfg.model))
    networks: dict[str | None, nn.Module] = {None: model.backbone}
    for key in ("encoder_k", "target_net", "momentum_encoder"):
        if hasattr(model, key):
            networks["key"] = getattr(model, key).module[0]
    yield name, saved_by_mmengine(model, cfg), networks


def _without_weights(config: Any) -> None:
    """Remove what would download weights, at any depth."""
    if isinstance(config, dict):
        config.pop("init_cfg", None)
        config.pop("pretrained", None)
    for value in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        _without_weights(value)


def _empty(name: str) -> Any:
    """Return an empty module that `import name` finds."""
    for end in range(1, name.count(".") + 2):
        parent = ".".join(name.split(".")[:end])
        sys.modules.setdefault(parent, types.ModuleType(parent))
    return sys.modules[name]


PACKAGES: dict[str, tuple[str, Callable[[], Iterator[Model]]]] = {
    "solo-learn": ("solo-learn", solo_learn),
    "mmpretrain": ("onedl-mmpretrain", mmpretrain),
    "mmdet": ("mmdet", mmdet),
}


def measure(package: str) -> Iterator[dict[str, Any]]:
    """Yield one row for each file of a package."""
    distribution, models = PACKAGES[package]
    about = {"package": package, "version": importlib.metadata.version(distribution)}
    images = verify.normalize(verify.photograph(64))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pth"
        for name, content, networks in models():
            torch.save(content, path)
            keys = Counter(key.partition(".")[0] for key in content["state_dict"])
            for weights, network in networks.items():
                row = about | {"model": name, "format": None, "weights": weights, "arch": None, "max_abs_delta": None}
                try:
                    reading = sources.read(path, ReadOptions(weights))
                    row |= {"format": reading.backbone.source.format, "weights": reading.weights}
                    row |= {"arch": reading.backbone.arch, "max_abs_delta": _delta(network, reading.backbone, images)}
                except ValueError as error:
                    row["refused"] = str(error).replace(str(path), "CKPT")
                yield row | {"keys": dict(keys)}


def _delta(network: nn.Module, backbone: Any, images: torch.Tensor) -> float:
    network.eval()  # returns None in OpenMMLab's backbones
    models = (network, backbone.build())
    outputs = [verify.stage_outputs(verify.stages_of(model), partial(model, images)) for model in models]
    return max(float((outputs[0][stage] - outputs[1][stage]).abs().max()) for stage in outputs[0])


def main() -> None:
    """Write the rows of all packages, each made in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file to write")
    parser.add_argument("--package", choices=list(PACKAGES), help="print the rows of this package alone")
    options = parser.parse_args()
    if options.package:
        warnings.simplefilter("ignore")
        for row in measure(options.package):
            print(json.dumps(row), flush=True)
        return
    lines = []
    for package in PACKAGES:
        command = [sys.executable, __file__, "--package", package]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        lines += [line for line in done.stdout.splitlines() if line.startswith('{"package"')]
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
