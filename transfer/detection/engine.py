"""What transfer/detect.py needs of an engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from transfer.benchmark import Measurement, Run


@dataclass(frozen=True)
class Engine:
    """An engine that is ready to measure. Each engine's `run.start(options, root)` returns one.

    Attributes:
        device: where it computes.
        plan: returns the run of a seed; needs no data set.
        check: reads and scores all that a run will read; returns what was checked, in words.
        measure: trains and evaluates a run.
    """

    device: torch.device
    plan: Callable[[int], Run]
    check: Callable[[Any], str]
    measure: Callable[[Any], Measurement]
