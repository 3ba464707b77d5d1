"""The devices of this machine, and the versions of its packages."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence

import torch
from tabulate import tabulate

from common.distributed import has_gpu
from common.extras import how_to_install
from common.run_folder import PACKAGES, version
from common.surroundings import cores


def device_kind(device: str) -> str:
    """Return "cuda" or "cpu" for --device; auto is cuda where there is a GPU.

    Raises:
        ValueError: another value.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device {device}: use auto, cpu or cuda (CUDA_VISIBLE_DEVICES chooses among GPUs)")
    return ("cuda" if has_gpu() else "cpu") if device == "auto" else device


def machine(packages: Sequence[str]) -> str:
    """Return a table of this machine for --check: versions of the usual packages and of `packages`, and its devices."""
    rows = [["python", platform.python_version()], ["platform", platform.platform()]]
    for name in (*PACKAGES, *packages):
        try:
            rows.append([name, version(name)])
        except importlib.metadata.PackageNotFoundError:
            rows.append([name, f"not installed: {how_to_install(name)}"])
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows.append(["CUDA of torch", torch.version.cuda or "none"])
    rows.append(["devices", ", ".join(devices) or f"CPU, {cores()} cores, no GPU"])
    return str(tabulate(rows, disable_numparse=True, tablefmt="plain"))
