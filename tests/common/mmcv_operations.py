"""The stand-in for mmcv's compiled operations against plain loops. Run by test_openmmlab.py in a process of its own."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from common.openmmlab import check_operations
from tests.common import mmcv_loops as loops
from tests.common.mmcv_cases import CASES, boxes, differences, masked_conv2d, ops, output_difference

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}
SEEDS = st.integers(0, 2**31)
HALVES = (torch.float16, torch.bfloat16)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def last(options: Any) -> Any:
    return options[-1]


# Operations with gradients


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
@settings(deadline=None, max_examples=12)
@given(data=st.data(), seed=SEEDS)
def test_outputs_and_gradients_equal_those_of_loops(
    name: str, dtype: torch.dtype, data: st.DataObject, seed: int
) -> None:
    case = CASES[name](lambda options: data.draw(st.sampled_from(options)), seeded(seed))
    forward, backward = differences(case, dtype, seeded(seed))
    assert forward <= TOLERANCE[dtype]
    assert backward <= TOLERANCE[dtype]


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_finite_differences(name: str) -> None:
    case = CASES[name](last, seeded(0))
    inputs = [tensor.clone().requires_grad_() for tensor in case.inputs]
    assert torch.autograd.gradcheck(case.run, inputs, eps=1e-7, atol=1e-5, fast_mode=True)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    """Under autocast, as in training."""
    if name.startswith("roi") and dtype == torch.bfloat16:
        pytest.skip("refused")
    case = CASES[name](last, seeded(0))
    halves = [tensor.to(dtype) for tensor in case.inputs]
    results = []
    for inputs in (halves, [tensor.float() for tensor in halves]):
        leaves = [tensor.requires_grad_() for tensor in inputs]
        with torch.autocast("cpu", dtype):
            output = case.run(*leaves)
        results.append([output, *torch.autograd.grad(output.sum(), leaves)])
    for half, full in zip(*results, strict=True):
        assert half.dtype == dtype
        step = torch.finfo(dtype).eps * max(1.0, float(full.detach().abs().max()))
        assert (half.float() - full).abs().max() <= step


@pytest.mark.parametrize("device", ["cuda", "meta"])
@pytest.mark.parametrize("name", sorted(set(CASES) - {"roi_pool"}))
def test_everything_stays_on_the_device(name: str, device: str) -> None:
    """Fake tensors: a CPU tensor among them is an error, as on a GPU. roi_pool is left out: its loop reads the regions.

    Autograd does not run on fake CUDA tensors, so "meta" is the device of the gradients.
    """
    case = CASES[name](last, seeded(0))
    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = [torch.empty_like(tensor, device=device).requires_grad_() for tensor in case.inputs]
        found = [case.run(*inputs)]
        if device == "meta":
            found += torch.autograd.grad(found[0], inputs, torch.ones_like(found[0]))
        assert {tensor.device.type for tensor in found} == {device}


@pytest.mark.parametrize("v2", [False, True])
def test_offsets_of_a_new_layer_get_no_gradient_at_the_border(v2: bool) -> None:
    """With offsets of 0 and padding 1, samples lie exactly at -1. mmcv's derivative there is 0."""
    layer = (ops.ModulatedDeformConv2d if v2 else ops.DeformConv2d)(2, 2, 3, padding=1)
    offset = torch.zeros(1, 18, 4, 4, requires_grad=True)
    mask = [torch.ones(1, 9, 4, 4)] * v2
    layer(torch.ones(1, 2, 4, 4), offset, *mask).sum().backward()
    assert offset.grad is not None
    corner = offset.grad[0, :, 0, 0].view(3, 3, 2)
    assert not corner[0].any()
    assert not corner[:, 0].any()


# Boxes


def scored(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random boxes and scores, in float64: the operations compute in it, too."""
    random = seeded(seed)
    return boxes(count, random, 15), torch.rand(count, generator=random, dtype=torch.float64)


@settings(deadline=None, max_examples=30)
@given(count=st.integers(0, 14), offset=st.integers(0, 1), threshold=st.floats(0.05, 0.9), seed=SEEDS)
def test_nms_keeps_the_boxes_of_loops(count: int, offset: int, threshold: float, seed: int) -> None:
    rectangles, scores = scored(count, seed)
    found, kept = ops.nms(rectangles, scores, threshold, offset)
    assert kept.tolist() == loops.nms(rectangles, scores, threshold, offset)
    assert torch.equal(found, torch.cat([rectangles, scores[:, None]], 1)[kept])


@settings(deadline=None, max_examples=20)
@given(count=st.integers(1, 14), split=st.booleans(), agnostic=st.booleans(), seed=SEEDS)
def test_batched_nms_treats_each_class_alone(count: int, split: bool, agnostic: bool, seed: int) -> None:
    rectangles, scores = scored(count, seed)
    classes = torch.randint(3, (count,), generator=seeded(seed))
    settings_ = {"type": "nms", "iou_threshold": 0.4, "split_thr": 1 if split and not agnostic else 10000}
    found, kept = ops.batched_nms(rectangles, scores, classes, settings_, agnostic)
    wanted = []
    for members in [range(count)] if agnostic else [(classes == c).nonzero().flatten().tolist() for c in range(3)]:
        wanted += [members[i] for i in loops.nms(rectangles[list(members)], scores[list(members)], 0.4)]
    assert kept.tolist() == sorted(wanted, key=lambda i: -float(scores[i]))
    assert torch.equal(found, torch.cat([rectangles, scores[:, None]], 1)[kept])


@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
@settings(deadline=None, max_examples=20)
@given(count=st.integers(0, 14), offset=st.integers(0, 1), threshold=st.floats(0.05, 0.9), seed=SEEDS)
def test_soft_nms_lowers_scores_as_loops_do(method: str, count: int, offset: int, threshold: float, seed: int) -> None:
    rectangles, scores = scored(count, seed)
    found, kept = ops.soft_nms(rectangles, scores, threshold, 0.5, 0.05, method, offset)
    indices, lowered = loops.soft_nms(rectangles, scores, threshold, 0.5, 0.05, method, offset)
    assert kept.tolist() == indices
    assert torch.equal(found[:, :4], rectangles[kept])
    np.testing.assert_allclose(found[:, 4], lowered, rtol=1e-12)


def test_soft_nms_of_2000_boxes_takes_milliseconds() -> None:
    """Compiled mmcv takes 69 ms; processor time, since the cores may be busy."""
    rectangles, scores = boxes(2000, seeded(0), 800).float(), torch.rand(2000, generator=seeded(0))
    seconds = []
    for _ in range(3):
        began = time.process_time()
        ops.soft_nms(rectangles, scores, 0.3, 0.5, 0.05, "linear")
        seconds.append(time.process_time() - began)
    assert min(seconds) <= 3 * 0.069


@settings(deadline=None, max_examples=30)
@given(count=st.integers(0, 14), threshold=st.floats(0.05, 0.9), seed=SEEDS)
def test_nms_match_groups_boxes_as_loops_do(count: int, threshold: float, seed: int) -> None:
    rectangles, scores = scored(count, seed)
    groups = ops.nms_match(torch.cat([rectangles, scores[:, None]], 1), threshold)
    assert [group.tolist() for group in groups] == loops.nms_match(rectangles, scores, threshold)


@settings(deadline=None, max_examples=30)
@given(
    counts=st.tuples(st.integers(0, 5), st.integers(0, 5)), mode=st.sampled_from(["iou", "iof"]), aligned=st.booleans(),
    offset=st.integers(0, 1), seed=SEEDS,
)  # fmt: skip
def test_overlaps_equal_those_of_loops(
    counts: tuple[int, int], mode: str, aligned: bool, offset: int, seed: int
) -> None:
    a, b = boxes(counts[0], seeded(seed)), boxes(counts[0 if aligned else 1], seeded(seed + 1))
    found = ops.bbox_overlaps(a, b, mode, aligned, offset)
    pairs = zip(a, b, strict=True) if aligned else ((one, other) for one in a for other in b)
    wanted = [loops.overlap(one, other, offset, mode == "iof") for one, other in pairs]
    np.testing.assert_allclose(found.flatten(), wanted, rtol=1e-12)
    assert found.shape == (counts[:1] if aligned else counts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_boxes_may_have_half_precision(dtype: torch.dtype) -> None:
    rectangles, scores = (tensor.to(dtype) for tensor in scored(12, 0))
    dets = torch.cat([rectangles, scores[:, None]], 1)
    wide = rectangles.float(), scores.float()
    assert torch.equal(ops.nms(rectangles, scores, 0.4)[1], ops.nms(*wide, 0.4)[1])
    assert torch.equal(ops.soft_nms(rectangles, scores)[1], ops.soft_nms(*wide)[1])
    assert torch.equal(torch.cat(ops.nms_match(dets, 0.4)), torch.cat(ops.nms_match(dets.float(), 0.4)))
    assert torch.equal(ops.bbox_overlaps(rectangles, rectangles), ops.bbox_overlaps(*[wide[0]] * 2).to(dtype))


def test_boxes_stay_on_the_gpu() -> None:
    with FakeTensorMode(shape_env=ShapeEnv(allow_dynamic_output_shape_ops=True)):
        rectangles, scores = torch.empty(9, 4, device="cuda"), torch.empty(9, device="cuda")
        found, kept = ops.nms(rectangles, scores, 0.4, 1)
        overlaps = ops.bbox_overlaps(rectangles, rectangles)
        assert {tensor.device.type for tensor in (found, kept, overlaps)} == {"cuda"}


@pytest.mark.parametrize("call", ["nms", "soft_nms", "nms_match", "bbox_overlaps", "roi_align", "roi_pool"])
def test_boxes_in_bfloat16_are_refused(call: str) -> None:
    rectangles = torch.tensor([[0, 0, 520, 520.0]], dtype=torch.bfloat16)
    five, image = torch.cat([rectangles[:, :1], rectangles], 1), torch.zeros(1, 1, 8, 8, dtype=torch.bfloat16)
    arguments = {
        "nms": (rectangles, rectangles[:, 2], 0.5), "soft_nms": (rectangles, rectangles[:, 2]),
        "nms_match": (five, 0.5), "bbox_overlaps": (rectangles, rectangles), "roi_align": (image, five, (1, 1)),
        "roi_pool": (image, five, (1, 1)),
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"boxes in bfloat16 have steps of 4 pixels from x = 512 on: train in float32"):
        getattr(ops, call)(*arguments[call])


# Convolution at chosen positions


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@settings(deadline=None, max_examples=10)
@given(data=st.data(), seed=SEEDS)
def test_masked_convolution_equals_that_of_loops(dtype: torch.dtype, data: st.DataObject, seed: int) -> None:
    case = masked_conv2d(lambda options: data.draw(st.sampled_from(options)), seeded(seed))
    assert output_difference(case, dtype) <= TOLERANCE[dtype]


# What is not here


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.carafe(torch.zeros(1, 4, 2, 2), torch.zeros(1, 9, 4, 4), 3, 1, 2), "carafe_forward: an operation"),
        (lambda: ops.RoIAlign(2, pool_mode="max")(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5)), "pool_mode='max'"),
        (
            lambda: ops.sigmoid_focal_loss(torch.zeros(1, 2), torch.tensor([0]), 2.0, 0.25, torch.ones(2)),
            "with class weights",
        ),
    ],
)
def test_an_absent_operation_says_its_name_and_what_to_do(call: Any, message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        call()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: ops.CARAFEPack(4, 2),
            "1.0: torchvision has no operation for mmcv's CARAFEPack; build mmcv with its op",
        ),
        (
            lambda: ops.DeformRoIPoolPack((2, 2), 4),
            "1.0: torchvision has no operation for mmcv's DeformRoIPoolPack; bu",
        ),
        (lambda: ops.SyncBatchNorm(2), "1.0: MMSyncBN needs mmcv's compiled operation; set type='SyncBN' in its norm"),
        (lambda: ops.RoIAlign(2, pool_mode="max"), "1.0: torchvision's RoIAlign has no pool_mode='max'; set 'avg'"),
    ],
)
def test_a_model_with_an_absent_operation_is_refused(build: Any, message: str) -> None:
    if not torch.distributed.is_initialized():  # MMSyncBN asks for its processes
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    served = ops.ModulatedDeformConv2dPack(2, 2, 3), ops.MultiScaleDeformableAttention(8, 2), ops.RoIAlign(2)
    check_operations(nn.Sequential(*served))
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        check_operations(nn.Sequential(served[0], nn.Sequential(build())))
