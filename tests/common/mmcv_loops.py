"""The operations of mmcv that mmdet needs, as plain loops written from the papers' formulas. Slow, differentiable."""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor

Pair = tuple[int, int]


def area(box: Tensor, offset: int = 0) -> Tensor:
    """Area of a box (x1, y1, x2, y2); with offset 1 it includes the pixel at x2, y2."""
    return (box[2] - box[0] + offset) * (box[3] - box[1] + offset)


def overlap(a: Tensor, b: Tensor, offset: int = 0, over_first: bool = False) -> float:
    """Intersection over union of two boxes, or over the first."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    both = max(width, 0 * width) * max(height, 0 * height)
    return float(both / (area(a, offset) if over_first else area(a, offset) + area(b, offset) - both))


def nms(boxes: Tensor, scores: Tensor, threshold: float, offset: int = 0) -> list[int]:
    """Keep the best box, remove those that overlap it by more than the threshold, and so on."""
    left, kept = sorted(range(len(boxes)), key=lambda i: -float(scores[i])), []
    while left:
        best, *left = left
        kept.append(best)
        left = [i for i in left if not overlap(boxes[best], boxes[i], offset) > threshold]
    return kept


def soft_nms(
    boxes: Tensor, scores: Tensor, threshold: float, sigma: float, least: float, method: str, offset: int
) -> tuple[list[int], list[float]]:
    """Soft-NMS, arXiv 1704.04503, equations 2 and 3: lower the scores of boxes that overlap the best, and so on."""
    left, kept, found = {i: float(score) for i, score in enumerate(scores)}, [], []
    while left:
        best = max(left, key=lambda i: left[i])
        kept.append(best)
        found.append(left.pop(best))
        for i in list(left):
            iou = overlap(boxes[best], boxes[i], offset)
            iou = 0 if math.isnan(iou) else iou  # two boxes without area
            if method == "gaussian":
                left[i] *= math.exp(-(iou**2) / sigma)
            elif iou >= threshold:
                left[i] *= 1 - iou if method == "linear" else 0
            if left[i] < least:
                del left[i]
    return kept, found


def nms_match(boxes: Tensor, scores: Tensor, threshold: float) -> list[list[int]]:
    """Return the boxes that are kept, each with those that overlap it by at least the threshold."""
    left, groups = sorted(range(len(boxes)), key=lambda i: -float(scores[i])), []
    while left:
        best, *left = left
        inside = [i for i in left if overlap(boxes[best], boxes[i]) >= threshold]
        groups.append([best, *inside])
        left = [i for i in left if i not in inside]
    return groups


def interpolate(plane: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Return bilinear values (C,) of a plane (C, H, W) that is 0 outside: arXiv 1703.06211, equations 3 and 4."""
    rows, columns = (torch.arange(side, dtype=plane.dtype) for side in plane.shape[1:])
    near_y, near_x = (1 - (rows - y).abs()).clamp(min=0), (1 - (columns - x).abs()).clamp(min=0)
    return torch.einsum("h,chw,w->c", near_y, plane, near_x)


def roi_align(input: Tensor, rois: Tensor, size: Pair, scale: float, ratio: int, aligned: bool) -> Tensor:
    """RoIAlign, arXiv 1703.06870: the mean of samples in each cell. Without `aligned`, as before detectron2 0.1."""
    output = input.new_zeros(len(rois), input.shape[1], *size)
    height, width = input.shape[2:]
    shift = 0.5 if aligned else 0.0
    for k, (image, *box) in enumerate(rois.tolist()):
        left, top, right, bottom = (side * scale - shift for side in box)
        sides = [bottom - top, right - left]
        cells = [(side if aligned else max(side, 1.0)) / count for side, count in zip(sides, size, strict=True)]
        counts = [ratio or math.ceil(cell) for cell in cells]
        for row, column in product(range(size[0]), range(size[1])):
            samples = []
            for i, j in product(range(counts[0]), range(counts[1])):
                y = top + row * cells[0] + (i + 0.5) * cells[0] / counts[0]
                x = left + column * cells[1] + (j + 0.5) * cells[1] / counts[1]
                if -1 <= y <= height and -1 <= x <= width:
                    inside = (min(max(y, 0), height - 1), min(max(x, 0), width - 1))
                    samples.append(interpolate(input[int(image)], *map(input.new_tensor, inside)))
            if samples:
                output[k, :, row, column] = torch.stack(samples).sum(0) / (counts[0] * counts[1])
    return output


def roi_pool(input: Tensor, rois: Tensor, size: Pair, scale: float) -> Tensor:
    """RoI pooling, arXiv 1504.08083: the maximum in each cell. As in mmcv, regions include x2, y2, unrounded."""
    output = input.new_zeros(len(rois), input.shape[1], *size)
    height, width = input.shape[2:]
    for k, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        top, left, bottom, right = y1 * scale, x1 * scale, (y2 + 1) * scale, (x2 + 1) * scale
        if bottom <= top or right <= left:
            continue
        for row, column in product(range(size[0]), range(size[1])):
            ys = range(*_cell(top, bottom, row, size[0], height))
            xs = range(*_cell(left, right, column, size[1], width))
            if ys and xs:
                output[k, :, row, column] = torch.stack([input[int(image), :, y, x] for y, x in product(ys, xs)]).amax(
                    0
                )
    return output


def _cell(low: float, high: float, index: int, count: int, limit: int) -> Pair:
    first, last = (low + i * (high - low) / count for i in (index, index + 1))
    return min(max(math.floor(first), 0), limit), min(max(math.ceil(last), 0), limit)


def sigmoid_focal_loss(logits: Tensor, target: Tensor, gamma: float, alpha: float) -> Tensor:
    """Focal loss, arXiv 1708.02002, equation 5, of each logit (N, C); class C is the background."""
    rows = []
    for row, label in zip(logits, target.tolist(), strict=True):
        losses = []
        for index, logit in enumerate(row):
            p = 1 / (1 + torch.exp(-logit))
            p_t, alpha_t = (p, alpha) if index == label else (1 - p, 1 - alpha)
            losses.append(-alpha_t * (1 - p_t) ** gamma * torch.log(p_t))
        rows.append(torch.stack(losses))
    return torch.stack(rows) if rows else logits * 0


def deform_conv(
    input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None, stride: Pair,
    padding: Pair, dilation: Pair, groups: int, deform_groups: int,
) -> Tensor:  # fmt: skip
    """Deformable convolution, arXiv 1703.06211, equation 2; with a mask v2, arXiv 1811.11168, equation 1."""
    images, channels = input.shape[:2]
    outputs, per_group, kernel_h, kernel_w = weight.shape
    height, width = offset.shape[2:]
    output = input.new_zeros(images, outputs, height, width)
    for n, row, column, i, j in product(*map(range, (images, height, width, kernel_h, kernel_w))):
        tap, sampled = i * kernel_w + j, []
        for group in range(deform_groups):
            index = group * kernel_h * kernel_w + tap
            y = row * stride[0] - padding[0] + i * dilation[0] + offset[n, 2 * index, row, column]
            x = column * stride[1] - padding[1] + j * dilation[1] + offset[n, 2 * index + 1, row, column]
            share = channels // deform_groups
            values = interpolate(input[n, group * share : (group + 1) * share], y, x)
            sampled.append(values if mask is None else values * mask[n, index, row, column])
        values = torch.cat(sampled).view(groups, per_group)
        kernel = weight[:, :, i, j].view(groups, outputs // groups, per_group)
        output[n, :, row, column] = output[n, :, row, column] + torch.einsum("goc,gc->go", kernel, values).flatten()
    return output if bias is None else output + bias[:, None, None]


def multi_scale_deformable_attention(value: Tensor, shapes: list[Pair], locations: Tensor, weights: Tensor) -> Tensor:
    """Multi-scale deformable attention without its projections, arXiv 2010.04159, equation 3."""
    images, queries, heads, levels, points = weights.shape
    output = []
    for n, query, head in product(range(images), range(queries), range(heads)):
        total = value.new_zeros(value.shape[-1])
        for level, point in product(range(levels), range(points)):
            height, width = shapes[level]
            start = sum(h * w for h, w in shapes[:level])
            plane = value[n, start : start + height * width, head].T.reshape(-1, height, width)
            x, y = locations[n, query, head, level, point]
            values = interpolate(plane, y * height - 0.5, x * width - 0.5)
            total = total + weights[n, query, head, level, point] * values
        output.append(total)
    return (
        torch.stack(output).view(images, queries, -1)
        if output
        else value.new_zeros(images, queries, heads * value.shape[-1])
    )


def masked_conv(input: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
    """Convolution (1, C, H, W) at the positions where `mask` (1, H, W) is positive; 0 elsewhere."""
    output = input.new_zeros(1, len(weight), *mask.shape[1:])
    padded = torch.nn.functional.pad(input, [padding] * 4)
    for y, x in (mask[0] > 0).nonzero().tolist():
        patch = padded[0, :, y : y + weight.shape[2], x : x + weight.shape[3]]
        output[0, :, y, x] = torch.einsum("oijk,ijk->o", weight, patch) + bias
    return output
