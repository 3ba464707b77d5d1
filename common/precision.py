"""Which precision the arithmetic of a network runs in."""

from __future__ import annotations

import torch


def use_exact_fp32() -> None:
    """Let convolutions compute in fp32 what is called fp32; by default a GPU rounds their factors to TF32, 10 bits."""
    torch.backends.cudnn.allow_tf32 = False


SMALL = 16  # pixels; at most so many become a single one before the last strided convolution of a ResNet


def autocast_dtype(precision: str, device: torch.device, size: int = SMALL + 1) -> torch.dtype | None:
    """Return the autocast dtype of a precision option; None = fp32.

    On a CPU, bf16 is for images of more than 16 pixels: of a strided convolution with an input of one pixel, oneDNN
    (torch 2.14) leaves the gradient of all weights but the middle one undefined, often very large.

    Args:
        precision: "fp32", "bf16", "fp16", or "auto": bf16 where the device computes it fast and right, else fp32.
        device: where the network runs.
        size: side of the images in pixels.

    Raises:
        ValueError: gradients would be wrong.
    """
    if device.type == "cpu" and size <= SMALL:
        if precision == "bf16":
            raise ValueError(f"bf16 on the CPU with images of {size} pixels gives wrong gradients; use fp32")
        return {"fp16": torch.float16}.get(precision)
    if precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
