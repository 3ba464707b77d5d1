"""A schedule for another number of devices: batch, learning rate, warm-up, steps and iterations go together.

A published schedule belongs to a batch on a number of devices: detectron2's and MoCo's to 16 images on 8 GPUs. With
another batch the learning rate goes with it and the iterations go against it, so that every image is seen as often
("linear scaling rule", Goyal et al., arXiv 1706.02677, section 2.1).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from tabulate import tabulate


@dataclass(frozen=True)
class Schedule:
    """What depends on the batch.

    Attributes:
        batch: images an iteration, over all devices.
        lr: learning rate at that batch.
        warmup: iterations of warm-up; 0 where there is none.
        steps: iterations after which the learning rate drops; empty where it falls smoothly.
        iterations: in all.
    """

    batch: int
    lr: float
    warmup: int
    steps: tuple[int, ...]
    iterations: int

    @property
    def images(self) -> int:
        """Images seen in all."""
        return self.batch * self.iterations


def for_batch(reference: Schedule, batch: int) -> Schedule:
    """The schedule that sees as many images in batches of another size."""
    if batch == reference.batch:
        return reference
    factor = batch / reference.batch

    def stretched(iterations: int) -> int:
        return max(1, round(iterations / factor)) if iterations else 0

    return Schedule(
        batch, reference.lr * factor, stretched(reference.warmup), tuple(map(stretched, reference.steps)),
        stretched(reference.iterations),
    )  # fmt: skip


def for_devices(reference: Schedule, reference_devices: int, devices: int, batch: int | None = None) -> Schedule:
    """The schedule for a number of devices.

    Args:
        reference: as published.
        reference_devices: number of devices it was published for.
        devices: number there are; a CPU counts as one.
        batch: images an iteration over all devices; None gives each device as many as the reference does.

    Raises:
        ValueError: a batch that the devices cannot share evenly.
    """
    if batch is None:
        if reference.batch % reference_devices:
            raise ValueError(
                f"a reference batch of {reference.batch} cannot be shared by {reference_devices} devices; "
                "name the batch with --batch"
            )
        batch = reference.batch // reference_devices * devices
    if batch < 1 or batch % devices:
        raise ValueError(f"--batch {batch}: must be a multiple of the {devices} devices")
    return for_batch(reference, batch)


def comparison(before: Schedule, after: Schedule) -> str:
    """Both schedules side by side, for the screen and the log."""

    def told(schedule: Schedule, name: str) -> str:
        value = getattr(schedule, name)
        if isinstance(value, tuple):
            return ", ".join(map(str, value)) or "–"
        return f"{value:g}" if isinstance(value, float) else str(value)

    names = {field.name: field.name for field in fields(Schedule)} | {"lr": "learning rate", "warmup": "warm-up"}
    rows = [[title, told(before, name), told(after, name)] for name, title in names.items()]
    return str(
        tabulate(rows, headers=["", "published", "here"], disable_numparse=True, colalign=("left", *["right"] * 2))
    )
