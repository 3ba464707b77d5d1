"""Verify a converted file: the framework builds its own network, loads the file its own way, and is compared.

Every tensor of the backbone must be equal, and the four stages must give the same features on a photograph that the
framework itself brings into its input format, following the settings beside the file. detectron2 and OpenMMLab never
share a process.
"""

import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from common.extras import how_to_install
from common.openmmlab import HIDDEN, prepare_mmdet, prepare_mmseg
from converters import arch as archs
from converters.backbone import MEAN255, STAGE_NAMES, STD255, Backbone, is_counter
from converters.errors import VerificationError
from converters.sources import backbone_state
from converters.targets import TARGETS, mmdet_has_c4

TOLERANCE = 1e-4  # of features; float32 sums in another order
RIVALS = {"detectron2": ("mmengine", "mmcv", "mmseg"), "openmmlab": ("detectron2",), "mmdet": ("detectron2",)}
KEYS = {"mmdet": "openmmlab"}  # target → format of the keys of its models, where the two have different names


@dataclass(frozen=True)
class BuiltModel:
    """A framework's model with the backbone in it.

    Attributes:
        model: the whole model.
        stages: those of layer1 … layer4 that it has.
        run: passes normalised (N, 3, H, W) images through the stages.
        prepare: turns an (H, W, 3) uint8 RGB photograph into the input of `run`, as the framework's settings say.
    """

    model: nn.Module
    stages: Mapping[str, nn.Module]
    run: Callable[[Tensor], Any]
    prepare: Callable[[np.ndarray], Tensor]


def stages_of(network: nn.Module) -> dict[str, nn.Module]:
    """Return layer1 … layer4 of a network that names them so."""
    return {stage: network.get_submodule(stage) for stage in STAGE_NAMES}


@dataclass(frozen=True)
class Check:
    """What was compared: `convs` convolutions and `norms` batch norms among `tensors`, all equal."""

    model: str
    tensors: int
    convs: int
    norms: int
    deltas: dict[str, float]  # stage → max |difference| of its output

    def __str__(self) -> str:
        deltas = ", ".join(f"{stage} {delta:.1e}" for stage, delta in self.deltas.items())
        counts = f"{self.tensors} tensors equal ({self.convs} convolutions, {self.norms} batch norms)"
        return f"{self.model}: {counts}; max |Δ| {deltas}"


def photograph(size: int = 224) -> np.ndarray:
    """Return a real photograph, (size, size, 3) uint8 RGB: the centre of one that scikit-learn ships."""
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise ValueError("the photograph to compare on comes with scikit-learn: bash setup.sh installs it")
    with Image.open(Path(spec.origin).parent / "datasets/images/china.jpg") as image:
        left, top = (image.width - size) // 2, (image.height - size) // 2
        return np.asarray(image.convert("RGB").crop((left, top, left + size, top + size)))


def normalize(image: np.ndarray) -> Tensor:
    """Turn (H, W, 3) uint8 RGB into the (1, 3, H, W) float32 that the backbone was trained on."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN255, STD255))
    return (torch.tensor(image).permute(2, 0, 1)[None].float() - mean) / std


@torch.no_grad()
def stage_outputs(stages: Mapping[str, nn.Module], run: Callable[[], Any]) -> dict[str, Tensor]:
    """Call `run` and return the output (N, C, H, W) of each of `stages`."""
    outputs: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: outputs.update({name: out.detach()}))
        for name, module in stages.items()
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def installed(target: str) -> bool:
    """Return whether the framework that reads `target` files is installed."""
    package = TARGETS[target].package
    return package in HIDDEN or find_spec(package) is not None


def verify(
    backbone: Backbone,
    target: str,
    path: Path,
    image: np.ndarray | None = None,
    reference: Mapping[str, Tensor] | None = None,
) -> list[Check]:
    """Load `path` into the real models of `target` and compare them with `backbone`.

    detectron2 and OpenMMLab do not share a process: verify each in a process that has not imported the other.

    Args:
        backbone: what was converted.
        target: a name in targets.TARGETS.
        path: the converted file, with its settings beside it.
        image: (H, W, 3) uint8 RGB, H and W multiples of 32; a photograph by default.
        reference: outputs of layer1 … layer4 on `image`; those of `backbone.build()` by default.

    Raises:
        VerificationError: a tensor or a feature differs; the message names it.
        ValueError: the framework is not installed, or its rival is loaded in this process.
    """
    if not installed(target):
        raise ValueError(f"{TARGETS[target].package} is not installed: {how_to_install(TARGETS[target].package)}")
    image = photograph() if image is None else image
    if reference is None:
        network = backbone.build()
        reference = stage_outputs(stages_of(network), lambda: network(normalize(image)))
    if rival := next((name for name in RIVALS.get(target, ()) if sys.modules.get(name)), None):
        raise ValueError(f"{rival} is loaded in this process: verify for {target} in another (convert.py is one)")
    try:
        models = _BUILDERS[target](backbone, path)
    except Exception as error:  # a framework's loader may raise anything for a file that it cannot load
        reason = " ".join(str(error).split())[:500]
        raise VerificationError(f"{target} could not load {path}: {type(error).__name__}: {reason}") from error
    return [_compare(backbone, target, title, built, reference, image) for title, built in models.items()]


def _compare(
    backbone: Backbone, target: str, title: str, built: BuiltModel, reference: Mapping[str, Tensor], image: np.ndarray
) -> Check:
    state, whole = built.model.state_dict(), "layer4" in built.stages
    if not whole:  # detectron2's C4 head has blocks of another kind there
        state = {key: value for key, value in state.items() if not key.startswith("roi_heads.res5.")}
    found = backbone_state(state, KEYS.get(target, target))

    def may_lack(name: str) -> bool:  # detectron2's frozen BN has no step counters
        return (target == "detectron2" and is_counter(name)) or (not whole and name.startswith("layer4."))

    tensors = backbone.compare(found, may_lack)
    outputs = stage_outputs(built.stages, lambda: built.run(built.prepare(image)))
    deltas = {stage: float((outputs[stage] - reference[stage]).abs().max()) for stage in built.stages}
    if not all(delta <= TOLERANCE for delta in deltas.values()):  # so that NaN fails as well
        listed = ", ".join(f"{stage} by {delta:.2g}" for stage, delta in deltas.items())
        raise VerificationError(
            f"{title} holds the same tensors and gives other features: {listed} (more than {TOLERANCE}); "
            "look at the input (RGB, mean, std), at which convolution has the stride, and at the stem"
        )
    convs = sum(tensor.ndim == 4 for tensor in found.values())
    norms = sum(name.endswith("running_var") for name in found)
    return Check(title, tensors, convs, norms, deltas)


def mask_rcnn(settings: str, head: str, weights: Path | None = None) -> BuiltModel:
    """Build detectron2's Mask R-CNN on the CPU.

    Args:
        settings: YAML merged over the model zoo's config.
        head: "FPN", or "C4", where res5 is in the RoI head.
        weights: a file for detectron2's own loader.
    """
    with _quiet():  # its imports print deprecations, its loader every head that the file lacks
        from detectron2 import model_zoo
        from detectron2.checkpoint import DetectionCheckpointer
        from detectron2.config import CfgNode
        from detectron2.data.detection_utils import convert_PIL_to_numpy
        from detectron2.modeling import build_model

        cfg = model_zoo.get_config(f"COCO-InstanceSegmentation/mask_rcnn_R_50_{head}_1x.yaml")
        cfg.merge_from_other_cfg(CfgNode.load_cfg(settings))
        cfg.MODEL.DEVICE = "cpu"
        model = build_model(cfg).eval()
        if weights is not None:
            DetectionCheckpointer(model).load(str(weights))
    bottom = model.backbone.bottom_up if head == "FPN" else model.backbone
    stages = {f"layer{n}": bottom.get_submodule(f"res{n + 1}") for n in (1, 2, 3)}
    # The C4 head has three Bottlenecks whatever the depth, so a BasicBlock network has no res5 there.
    res5 = bottom.res5 if head == "FPN" else model.roi_heads.res5 if cfg.MODEL.RESNETS.DEPTH >= 50 else None
    if res5 is not None:
        stages["layer4"] = res5

    def run(images: Tensor) -> None:
        features = bottom(images)
        if head == "C4" and res5 is not None:
            res5(features["res4"])

    def prepare(image: np.ndarray) -> Tensor:
        from PIL import Image

        pixels = convert_PIL_to_numpy(Image.fromarray(image), cfg.INPUT.FORMAT)
        chw = torch.tensor(pixels.transpose(2, 0, 1).astype("float32"))
        return model.preprocess_image([{"image": chw}]).tensor

    return BuiltModel(model, stages, run, prepare)


def fcn(settings: Path | Mapping[str, Any]) -> BuiltModel:
    """Build mmseg's FCN on the CPU; `settings`, an OpenMMLab config, give its backbone and input.

    `init_weights` runs, so that an init_cfg loads its checkpoint the way OpenMMLab does.
    """
    prepare_mmseg()
    with _quiet():
        from mmengine.config import Config
        from mmseg.registry import MODELS
        from mmseg.utils import register_all_modules

        register_all_modules(init_default_scope=True)
        cfg = Config.fromfile(settings) if isinstance(settings, Path) else Config(settings)
        width = 512 if cfg.model.backbone.depth < 50 else 2048
        norm = {"type": "BN"}
        decode_head = {"type": "FCNHead", "in_channels": width, "channels": 8, "num_classes": 2, "norm_cfg": norm}
        loss = {"type": "CrossEntropyLoss"}
        cfg.model.update(type="EncoderDecoder", decode_head=dict(decode_head, loss_decode=loss))
        cfg.model.data_preprocessor.setdefault("type", "SegDataPreProcessor")
        model = MODELS.build(cfg.model)
        model.init_weights()
    model.eval()

    def prepare(image: np.ndarray) -> Tensor:
        bgr = torch.tensor(image[:, :, ::-1].copy()).permute(2, 0, 1)  # as mmcv.imread returns it
        return model.data_preprocessor({"inputs": [bgr]})["inputs"]

    return BuiltModel(model, stages_of(model.backbone), model.backbone, prepare)


def detector(config: str, settings: Path) -> BuiltModel:
    """Build a detector of mmdet on the CPU, its backbone and input as `settings` say.

    Args:
        config: path of a config, or the name of one that mmdet ships: "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py". The
            channels of necks and heads are those of a ResNet-50.
        settings: as written beside a converted file; `init_weights` loads that file.
    """
    prepare_mmdet()
    with _quiet():
        import mmdet
        from mmdet.registry import MODELS
        from mmdet.utils import register_all_modules
        from mmengine.config import Config

        register_all_modules(init_default_scope=True)
        cfg, ours = Config.fromfile(Path(mmdet.__path__[0]) / ".mim/configs" / config), Config.fromfile(settings)
        cfg.merge_from_dict({"model": ours.model})
        head = cfg.model.get("roi_head", {}).get("shared_head")
        if head is not None:
            head.update(ours.shared_head)
        if cfg.model.backbone.depth < 50:
            _narrow(cfg.model)
        model = MODELS.build(cfg.model)
        model.init_weights()
    model.eval()
    stages = {stage: module for stage, module in model.backbone.named_children() if stage in STAGE_NAMES}
    if head is not None:
        stages["layer4"] = model.roi_head.shared_head.layer4

    def run(images: Tensor) -> None:
        features = model.backbone(images)
        if head is not None:
            model.roi_head.shared_head(features[-1])

    def prepare(image: np.ndarray) -> Tensor:
        bgr = torch.tensor(image[:, :, ::-1].copy()).permute(2, 0, 1)  # as mmcv.imread returns it
        return model.data_preprocessor({"inputs": [bgr]})["inputs"]

    return BuiltModel(model, stages, run, prepare)


def _narrow(model: Any) -> None:
    """Set the channels of a config's necks and heads, made for Bottlenecks, to those of BasicBlocks: a quarter."""
    if "neck" in model:
        model.neck.in_channels = [channels // 4 for channels in model.neck.in_channels]
        return
    model.rpn_head.in_channels //= 4
    model.roi_head.bbox_roi_extractor.out_channels //= 4
    for name in ("bbox_head", "mask_head"):
        if name in model.roi_head:
            model.roi_head[name].in_channels //= 4


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _torchvision(backbone: Backbone, path: Path) -> dict[str, BuiltModel]:
    from safetensors.torch import load_file
    from torchvision import models

    name, stem = archs.names(backbone.arch)
    network = archs.build(backbone.arch) if stem else models.get_model(name, weights=None)
    network.fc = nn.Identity()
    safe = path.suffix == ".safetensors"
    network.load_state_dict(load_file(path) if safe else torch.load(path, weights_only=True, mmap=True), strict=True)
    title = f"torchvision {name}" + (" with a 3×3 stem" if stem else "")
    return {title: BuiltModel(network.eval(), stages_of(network), network, normalize)}


def _timm(backbone: Backbone, path: Path) -> dict[str, BuiltModel]:
    import timm

    network = timm.create_model(backbone.arch, num_classes=0, checkpoint_path=str(path)).eval()
    return {f"timm {backbone.arch}": BuiltModel(network, stages_of(network), network, normalize)}


def _detectron2(backbone: Backbone, path: Path) -> dict[str, BuiltModel]:
    """Build both networks: FPN has res5 in its backbone, C4 in its RoI head."""
    settings = path.with_suffix(".yaml").read_text(encoding="utf-8")
    models = {
        f"detectron2 Mask R-CNN {backbone.arch} {head}": mask_rcnn(settings, head, path) for head in ("FPN", "C4")
    }
    without = ", without res5: its C4 head has no BasicBlocks"
    return {title + without * ("layer4" not in built.stages): built for title, built in models.items()}


def _openmmlab(backbone: Backbone, path: Path) -> dict[str, BuiltModel]:
    built = fcn(path.with_suffix(".py"))
    return {f"mmseg {type(built.model.backbone).__name__} {backbone.arch}": built}


def _mmdet(backbone: Backbone, path: Path) -> dict[str, BuiltModel]:
    """Build both networks, where mmdet has them: FPN has layer4 in its backbone, C4 in its RoI head."""
    settings = path.with_suffix(".py")
    configs = {"FPN": "mask-rcnn_r50_fpn.py", "C4": "mask-rcnn_r50-caffe-c4.py"}
    if not mmdet_has_c4(backbone.arch):
        del configs["C4"]
    models = {head: detector(f"_base_/models/{file}", settings) for head, file in configs.items()}
    return {f"mmdet Mask R-CNN {backbone.arch} {head}": built for head, built in models.items()}


_BUILDERS = {
    "detectron2": _detectron2,
    "openmmlab": _openmmlab,
    "mmdet": _mmdet,
    "torchvision": _torchvision,
    "timm": _timm,
}
