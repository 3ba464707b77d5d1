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
