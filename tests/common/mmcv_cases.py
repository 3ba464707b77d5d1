"""Calls of mmcv's operations on random inputs, each beside the same in plain loops."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.openmmlab import prepare_mmdet
from tests.common import mmcv_loops as loops

prepare_mmdet()
ops = importlib.import_module("mmcv.ops")
attention = importlib.import_module("mmcv.ops.multi_scale_deform_attn")
Choose = Callable[[Sequence[Any]], Any]


@dataclass(frozen=True)
class Case:
    """One call of an operation.

    Attributes:
        inputs: float64 tensors that it is differentiated by.
        run: mmcv's operation of them, in any type and on any device.
        loop: the same in plain loops, in float64.
    """

    inputs: list[Tensor]
    run: Callable[..., Tensor]
    loop: Callable[..., Tensor]


def boxes(count: int, random: torch.Generator, size: float = 30) -> Tensor:
    """Random boxes (count, 4) in [0, 1.5 * size], multiples of 1/16: exact in half precision, in float64."""
    corner, sides = (16 * size * torch.rand(2, count, 2, generator=random)).round() / 16
    return torch.cat([corner, corner + (8 * sides).round() / 16], 1).double()


def regions(count: int, images: int, random: torch.Generator) -> Tensor:
    """Random regions (count, 5), some of them partly outside an image of 32 x 36 pixels."""
    image = torch.randint(images, (count, 1), generator=random)
    return torch.cat([image.double(), boxes(count, random, 30) - 4], 1)


def normal(random: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=random, dtype=torch.float64)


def roi_align(choose: Choose, random: torch.Generator) -> Case:
    rois, size = regions(choose([0, 1, 3]), 2, random), choose([(1, 1), (2, 4)])
    scale, ratio, aligned = choose([0.25, 1.0]), choose([0, 1, 2]), choose([True, False])
    side = 8 if scale == 0.25 else 32

    def run(input: Tensor) -> Tensor:
        return ops.roi_align(input, rois.to(input), size, scale, ratio, "avg", aligned)

    def loop(input: Tensor) -> Tensor:
        return loops.roi_align(input, rois, size, scale, ratio, aligned)

    return Case([normal(random, 2, 2, side, side + 4)], run, loop)


def roi_pool(choose: Choose, random: torch.Generator) -> Case:
    rois, size, scale = regions(choose([0, 1, 3]), 2, random), choose([(1, 1), (2, 4)]), choose([0.25, 1.0])
    side = 8 if scale == 0.25 else 32

    def run(input: Tensor) -> Tensor:
        return ops.roi_pool(input, rois.to(input), size, scale)

    def loop(input: Tensor) -> Tensor:
        return loops.roi_pool(input, rois, size, scale)

    return Case([normal(random, 2, 2, side, side + 4)], run, loop)


def sigmoid_focal_loss(choose: Choose, random: torch.Generator) -> Case:
    classes, gamma, alpha = choose([1, 3]), choose([1.0, 2.0, 3.5]), choose([0.25, 0.75])
    target = torch.randint(classes + 1, (choose([0, 1, 5]),), generator=random)

    def run(logits: Tensor) -> Tensor:
        return ops.sigmoid_focal_loss(logits, target.to(logits.device), gamma, alpha, None, "none")

    def loop(logits: Tensor) -> Tensor:
        return loops.sigmoid_focal_loss(logits, target, gamma, alpha)

    return Case([4 * normal(random, len(target), classes)], run, loop)


def _convolution(choose: Choose, random: torch.Generator, v2: bool) -> Case:
    groups, deform_groups = choose([1, 2]), choose([1, 2])
    stride, padding, dilation = choose([(1, 1), (2, 1)]), choose([(1, 1), (0, 2)]), choose([(1, 1), (1, 2)])
    kernel = choose([(3, 3), (1, 2)])
    settings = stride, padding, dilation, groups, deform_groups
    weight, image = normal(random, 2, 4 // groups, *kernel), normal(random, choose([1, 2]), 4, 5, 6)
    size = torch.nn.functional.conv2d(image[:, : 4 // groups], weight, None, stride, padding, dilation).shape
    taps = deform_groups * kernel[0] * kernel[1]
    offset = 1.5 * normal(random, size[0], 2 * taps, *size[2:])
    if not v2:
        return Case(
            [image, offset, weight],
            lambda *tensors: ops.deform_conv2d(*tensors, *settings),
            lambda image, offset, weight: loops.deform_conv(image, offset, None, weight, None, *settings),
        )
    mask, bias = normal(random, size[0], taps, *size[2:]).sigmoid(), [normal(random, 2)] * choose([0, 1])

    def loop(image: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return loops.deform_conv(image, offset, mask, weight, bias, *settings)

    def run(image: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return ops.modulated_deform_conv2d(image, offset, mask, weight, bias, *settings)

    return Case([image, offset, mask, weight, *bias], run, loop)


def deform_conv(choose: Choose, random: torch.Generator) -> Case:
    return _convolution(choose, random, v2=False)


def modulated_deform_conv(choose: Choose, random: torch.Generator) -> Case:
    return _convolution(choose, random, v2=True)


def ms_deform_attn(choose: Choose, random: torch.Generator) -> Case:
    shapes, heads, points = choose([[(3, 4)], [(4, 5), (2, 3)]]), choose([1, 2]), choose([1, 3])
    images, queries, keys = choose([1, 2]), choose([1, 4]), sum(height * width for height, width in shapes)
    value = normal(random, images, keys, heads, 3)
    locations = 1.4 * torch.rand(images, queries, heads, len(shapes), points, 2, generator=random).double() - 0.2
    weights = normal(random, images, queries, heads, len(shapes) * points).softmax(-1)

    sizes, starts = torch.tensor(shapes), torch.tensor([0, 0])  # `starts` is not read

    def run(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return attention.MultiScaleDeformableAttnFunction.apply(value, sizes, starts, locations, weights, 64)

    def loop(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return loops.multi_scale_deformable_attention(value, shapes, locations, weights)

    return Case([value, locations, weights.view(images, queries, heads, len(shapes), points)], run, loop)


def masked_conv2d(choose: Choose, random: torch.Generator) -> Case:
    kernel, share = choose([1, 3]), choose([0.0, 0.3, 1.0])
    mask = (torch.rand(1, 5, 6, generator=random) < share).double()
    inputs = [normal(random, 1, 2, 5, 6), normal(random, 3, 2, kernel, kernel), normal(random, 3)]

    def run(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.masked_conv2d(image, mask.to(image), weight, bias, kernel // 2)

    def loop(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return loops.masked_conv(image, mask, weight, bias, kernel // 2)

    return Case(inputs, run, loop)


CASES: dict[str, Callable[[Choose, torch.Generator], Case]] = {
    "roi_align": roi_align,
    "roi_pool": roi_pool,
    "sigmoid_focal_loss": sigmoid_focal_loss,
    "deform_conv": deform_conv,
    "modulated_deform_conv": modulated_deform_conv,
    "ms_deform_attn": ms_deform_attn,
}
WITHOUT_GRADIENT = {"masked_conv2d": masked_conv2d}


def differences(case: Case, dtype: torch.dtype, random: torch.Generator) -> tuple[float, float]:
    """Return the largest |difference| of outputs and of gradients: the operation in `dtype`, the loops in float64.

    Both get inputs that are exact in `dtype`.
    """
    inputs = [tensor.to(dtype).requires_grad_() for tensor in case.inputs]
    output, wide = case.run(*inputs), [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = case.loop(*wide) + sum(0 * tensor.sum() for tensor in wide)  # so that it has a gradient if it is empty
    assert output.dtype == dtype
    gradient = normal(random, *output.shape).to(dtype)
    found = torch.autograd.grad(output, inputs, gradient)
    wanted = torch.autograd.grad(expected, wide, gradient.double(), materialize_grads=True)
    return largest([output.detach()], [expected.detach()]), largest(found, wanted)


@torch.no_grad()
def output_difference(case: Case, dtype: torch.dtype) -> float:
    """Return the largest |difference| of outputs, as `differences` does."""
    inputs = [tensor.to(dtype) for tensor in case.inputs]
    return largest([case.run(*inputs)], [case.loop(*(tensor.double() for tensor in inputs))])


def largest(found: Sequence[Any], wanted: Sequence[Any]) -> float:
    """Return the largest |difference| of tensors or lists of numbers; infinity where their shapes differ."""
    lists = zip(found, wanted, strict=False)  # their lengths are compared below
    pairs = [(torch.as_tensor(a, dtype=torch.double), torch.as_tensor(b, dtype=torch.double)) for a, b in lists]
    if len(found) != len(wanted) or any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    return max((float((a - b).abs().max()) for a, b in pairs if a.numel()), default=0.0)
