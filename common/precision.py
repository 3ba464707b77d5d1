"""Which precision the arithmetic of a network runs in."""

from __future__ import annotations

import torch


def use_exact_fp32() -> None:
    """Let convolutions compute in fp32 what is called fp32; by default a GPU rounds their factors to TF32, 10 bits."""
    torch.backends.cudnn.allow_tf32 = False


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the autocast dtype of a precision option; None = fp32.

    Args:
        precision: "fp32", "bf16", "fp16", or "auto": bf16 where the device computes it fast, else fp32.
        device: where the network runs.
    """
    if precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
