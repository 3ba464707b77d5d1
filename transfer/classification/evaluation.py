"""What linear, kNN and fine-tuning do with their seeds: measure each, draw the first, print the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jsonargparse import Namespace

from common.distributed import rank
from transfer.benchmark import Measurement, Run, measure, summary


def evaluate_seeds(
    o: Namespace,
    device: torch.device,
    plan: Callable[[Namespace, int, torch.device], Run],
    measure_one: Callable[[Run], Measurement],
) -> None:
    """Measure all seeds and print the result.

    Args:
        o: holds `seeds` and `pictures`, and what `measure` asks for.
        device: where it computes.
        plan: what is measured for a seed.
        measure_one: measures it.
    """

    def work(run: Run) -> Measurement:
        measured = measure_one(run)
        return measured if o.pictures and run.seed == o.seeds[0] else replace(measured, draw=None)

    records = measure((plan(o, seed, device) for seed in o.seeds), work, o, device)
    if records and rank() == 0:
        print(records[0].title)
        print(summary(records))
