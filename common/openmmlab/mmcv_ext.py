"""A stand-in for mmcv's compiled module `mmcv._ext`, on torchvision's operations and torch.

`mmcv.ops` is Python (modules and autograd functions) on top of one compiled module, which the wheel of mmcv lacks. Here
are the functions of it that mmdet's models need, under mmcv's names and with mmcv's arguments. As in mmcv, most write
their result into tensors that are passed to them. Any other name can be imported, as `mmcv.ops` does, and raises
NotImplementedError when it is called.

CPU and CUDA take the same path; NMS, RoIAlign and deformable convolution are torchvision's kernels. Gradients come from
a second forward pass under autograd. Half precision is computed in float32. Boxes in bfloat16 are refused: its steps
are 4 pixels from x = 512 on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NoReturn

import numpy as np
import torch
import torchvision.ops as tv
from torch import Tensor
from torch.nn.functional import unfold

AVERAGE = 1  # mmcv's pool_mode; 0 is the maximum
LINEAR, GAUSSIAN = 1, 2  # mmcv's methods of soft NMS; 0 is "naive"
COMPILED = "build mmcv with its operations (MMCV_WITH_OPS=1), which are then used"


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """Return a function that raises NotImplementedError, for an operation that is not here."""
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(f"{name}: an operation that mmcv compiles and torchvision does not have; {COMPILED}")

    return missing


def get_compiler_version() -> str:
    """Return the compiler for mmengine's description of the environment."""
    return "none: torchvision's operations"


def get_compiling_cuda_version() -> str:
    """Return the CUDA version for mmengine's description of the environment."""
    return str(torch.version.cuda)


def _wide(tensor: Tensor) -> Tensor:
    """Return half precision as float32, any other tensor as it is."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _wide_boxes(boxes: Tensor) -> Tensor:
    if boxes.dtype == torch.bfloat16:
        raise ValueError(
            "boxes in bfloat16 have steps of 4 pixels from x = 512 on: train in float32, or with float16 autocast"
        )
    return _wide(boxes)


def _gradients(function: Callable[..., Tensor], tensors: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of function(*tensors), a vector-Jacobian product with `gradient`, for each of `tensors`."""
    with torch.enable_grad():
        leaves = [_wide(tensor.detach()).requires_grad_() for tensor in tensors]
        return torch.autograd.grad(function(*leaves), leaves, _wide(gradient))


# Boxes (x1, y1, x2, y2); `offset` is 1 where a box includes the pixel at x2, y2. softnms and nms_match get CPU tensors.


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes (N, 4) that are kept, best first."""
    boxes = _wide_boxes(boxes)
    return tv.nms(torch.cat([boxes[:, :2], boxes[:, 2:] + offset], 1), scores.to(boxes), iou_threshold)


def softnms(
    boxes: Tensor, scores: Tensor, dets: Tensor, iou_threshold: float, sigma: float, min_score: float, method: int,
    offset: int,
) -> Tensor:  # fmt: skip
    """Return the indices of the boxes (N, 4) that are kept, best first; `dets` (N, 5) gets them and their new scores.

    Soft-NMS (arXiv 1704.04503). Each step depends on the one before: numpy has the smaller cost per call.
    """
    corners, left = _wide_boxes(boxes).numpy().T.copy(), _wide(scores).numpy().copy()
    rivals, kept = np.ones(len(left), bool), []
    while rivals.any():
        best = int(np.where(rivals, left, -np.inf).argmax())
        kept.append(best)
        rivals[best] = False
        iou = _iou(best, corners, offset)
        if method == GAUSSIAN:
            decay = np.exp(-(iou * iou) / sigma)
        else:
            decay = np.where(iou >= iou_threshold, (1 - iou) * (method == LINEAR), 1)
        left = np.where(rivals, left * decay, left)
        rivals &= left >= min_score
    indices = torch.tensor(kept, dtype=torch.long)
    dets[: len(kept)] = torch.cat([boxes[indices], torch.from_numpy(left)[indices, None].to(boxes)], 1)
    return indices


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Return, for each box of `dets` (N, 5) kept by NMS, its index and those of the boxes it suppresses, best first."""
    order, groups = dets[:, 4].argsort(descending=True), []
    corners, left = _wide_boxes(dets[order, :4]).numpy().T.copy(), np.ones(len(dets), bool)
    for best in range(len(dets)):
        if left[best]:
            inside = left & (_iou(best, corners) >= iou_threshold)
            inside[best] = True  # a box without area overlaps nothing, itself included
            groups.append(order.numpy()[inside].tolist())
            left &= ~inside
    return groups


def _iou(best: int, corners: np.ndarray, offset: int = 0) -> np.ndarray:
    """Return the intersection over union (N,) of a box with each of `corners` (4, N); 0 for two without area."""
    x1, y1, x2, y2 = corners
    width = np.minimum(x2, x2[best]) - np.maximum(x1, x1[best]) + offset
    height = np.minimum(y2, y2[best]) - np.maximum(y1, y1[best]) + offset
    both, areas = np.maximum(width, 0) * np.maximum(height, 0), (x2 - x1 + offset) * (y2 - y1 + offset)
    union = areas[best] + areas - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Write the intersection over the union (mode 0) or over the first box (mode 1) into `ious`.

    Args:
        bboxes1: (N, 4).
        bboxes2: (M, 4).
        ious: (N, M), or (N,) where `aligned`.
        mode: see above.
        aligned: compare box by box, N = M.
        offset: see above.
    """
    boxes = _wide_boxes(bboxes1), _wide_boxes(bboxes2)
    ious.copy_(_overlaps(*boxes, offset, aligned, over_first=mode == 1))


def _overlaps(a: Tensor, b: Tensor, offset: int = 0, aligned: bool = False, over_first: bool = False) -> Tensor:
    a = a if aligned else a[:, None]
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2]) + offset).clamp(min=0)
    both = sides.prod(-1)
    area_a, area_b = ((box[..., 2:] - box[..., :2] + offset).prod(-1) for box in (a, b))
    return both / (area_a if over_first else area_a + area_b - both)


# Regions: `input` (N, C, H, W), `rois` (K, 5) with the index of the image before the box, `output` (K, C, h, w)


def roi_align_forward(
    input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, aligned_height: int,
    aligned_width: int, spatial_scale: float, sampling_ratio: int, pool_mode: int, aligned: bool,
) -> None:  # fmt: skip
    """Write the mean of bilinear samples in each cell of each region into `output` (arXiv 1703.06870)."""
    if pool_mode != AVERAGE:
        raise NotImplementedError("RoIAlign with pool_mode='max': torchvision's has averages only; leave pool_mode out")
    input, size = _wide(input), (aligned_height, aligned_width)
    output.copy_(tv.roi_align(input, _wide_boxes(rois).to(input), size, spatial_scale, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor, aligned_height: int,
    aligned_width: int, spatial_scale: float, sampling_ratio: int, pool_mode: int, aligned: bool,
) -> None:  # fmt: skip
    """Write the gradient of `input`, in which RoIAlign is linear: its values are not needed."""
    size = aligned_height, aligned_width

    def forward(input: Tensor) -> Tensor:
        return tv.roi_align(input, rois.to(input), size, spatial_scale, sampling_ratio, aligned)

    grad_input.copy_(_gradients(forward, [grad_input], grad_output)[0])


def roi_pool_forward(
    input: Tensor, rois: Tensor, output: Tensor, argmax: Tensor, pooled_height: int, pooled_width: int,
    spatial_scale: float,
) -> None:  # fmt: skip
    """Write the maximum in each cell of each region, and into `argmax` its index in H·W, or -1 for an empty cell.

    mmcv does not round regions, torchvision's roi_pool does. No config of mmdet uses it: this loop is slow.
    """
    images, width = rois[:, 0].long().tolist(), input.shape[3]
    low, high = _wide_boxes(rois)[:, 1:3] * spatial_scale, (_wide_boxes(rois)[:, 3:] + 1) * spatial_scale
    columns = _pixels_of_cells(low[:, 0], high[:, 0], pooled_width, width)
    rows = _pixels_of_cells(low[:, 1], high[:, 1], pooled_height, input.shape[2])
    output.zero_()
    argmax.fill_(-1)
    for region, row, column in product(range(len(images)), range(pooled_height), range(pooled_width)):
        (top, bottom), (left, right) = rows[region][row], columns[region][column]
        if top < bottom and left < right:
            best, index = input[images[region], :, top:bottom, left:right].flatten(1).max(1)
            output[region, :, row, column] = best
            y, x = top + index // (right - left), left + index % (right - left)
            argmax[region, :, row, column] = (y * width + x).to(argmax)


def _pixels_of_cells(low: Tensor, high: Tensor, count: int, limit: int) -> list[list[list[int]]]:
    """Return, for each region and cell of one axis, its first pixel and the one after its last, within [0, limit]."""
    edges = low[:, None] + ((high - low) / count)[:, None] * torch.arange(count + 1, device=low.device)
    first, last = edges[:, :-1].floor(), edges[:, 1:].ceil() * (high > low)[:, None]
    return torch.stack([first, last], -1).clamp(0, limit).long().tolist()


def roi_pool_backward(
    grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor, pooled_height: int, pooled_width: int,
    spatial_scale: float,
) -> None:  # fmt: skip
    """Write the gradient of `input`: that of each cell goes to its maximum. mmcv does not pass `input`."""
    channels, height, width = grad_input.shape[1:]
    planes = rois[:, :1].long() * channels + torch.arange(channels, device=rois.device)  # (K, C)
    index, found = planes[:, :, None, None] * (height * width) + argmax, argmax >= 0
    total = torch.zeros_like(_wide(grad_input)).flatten()
    total.index_add_(0, index[found], grad_output[found].to(total))
    grad_input.copy_(total.view_as(grad_input))


# Losses


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the focal loss (arXiv 1708.02002) of each logit of `input` (N, C) into `output`.

    `target` (N,) has class indices; C is the background.
    """
    output.copy_(_focal_loss(input, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of each loss; mmcv multiplies it by the gradient."""

    def forward(logits: Tensor) -> Tensor:
        return _focal_loss(logits, target, weight, gamma, alpha)

    grad_input.copy_(_gradients(forward, [input], torch.ones_like(input))[0])


def _focal_loss(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    if weight.numel():
        raise NotImplementedError(f"sigmoid_focal_loss with class weights: leave weight out, or {COMPILED}")
    one_hot = target[:, None] == torch.arange(logits.shape[1], device=target.device)
    logits = _wide(logits)
    return tv.sigmoid_focal_loss(logits, one_hot.to(logits), alpha, gamma)


# Deformable convolution and attention; the shapes tell the groups of a convolution


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor, **geometry: int
) -> None:
    """Write the deformable convolution (arXiv 1703.06211) into `output`."""
    output.copy_(_convolution(geometry)(*map(_wide, (input, offset, weight))))


def deform_conv_backward_input(
    input: Tensor, offset: Tensor, gradOutput: Tensor, gradInput: Tensor, gradOffset: Tensor, weight: Tensor,
    columns: Tensor, **geometry: int,
) -> None:  # fmt: skip
    """Write the gradients of `input` and `offset`."""
    convolve = _convolution(geometry)
    found = _gradients(lambda a, b: convolve(a, b, _wide(weight)), [input, offset], gradOutput)
    gradInput.copy_(found[0])
    gradOffset.copy_(found[1].masked_fill(_on_border(offset, weight, geometry), 0))


def deform_conv_backward_parameters(
    input: Tensor, offset: Tensor, gradOutput: Tensor, gradWeight: Tensor, columns: Tensor, ones: Tensor,
    scale: float, **geometry: int,
) -> None:  # fmt: skip
    """Add `scale` times the gradient of the weight to `gradWeight`."""
    convolve = _convolution(geometry)
    found = _gradients(lambda w: convolve(_wide(input), _wide(offset), w), [gradWeight], gradOutput)[0]
    gradWeight.add_(found.to(gradWeight), alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor, mask: Tensor, output: Tensor,
    columns: Tensor, with_bias: bool, **geometry: int,
) -> None:  # fmt: skip
    """Write the deformable convolution with samples weighted by `mask` (v2, arXiv 1811.11168) into `output`."""
    tensors = [input, offset, weight, mask] + [bias] * with_bias
    output.copy_(_convolution(geometry)(*map(_wide, tensors)))


def modulated_deform_conv_backward(
    input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor, mask: Tensor, columns: Tensor,
    grad_input: Tensor, grad_weight: Tensor, grad_bias: Tensor, grad_offset: Tensor, grad_mask: Tensor,
    grad_output: Tensor, with_bias: bool, **geometry: int,
) -> None:  # fmt: skip
    """Write the gradients of all its tensors."""
    tensors = [input, offset, weight, mask] + [bias] * with_bias
    places = [grad_input, grad_offset, grad_weight, grad_mask] + [grad_bias] * with_bias
    for place, found in zip(places, _gradients(_convolution(geometry), tensors, grad_output), strict=True):
        place.copy_(found)
    grad_offset.masked_fill_(_on_border(offset, weight, geometry), 0)


def _pairs(geometry: dict[str, int]) -> list[tuple[int, int]]:
    """Return stride, padding and dilation, (vertical, horizontal) each; mmcv names them differently in v1 and v2."""
    v1 = ("dH", "dW"), ("padH", "padW"), ("dilationH", "dilationW")
    v2 = ("stride_h", "stride_w"), ("pad_h", "pad_w"), ("dilation_h", "dilation_w")
    return [(geometry[vertical], geometry[horizontal]) for vertical, horizontal in (v1 if "dH" in geometry else v2)]


def _convolution(geometry: dict[str, int]) -> Callable[..., Tensor]:
    stride, padding, dilation = _pairs(geometry)

    def convolve(
        input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        return tv.deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask)

    return convolve


def _on_border(offset: Tensor, weight: Tensor, geometry: dict[str, int]) -> Tensor:
    """Return which offsets place a sample exactly at -1, in the shape of `offset`.

    Interpolation has a kink there, and new layers start there: their offsets are 0. torchvision gives the derivative
    towards the image, mmcv gives 0.
    """

    def positions(axis: int) -> Tensor:
        """Return where the taps of the kernel lie without offsets, (taps, positions of the output)."""
        step, before, apart = (pair[axis] for pair in _pairs(geometry))
        tap, place = (torch.arange(size.shape[2 + axis], device=offset.device) for size in (weight, offset))
        return apart * tap[:, None] + step * place - before

    y, x = offset.unflatten(1, (-1, *weight.shape[2:], 2)).unbind(4)  # (N, groups, kernel_h, kernel_w, h, w)
    border = (y + positions(0)[:, None, :, None] == -1) | (x + positions(1)[:, None, :] == -1)
    return torch.stack([border, border], 4).view_as(offset)


def ms_deform_attn_forward(
    value: Tensor, value_spatial_shapes: Tensor, value_level_start_index: Tensor, sampling_locations: Tensor,
    attention_weights: Tensor, im2col_step: int,
) -> Tensor:  # fmt: skip
    """Return multi-scale deformable attention (arXiv 2010.04159); mmcv calls this on CUDA only.

    Args:
        value: (N, sum of H·W, heads, width).
        value_spatial_shapes: (levels, 2) with H, W.
        value_level_start_index: not needed.
        sampling_locations: (N, queries, heads, levels, points, 2), x and y in [0, 1].
        attention_weights: (N, queries, heads, levels, points).
        im2col_step: not needed.

    Returns:
        (N, queries, heads · width).
    """
    tensors = map(_wide, (value, sampling_locations, attention_weights))
    return _attention(value_spatial_shapes)(*tensors).to(value)


def ms_deform_attn_backward(
    value: Tensor, value_spatial_shapes: Tensor, value_level_start_index: Tensor, sampling_locations: Tensor,
    attention_weights: Tensor, grad_output: Tensor, grad_value: Tensor, grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor, im2col_step: int,
) -> None:  # fmt: skip
    """Write the gradients of values, locations and weights."""
    tensors = value, sampling_locations, attention_weights
    places = grad_value, grad_sampling_loc, grad_attn_weight
    for place, found in zip(places, _gradients(_attention(value_spatial_shapes), tensors, grad_output), strict=True):
        place.copy_(found)


def _attention(spatial_shapes: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch  # what mmcv uses on the CPU

    shapes = spatial_shapes.tolist()  # one wait for the device; mmcv's loop would wait for each side of each level
    return lambda value, locations, weights: multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)


# Convolution at chosen positions: the M positions (mask_h_idx, mask_w_idx) of the output


def masked_im2col_forward(
    im: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, col: Tensor, kernel_h: int, kernel_w: int, pad_h: int,
    pad_w: int,
) -> None:  # fmt: skip
    """Write the patches of `im` (1, C, H, W) at the positions into `col` (C · kernel_h · kernel_w, M)."""
    width = im.shape[3] + 2 * pad_w - kernel_w + 1
    col.copy_(unfold(_wide(im), (kernel_h, kernel_w), padding=(pad_h, pad_w))[0][:, mask_h_idx * width + mask_w_idx])


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Write `col` (C, M) to the positions of `im` (1, C, height, width)."""
    im[0, :, mask_h_idx, mask_w_idx] = col
