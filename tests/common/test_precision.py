"""The precision of a network's arithmetic."""

from __future__ import annotations

import pytest
import torch

from common.precision import autocast_dtype

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("name", "dtype"), [("fp32", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_by_name(name: str, dtype: torch.dtype | None) -> None:
    assert autocast_dtype(name, CPU) == dtype
    assert autocast_dtype(name, GPU) == dtype


@pytest.mark.parametrize("fast", [False, True])
def test_auto_is_bf16_where_a_gpu_computes_it(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: fast)
    assert autocast_dtype("auto", GPU) == (torch.bfloat16 if fast else None)


@pytest.mark.parametrize(("avx", "amx"), [(False, False), (True, False), (False, True)])
def test_auto_is_bf16_where_a_cpu_computes_it(monkeypatch: pytest.MonkeyPatch, avx: bool, amx: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert autocast_dtype("auto", CPU) == (torch.bfloat16 if avx or amx else None)


@pytest.mark.fault("figures that mean nothing", "pretrain", "views of 16 pixels, in bf16 on a CPU")
@pytest.mark.fault("figures that mean nothing", "finetune", "views of 16 pixels, in bf16 on a CPU")
@pytest.mark.parametrize("size", [8, 16, 17, 28])
def test_gradients_of_small_images_are_finite_and_right(size: int) -> None:
    """oneDNN's bf16 kernel leaves memory as it was; what an earlier tensor held is a gradient then."""
    torch.manual_seed(0)
    pixels = -(-size // 16)  # of a ResNet's last strided convolution
    convolution, images = torch.nn.Conv2d(256, 512, 3, 2, 1, bias=False), torch.randn(8, 256, pixels, pixels)
    gradients = []
    for dtype in (None, autocast_dtype("auto", CPU, size)):
        convolution.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            features = convolution(images)
        earlier = [torch.full((convolution.weight.numel(),), 1e20) for _ in range(3)]
        del earlier
        features.float().pow(2).mean().backward()
        gradients.append(convolution.weight.grad.clone())
    assert (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()


def test_bf16_of_small_images_is_refused_on_a_cpu() -> None:
    with pytest.raises(ValueError, match="images of 16 pixels"):
        autocast_dtype("bf16", CPU, 16)
    assert autocast_dtype("bf16", GPU, 16) == torch.bfloat16
    assert autocast_dtype("fp16", CPU, 16) == torch.float16
