"""What linear, kNN and fine-tuning do with their seeds: measure each, draw the first, say the result."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jsonargparse import Namespace

from pretrain.distributed import rank
from transfer.common import Metrics, Run, measure, summary

Measured = tuple[Metrics, dict[str, float], Callable[[], None]]  # metrics, cost, and what draws the pictures


def evaluate_seeds(
    o: Namespace,
    device: torch.device,
    plan: Callable[[Namespace, int, torch.device], Run],
    measure_one: Callable[[Run], Measured],
) -> None:
    """Measures all seeds and says the result; pictures come after a record, so that they cannot cost it.

    Args:
        o: holds `seeds` and `pictures`, and what `measure` asks for.
        device: where it computes.
        plan: what is measured for a seed.
        measure_one: measures it.
    """
    pictures: dict[int, Callable[[], None]] = {}

    def do(run: Run) -> tuple[Metrics, dict[str, float]]:
        metrics, cost, draw = measure_one(run)
        if o.pictures and run.seed == o.seeds[0]:
            pictures[run.seed] = draw
        return metrics, cost

    def after(run: Run) -> None:
        if run.seed in pictures:
            pictures.pop(run.seed)()

    records = measure((plan(o, seed, device) for seed in o.seeds), do, o, device, after)
    if rank() == 0:
        print(records[0].protocol)
        print(summary(records))
