"""One small checkpoint with random weights in every format that can be read, for the tests and the round trips.

Where PyPI has the package, its own model makes the file. Elsewhere the keys are written out here as the authors' code
saves them, independently of the reader's rules in converters/formats.py.
"""

import argparse
import pickle
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from converters import arch as archs
from converters.backbone import is_counter
from converters.targets import TARGETS
from converters.verify import fcn, mask_rcnn, stages_of

State = dict[str, Tensor]
StageModules = Mapping[str, nn.Module]
Made = tuple[Any, Callable[[Tensor], Any], StageModules]  # what is saved; the model to run; its stages

ARCHS = ("resnet18", "resnet50")


@dataclass(frozen=True)
class Sample:
    """How to make a checkpoint of one format.

    Attributes:
        format: the entry of formats.FORMATS that reads it.
        made_with: the package whose model it is, or "key rules".
        make: builds the model of an architecture; returns what is saved, the module to run, and its stages.
        suffix: kind of file.
        package: framework that needs a process of its own, or "".
        weights: the set that the stages belong to, where it is not the default.
        stem: suffix of the architecture's name.
        archs: the architectures that its package builds.
    """

    format: str
    made_with: str
    make: Callable[[str], Made]
    suffix: str = ".pth"
    package: str = ""
    weights: str | None = None
    stem: str = ""
    archs: tuple[str, ...] = ARCHS


def randomise(network: nn.Module) -> nn.Module:
    """Randomise statistics and scales of BN layers, as training does: at 0 and 1 a lost one would go unnoticed."""
    ranges = {"running_mean": (-0.2, 0.2), "running_var": (0.7, 1.4), "weight": (0.3, 0.9), "bias": (-0.2, 0.2)}
    for module in network.modules():
        if not hasattr(module, "running_var"):
            continue
        for name, tensor in module.state_dict().items():  # shares the module's storage
            tensor.fill_(1234) if is_counter(name) else tensor.uniform_(*ranges[name])
    return network.eval()


def write(sample: Sample, arch: str, path: Path, seed: int = 0) -> tuple[Callable[[Tensor], Any], StageModules]:
    """Write a checkpoint of `arch` and return the model in it, and its stages by torchvision's name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        content, run, stages = sample.make(arch + sample.stem)
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(content, path)
    elif path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    return run, stages


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    """Put `prefix` before every key."""
    return {prefix + key: value for key, value in state.items()}


def _mlp(prefix: str, width: int) -> State:
    return {f"{prefix}.0.weight": torch.randn(8, width), f"{prefix}.0.bias": torch.randn(8)}


def _by_rules(pack: Callable[[State, State, int], Any]) -> Callable[[str], Made]:
    """Make a sample from pack(state, state of the momentum encoder, feature width)."""

    def make(arch: str) -> Made:
        network = randomise(archs.build(arch))
        state = dict(network.state_dict())
        content = pack(state, {key: value + 1 for key, value in state.items()}, archs.feature_dim(arch))
        return content, network, stages_of(network)

    return make


_NAMES = {512: "resnet18", 2048: "resnet50"}


def _suite(q: State, k: State, width: int) -> Any:
    state = prefixed("encoder_q.", q | _mlp("fc", width)) | prefixed("encoder_k.", k | _mlp("fc", width))
    state |= {"queue": torch.randn(8, 16), "label_queue": torch.zeros(16), "index_queue": torch.zeros(16)}
    state["queue_ptr"] = torch.zeros(1)
    meta = {"method": "unimoco", "arch": _NAMES[width], "stem": "imagenet"}
    more = {"optimizer": {"state": {}}, "rng": torch.zeros(4, dtype=torch.uint8), "config": {"seed": 0}}
    meta |= {"label_ratio": 0.1, "epochs": 20.0, "step": 1234}
    return {"format": "unimoco-suite", "version": 1, "state_dict": state, "meta": meta, **more}


def _moco(wrapper: str, mlp: bool, labels: bool) -> Callable[[State, State, int], Any]:
    def pack(q: State, k: State, width: int) -> Any:
        head = _mlp("fc", width) if mlp else {"fc.weight": torch.randn(8, width), "fc.bias": torch.randn(8)}
        state = prefixed("encoder_q.", q | head) | prefixed("encoder_k.", k | head)
        state |= {"queue": torch.randn(8, 16), "queue_ptr": torch.zeros(1)}
        state |= {"label_queue": torch.zeros(16)} if labels else {}
        return {"epoch": 200, "arch": _NAMES[width], "state_dict": prefixed(wrapper, state), "optimizer": {}}

    return pack


def _mocov3(q: State, k: State, width: int) -> Any:
    state = prefixed("base_encoder.", q | _mlp("fc", width)) | prefixed("momentum_encoder.", k | _mlp("fc", width))
    return {"epoch": 100, "state_dict": prefixed("module.", state | _mlp("predictor", 8))}


def _simsiam(q: State, k: State, width: int) -> Any:
    state = prefixed("module.encoder.", q | _mlp("fc", width)) | _mlp("module.predictor", 8)
    return {"epoch": 100, "state_dict": state}


def _pixpro(q: State, k: State, width: int) -> Any:
    state = prefixed("encoder.", q) | prefixed("encoder_k.", k) | _mlp("projector", 8) | _mlp("projector_k", 8)
    options = argparse.Namespace(arch=_NAMES[width], lr=0.1)
    return {"opt": options, "model": prefixed("module.", state | _mlp("value_transform", 8))}


def _pycontrast(q: State, k: State, width: int) -> Any:
    online = prefixed("module.encoder.", q) | _mlp("module.head", width)
    return {"model": online, "model_ema": prefixed("encoder.", k) | _mlp("head", width), "epoch": 3}


def _swav(q: State, k: State, width: int) -> Any:
    return prefixed("module.", q | _mlp("projection_head", width) | {"prototypes.weight": torch.randn(4, 8)})


def _barlow_twins(q: State, k: State, width: int) -> Any:
    state = prefixed("backbone.", q) | _mlp("projector", width) | {"bn.running_mean": torch.zeros(8)}
    return {"epoch": 3, "model": prefixed("module.", state)}


def _vicreg(q: State, k: State, width: int) -> Any:
    return {"epoch": 3, "model": prefixed("module.", prefixed("backbone.", q) | _mlp("projector", width))}


def _dino(q: State, k: State, width: int) -> Any:
    teacher, student = (prefixed("module.backbone.", s) | _mlp("module.head.mlp", width) for s in (q, k))
    return {"teacher": teacher, "student": student, "epoch": 3}


def _pair(q: State, k: State, width: int) -> Any:
    state = prefixed("teacher.backbone.", q) | prefixed("student.backbone.", k)
    return {"model": state | _mlp("teacher.dino_head.mlp", width) | _mlp("student.dino_head.mlp", width)}


def _vissl(q: State, k: State, width: int) -> Any:
    model = {"trunk": prefixed("_feature_blocks.", q), "heads": _mlp("0.clf", width)}
    return {"classy_state_dict": {"base_model": {"model": model, "meta": {}}}, "phase_idx": 3}


def _openselfsup(q: State, k: State, width: int) -> Any:
    state = prefixed("backbone.", q) | prefixed("encoder_q.0.", q) | prefixed("encoder_k.0.", k)
    state |= _mlp("encoder_q.1.mlp", width) | _mlp("encoder_k.1.mlp", width) | {"queue": torch.zeros(8, 4)}
    return {"meta": {"epoch": 200}, "state_dict": state}


def _mmpretrain(q: State, k: State, width: int) -> Any:
    state = prefixed("backbone.", q) | _mlp("neck", width) | _mlp("head.predictor", 8)
    state |= prefixed("target_net.module.0.", k) | _mlp("target_net.module.1", width)
    return {"meta": {}, "state_dict": state | {"target_net.steps": torch.tensor(5)}}


def _solo_learn(q: State, k: State, width: int) -> Any:
    state = prefixed("backbone.", q) | prefixed("momentum_backbone.", k) | _mlp("projector", width)
    state |= _mlp("momentum_projector", width) | _mlp("predictor", 8) | _mlp("classifier", width)
    return {"epoch": 3, "state_dict": state, "pytorch-lightning_version": "2.1.2"}


def _supcontrast(q: State, k: State, width: int) -> Any:
    state = {key.replace("downsample", "shortcut"): value for key, value in q.items()}
    return {"opt": argparse.Namespace(epochs=1), "model": prefixed("encoder.module.", state) | _mlp("head", width)}


def _torchvision(arch: str) -> Made:
    from torchvision import models

    network = randomise(models.get_model(arch, weights=None))
    return network.state_dict(), network, stages_of(network)


def _timm(arch: str) -> Made:
    import timm

    network = randomise(timm.create_model(arch, pretrained=False))
    return network.state_dict(), network, stages_of(network)


def _lightly(sequential: bool, names: tuple[str, str] = ("backbone", "backbone_momentum")) -> Callable[[str], Made]:
    """Make a sample of lightly: torchvision's networks under two names, lightly's heads, saved by Lightning.

    Args:
        sequential: whether the networks are wrapped as in lightly's examples.
        names: of the networks, the one that is read first.
    """

    def make(arch: str) -> Made:
        import pytorch_lightning as pl
        from lightly.loss import DINOLoss  # type: ignore[import-untyped]
        from lightly.models.modules import heads  # type: ignore[import-untyped]
        from torchvision import models

        networks = [randomise(models.get_model(arch, weights=None)) for _ in names]
        model, width = pl.LightningModule(), archs.feature_dim(arch)
        for name, resnet in zip(names, networks, strict=True):
            resnet.fc = nn.Identity()
            model.add_module(name, nn.Sequential(*list(resnet.children())[:-1]) if sequential else resnet)
            head = name.replace("backbone", "projection_head")
            model.add_module(head, heads.DINOProjectionHead(width, 16, 8, 32))
        model.local_projector = heads.VicRegLLocalProjectionHead(width, 8, 8)
        model.smog = heads.SMoGPrototypes(torch.randn(4, 8), beta=0.99)
        model.criterion = DINOLoss(output_dim=32)
        return saved_by_lightning(model), networks[0], stages_of(networks[0])

    return make


def saved_by_lightning(model: Any) -> Any:
    """Return what Lightning saves of a module after a step that changes nothing, with its optimiser and callbacks."""
    import pytorch_lightning as pl

    model.training_step = lambda batch, batch_idx: sum(parameter.sum() * 0 for parameter in model.parameters())
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=0.1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=1, default_root_dir=folder, logger=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[pl.callbacks.EarlyStopping("x", strict=False)],
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of loader workers and of the missing metric
            trainer.fit(model, DataLoader([0]))
        trainer.save_checkpoint(f"{folder}/x.ckpt")
        return torch.load(f"{folder}/x.ckpt", weights_only=False)


def saved_by_mmengine(model: nn.Module, config: Any = None, average: bool = False) -> Any:
    """Return what mmengine's Runner saves of a model, with its message hub, and the moving average of its EMAHook."""
    from mmengine.hooks import EMAHook
    from mmengine.runner import Runner

    with tempfile.TemporaryDirectory() as folder:
        optimizer = {"type": "SGD", "lr": 0.1, "momentum": 0.9}
        runner = Runner(
            model, folder, train_dataloader=DataLoader([0]), train_cfg={"by_epoch": False, "max_iters": 1},
            optim_wrapper={"optimizer": optimizer}, cfg=config, log_level="ERROR",
            custom_hooks=[EMAHook(momentum=0.5)] if average else None, experiment_name=str(id(model)),
        )  # fmt: skip
        runner.message_hub.update_scalar("train/loss", 1.0)
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        runner.call_hook("before_run")
        runner.save_checkpoint(folder, "x.pth", save_param_scheduler=False)
        return torch.load(f"{folder}/x.pth", weights_only=False)


def _detectron2(head: str) -> Callable[[str], Made]:
    def make(arch: str) -> Made:
        settings = TARGETS["detectron2"].settings
        assert settings is not None
        built = mask_rcnn(settings[1](arch, Path("sample.pkl"), ""), head)
        randomise(built.model)
        return {"model": built.model.state_dict(), "iteration": 9}, built.run, built.stages

    return make


def _openmmlab(arch: str) -> Made:
    backbone = {"type": "ResNetV1c" if arch.endswith("c") else "ResNet", "depth": int(arch[6:].removesuffix("c"))}
    built = fcn({"model": {"backbone": backbone, "data_preprocessor": {}}})
    randomise(built.model)
    return {"meta": {"epoch": 3}, "state_dict": built.model.state_dict()}, built.run, built.stages


RULES = "key rules"
SAMPLES = {
    "this suite": Sample("unimoco-suite", RULES, _by_rules(_suite)),
    "UniMoCo": Sample("unimoco", RULES, _by_rules(_moco("module.", True, True))),
    "MoCo v1": Sample("moco", RULES, _by_rules(_moco("module.", False, False)), ".pth.tar"),
    "MoCo v2, one GPU": Sample("moco", RULES, _by_rules(_moco("", True, False))),
    "MoCo v3": Sample("mocov3", RULES, _by_rules(_mocov3)),
    "SimSiam": Sample("simsiam", RULES, _by_rules(_simsiam)),
    "BYOL, solo-learn": Sample("solo-learn", RULES, _by_rules(_solo_learn), ".ckpt"),
    "solo-learn, CIFAR stem": Sample("solo-learn", RULES, _by_rules(_solo_learn), ".ckpt", stem="_cifar_pad2"),
    "lightly": Sample("lightly", "lightly", _lightly(False), ".ckpt"),
    "lightly, nn.Sequential": Sample("lightly-sequential", "lightly", _lightly(True), ".ckpt"),
    "lightly, DINO": Sample(
        "lightly-dino", "lightly", _lightly(True, ("teacher_backbone", "student_backbone")), ".ckpt"
    ),
    "lightly, DINO benchmark": Sample(
        "lightly-dino", "lightly", _lightly(False, ("backbone", "student_backbone")), ".ckpt"
    ),
    "teacher and student": Sample("pairs", RULES, _by_rules(_pair)),
    "DINO": Sample("dino", RULES, _by_rules(_dino)),
    "DINO student": Sample("dino", RULES, _by_rules(lambda q, k, w: _dino(k, q, w)), weights="student"),
    "SwAV": Sample("swav", RULES, _by_rules(_swav)),
    "Barlow Twins": Sample("barlowtwins", RULES, _by_rules(_barlow_twins)),
    "VICReg": Sample("vicreg", RULES, _by_rules(_vicreg)),
    "PixPro, SoCo": Sample("pixpro", RULES, _by_rules(_pixpro)),
    "PyContrast": Sample("pycontrast", RULES, _by_rules(_pycontrast)),
    "VISSL": Sample("vissl", RULES, _by_rules(_vissl), ".torch"),
    "OpenSelfSup, DenseCL": Sample("openselfsup", RULES, _by_rules(_openselfsup)),
    "mmselfsup, mmpretrain": Sample("openselfsup", RULES, _by_rules(_mmpretrain)),
    "SupContrast": Sample("supcontrast", RULES, _by_rules(_supcontrast), stem="_cifar"),
    "torchvision": Sample("torchvision", "torchvision", _torchvision),
    "torchvision .safetensors": Sample("torchvision", "torchvision", _torchvision, ".safetensors"),
    "timm": Sample("torchvision", "timm", _timm, ".safetensors"),
    "timm, deep stem": Sample("timm", "timm", _timm, ".safetensors", stem="d"),
    "detectron2 FPN": Sample("detectron2", "detectron2", _detectron2("FPN"), package="detectron2"),
    # its C4 head has no BasicBlocks
    "detectron2 C4": Sample("detectron2", "detectron2", _detectron2("C4"), package="detectron2", archs=("resnet50",)),
    "mmseg": Sample("openmmlab", "mmseg", _openmmlab, package="mmseg"),
    "mmseg V1c": Sample("openmmlab", "mmseg", _openmmlab, package="mmseg", stem="c"),
}
