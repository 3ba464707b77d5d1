"""Verify a converted file: the framework builds its own network, loads the file its own way, and is compared.

Every tensor of the backbone must be equal, and the four stages must give the same features on a photograph that the
framework itself brings into its input format, following the settings beside the file.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from converters import arch as archs
from converters import frameworks
from converters.backbone import MEAN255, STD255, Backbone, VerificationError, is_counter
from converters.frameworks import BuiltModel, stages_of
from converters.sources import backbone_state
from converters.targets import TARGETS

TOLERANCE = 1e-4  # of features; float32 sums in another order
_Titled = tuple[str, BuiltModel]


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
    return find_spec(TARGETS[target].package) is not None


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
        raise ValueError(f"{TARGETS[target].package} is not installed: bash setup.sh installs it")
    image = photograph() if image is None else image
    if reference is None:
        network = backbone.build()
        reference = stage_outputs(stages_of(network), lambda: network(normalize(image)))
    if rival := next((name for name in frameworks.RIVALS.get(target, ()) if name in sys.modules), None):
        raise ValueError(f"{rival} is loaded in this process: verify for {target} in another (convert.py is one)")
    try:
        with archs.Unfilled():
            models = list(_BUILDERS[target](backbone, path))
    except Exception as error:  # a framework's loader may raise anything for a file that it cannot load
        reason = " ".join(str(error).split())[:500]
        raise VerificationError(f"{target} could not load {path}: {type(error).__name__}: {reason}") from error
    return [_compare(backbone, target, title, built, reference, image) for title, built in models]


def _compare(
    backbone: Backbone, target: str, title: str, built: BuiltModel, reference: Mapping[str, Tensor], image: np.ndarray
) -> Check:
    state, whole = built.model.state_dict(), "layer4" in built.stages
    if not whole:  # detectron2's C4 head has blocks of another kind there
        state = {key: value for key, value in state.items() if not key.startswith("roi_heads.res5.")}
    found = backbone_state(state, target)

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


def _torchvision(backbone: Backbone, path: Path) -> Iterator[_Titled]:
    from safetensors.torch import load_file
    from torchvision import models

    name, stem = archs.names(backbone.arch)
    network = archs.build(backbone.arch) if stem else models.get_model(name, weights=None)
    network.fc = nn.Identity()
    safe = path.suffix == ".safetensors"
    network.load_state_dict(load_file(path) if safe else torch.load(path, weights_only=True, mmap=True), strict=True)
    title = f"torchvision {name}" + (" with a 3×3 stem" if stem else "")
    yield title, BuiltModel(network.eval(), stages_of(network), network, normalize)


def _timm(backbone: Backbone, path: Path) -> Iterator[_Titled]:
    import timm

    network = timm.create_model(backbone.arch, num_classes=0, checkpoint_path=str(path)).eval()
    yield f"timm {backbone.arch}", BuiltModel(network, stages_of(network), network, normalize)


def _detectron2(backbone: Backbone, path: Path) -> Iterator[_Titled]:
    """Build both networks: FPN has res5 in its backbone, C4 in its RoI head."""
    settings = path.with_suffix(".yaml").read_text(encoding="utf-8")
    for head in ("FPN", "C4"):
        built = frameworks.mask_rcnn(settings, head, path)
        without = "" if "layer4" in built.stages else ", without res5: its C4 head has no BasicBlocks"
        yield f"detectron2 Mask R-CNN {backbone.arch} {head}{without}", built


def _openmmlab(backbone: Backbone, path: Path) -> Iterator[_Titled]:
    built = frameworks.fcn(path.with_suffix(".py"))
    yield f"mmseg {type(built.model.backbone).__name__} {backbone.arch}", built


_BUILDERS: dict[str, Callable[[Backbone, Path], Iterator[_Titled]]] = {
    "detectron2": _detectron2,
    "openmmlab": _openmmlab,
    "torchvision": _torchvision,
    "timm": _timm,
}
