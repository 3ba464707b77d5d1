"""The stand-in for mmcv's compiled operations against plain loops, and against compiled mmcv: differences and time.

    python tests/benchmarks/bench_mmcv_ops.py [--calls 60] [--compiled _ext.so --out results/mmcv_operations.jsonl]

From the file, one JSON object a line, results/tables.py fills the table in docs/mmdet.md:

    operation      of mmcv
    against        "loops" (tests/common/mmcv_loops.py, in float64) or "compiled mmcv"
    dtype          of the operation: float32 or float64
    forward        largest |difference| of the outputs; infinity where other boxes are kept
    backward       largest |difference| of the gradients; null where there is none
    calls          with random inputs and settings
    milliseconds   [compiled mmcv, the stand-in], processor time of the fastest of five calls, in rows of their own

mmcv compiles with torch 2.14 where `c++17` in the setup.py of its source package becomes `c++20`, in eight minutes on
two cores: MMCV_WITH_OPS=1 FORCE_CUDA=0 python setup.py build_ext --inplace writes mmcv/_ext*.so. Its CPU sources have
no RoIPool, focal loss, masked convolution and multi-scale deformable attention.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch import Tensor

from tests.common import mmcv_loops as loops
from tests.common.mmcv_cases import (
    CASES,
    WITHOUT_GRADIENT,
    Case,
    boxes,
    differences,
    largest,
    normal,
    ops,
    output_difference,
    regions,
)  # fmt: skip

# Operations of mmcv's CPU sources and the modules of mmcv.ops that call them
COMPILED = {
    "nms": "nms", "soft_nms": "nms", "nms_match": "nms", "bbox_overlaps": "bbox", "roi_align": "roi_align",
    "deform_conv": "deform_conv", "modulated_deform_conv": "modulated_deform_conv",
}  # fmt: skip
NAMES = {torch.float32: "float32", torch.float64: "float64"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Boxes:
    """An operation on boxes (N, 4) and scores (N,): mmcv's, and the same in loops. Both return indices and values."""

    run: Callable[[Tensor, Tensor], list[Tensor]]
    loop: Callable[[Tensor, Tensor], list[Any]]


def _soft_nms(rectangles: Tensor, scores: Tensor) -> list[Tensor]:
    dets, kept = ops.soft_nms(rectangles, scores, 0.3, 0.5, 0.05, "gaussian")
    return [kept, dets[:, 4]]


BOXES = {
    "nms": Boxes(lambda b, s: [ops.nms(b, s, 0.4)[1]], lambda b, s: [loops.nms(b, s, 0.4)]),
    "soft_nms": Boxes(_soft_nms, lambda b, s: list(loops.soft_nms(b, s, 0.3, 0.5, 0.05, "gaussian", 0))),
    "nms_match": Boxes(
        lambda b, s: ops.nms_match(torch.cat([b, s[:, None]], 1), 0.4), lambda b, s: list(loops.nms_match(b, s, 0.4))
    ),
    "bbox_overlaps": Boxes(
        lambda b, s: [ops.bbox_overlaps(b, b.flip(0)).flatten()],
        lambda b, s: [[loops.overlap(one, other) for one in b for other in b.flip(0)]],
    ),
}


def scored(count: int, generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return random boxes with an area, and scores."""
    rectangles = boxes(count, generator, 30)
    rectangles[:, 2:] += 1
    return rectangles.to(dtype), torch.rand(count, generator=generator, dtype=torch.float64).to(dtype)


def against_loops(name: str, dtype: torch.dtype, calls: int) -> Row:
    """Compare an operation with the loops."""
    forward, backward = [0.0], [0.0]
    for seed in range(calls):
        generator = torch.Generator().manual_seed(seed)
        if name in BOXES:
            inputs = scored(seed % 20, generator, dtype)
            forward.append(largest(BOXES[name].run(*inputs), BOXES[name].loop(*(tensor.double() for tensor in inputs))))
        elif name in WITHOUT_GRADIENT:
            forward.append(output_difference(WITHOUT_GRADIENT[name](random.Random(seed).choice, generator), dtype))
        else:
            found = differences(CASES[name](random.Random(seed).choice, generator), dtype, generator)
            forward.append(found[0])
            backward.append(found[1])
    return _row(name, "loops", dtype, calls, forward, backward)


def against_compiled(name: str, dtype: torch.dtype, calls: int, compiled: Any) -> Row:
    """Compare an operation with mmcv's compiled one."""
    forward, backward = [0.0], [0.0]
    for seed in range(calls):
        generator = torch.Generator().manual_seed(seed)
        if name in BOXES:
            inputs = scored(seed % 20, generator, dtype)
            forward.append(largest(*both(name, compiled, lambda i=inputs: BOXES[name].run(*i))))
            continue
        case = CASES[name](random.Random(seed).choice, generator)
        results = both(name, compiled, lambda c=case: outputs(c, dtype))
        forward.append(largest(results[0][:1], results[1][:1]))
        backward.append(largest(results[0][1:], results[1][1:]))
    return _row(name, "compiled mmcv", dtype, calls, forward, backward)


def outputs(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """Return the output of a case and the gradients of its inputs."""
    inputs = [tensor.to(dtype).requires_grad_() for tensor in case.inputs]
    output = case.run(*inputs)
    gradient = normal(torch.Generator().manual_seed(1), *output.shape).to(dtype)
    return [output.detach(), *torch.autograd.grad(output, inputs, gradient)]


def both(name: str, compiled: Any, call: Callable[[], Any]) -> tuple[Any, Any]:
    """Return the result of a call with the stand-in, and with compiled mmcv."""
    module = sys.modules[f"mmcv.ops.{COMPILED[name]}"]
    ours, found = module.ext_module, call()
    module.ext_module = compiled
    try:
        return found, call()
    finally:
        module.ext_module = ours


def _row(name: str, against: str, dtype: torch.dtype, calls: int, forward: list[float], backward: list[float]) -> Row:
    return {
        "operation": name, "against": against, "dtype": NAMES[dtype], "forward": max(forward),
        "backward": max(backward) if name in CASES else None, "calls": calls,
    }  # fmt: skip


def large() -> dict[str, Callable[[], Any]]:
    """Return a call of each compiled operation on an input of the size that detectors have."""
    generator = torch.Generator().manual_seed(0)
    rectangles, scores = boxes(2000, generator, 800).float(), torch.rand(2000, generator=generator)
    features, rois = torch.randn(2, 256, 50, 68, generator=generator), regions(512, 2, generator).float()
    image = features[:, :64].contiguous()
    v1, v2 = ops.DeformConv2d(64, 64, 3, padding=1), ops.ModulatedDeformConv2d(64, 64, 3, padding=1)
    offset = torch.randn(2, 18, 50, 68, generator=generator)
    return {
        "nms": lambda: ops.nms(rectangles, scores, 0.7),
        "soft_nms": lambda: ops.soft_nms(rectangles, scores, 0.3, 0.5, 0.05, "linear"),
        "nms_match": lambda: ops.nms_match(torch.cat([rectangles, scores[:, None]], 1), 0.7),
        "bbox_overlaps": lambda: ops.bbox_overlaps(rectangles, rectangles[:100]),
        "roi_align": lambda: ops.roi_align(features, rois, (7, 7), 1.0, 0, "avg", True),
        "deform_conv": lambda: v1(image, offset),
        "modulated_deform_conv": lambda: v2(image, offset, offset[:, :9].sigmoid()),
    }


def fastest(call: Callable[[], Any], times: int = 5) -> float:
    """Return the milliseconds of processor time of the fastest of some calls."""
    seconds = []
    for _ in range(times):
        began = time.process_time()
        call()
        seconds.append(time.process_time() - began)
    return round(1000 * min(seconds), 2)


def measure(calls: int, compiled: Any) -> Iterator[Row]:
    """Yield the rows of all operations."""
    for name in (*BOXES, *CASES, *WITHOUT_GRADIENT):
        for dtype in NAMES:
            yield against_loops(name, dtype, calls)
        if compiled is None or name not in COMPILED:
            continue
        for dtype in NAMES:
            if name not in BOXES or dtype == torch.float32:  # its boxes are float32
                yield against_compiled(name, dtype, calls, compiled)
    if compiled is not None:
        for name, call in large().items():
            ours, theirs = both(name, compiled, lambda call=call: fastest(call))
            yield {"operation": name, "milliseconds": [theirs, ours]}


def load(path: Path) -> Any:
    """Return the compiled module of a file."""
    loader = importlib.machinery.ExtensionFileLoader("_ext", str(path))
    spec = importlib.util.spec_from_loader("_ext", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def main() -> None:
    """Measure, and write the rows."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--calls", type=int, default=60, help="of each operation and type (default: 60)")
    options.add_argument("--compiled", type=Path, help="mmcv's compiled module, to compare with it as well")
    options.add_argument("--out", type=Path, help="the file to write; default: only print")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    compiled = load(chosen.compiled) if chosen.compiled else None
    lines = [json.dumps(row) for row in measure(chosen.calls, compiled)]
    if chosen.out:
        chosen.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
