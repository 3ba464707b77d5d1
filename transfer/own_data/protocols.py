"""The protocols of the literature that a user's detection data set can be trained with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Protocol:
    """How a detector is trained and built.

    Attributes:
        base: config that it extends.
        rate: learning rate.
        masks: whether it can predict masks.
        settings: what differs from the base.
    """

    base: str
    rate: float = 0.02
    masks: bool = True
    settings: tuple[tuple[str, Any], ...] = ()


PROTOCOLS = {
    "fpn": Protocol("bases/fpn-a.yaml"),
    "c4": Protocol("bases/c4.yaml"),
    "retinanet": Protocol("coco-retinanet-1x.yaml", 0.01, masks=False),
    "fpn-frozen": Protocol("bases/fpn-a.yaml", settings=(("BACKBONE", {"FREEZE_AT": 5}),)),
}
