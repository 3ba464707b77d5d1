"""Scale a schedule to another number of devices: batch, learning rate, warm-up, steps and iterations.

A published schedule is for one batch size and number of devices: detectron2's and MoCo's for 16 images on 8 GPUs. For
another batch the learning rate is multiplied and the iterations are divided by the same factor, so the number of epochs
stays the same ("linear scaling rule", Goyal et al., arXiv 1706.02677, section 2.1).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from tabulate import tabulate


@dataclass(frozen=True)
class Schedule:
    """The settings that depend on the batch.

    Attributes:
        batch: images per iteration, over all devices.
        lr: learning rate at that batch.
        warmup: iterations of warm-up; 0 where there is none.
        steps: iterations after which the learning rate drops; empty where it falls smoothly.
        iterations: total number.
    """

    batch: int
    lr: float
    warmup: int
    steps: tuple[int, ...]
    iterations: int

    @property
    def images(self) -> int:
        """Total number of training images."""
        return self.batch * self.iterations


def for_batch(reference: Schedule, batch: int) -> Schedule:
    """Return the schedule for another batch size, over the same number of images."""
    if batch == reference.batch:
        return reference
    factor = batch / reference.batch

    def stretched(iterations: int) -> int:
        return max(1, round(iterations / factor)) if iterations else 0

    steps = tuple(map(stretched, reference.steps))
    return Schedule(batch, factor * reference.lr, stretched(reference.warmup), steps, stretched(reference.iterations))


def for_devices(reference: Schedule, reference_devices: int, devices: int, batch: int | None = None) -> Schedule:
    """Return the schedule for a number of devices.

    Args:
        reference: as published.
        reference_devices: number of devices of the reference.
        devices: number of devices to train on; a CPU counts as one.
        batch: images per iteration over all devices; None: per device as many as in the reference.

    Raises:
        ValueError: a batch that the devices cannot share evenly.
    """
    if batch is None:
        if reference.batch % reference_devices:
            raise ValueError(
                f"a reference batch of {reference.batch} cannot be shared by {reference_devices} devices; "
                "set the batch with --batch"
            )
        batch = reference.batch // reference_devices * devices
    if batch < 1 or batch % devices:
        raise ValueError(f"--batch {batch}: must be a multiple of the {devices} devices")
    return for_batch(reference, batch)


def comparison(before: Schedule, after: Schedule) -> str:
    """Return a table of both schedules, for the screen and the log."""

    def cell(schedule: Schedule, name: str) -> str:
        value = getattr(schedule, name)
        if isinstance(value, tuple):
            return ", ".join(map(str, value)) or "–"
        return f"{value:g}" if isinstance(value, float) else str(value)

    names = {field.name: field.name for field in fields(Schedule)} | {"lr": "learning rate", "warmup": "warm-up"}
    rows = [[title, cell(before, name), cell(after, name)] for name, title in names.items()]
    return str(
        tabulate(rows, headers=["", "published", "here"], disable_numparse=True, colalign=("left", *["right"] * 2))
    )
