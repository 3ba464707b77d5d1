"""Every checkpoint format that can be read: formats.yaml as dataclasses. To add one, add an entry there."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Place:
    """Where a set of weights may be in a file."""

    prefix: str  # pattern at the start of its keys
    container: str | None = None  # path to its tensors where not one of the format's


@dataclass(frozen=True)
class Average:
    """How a file keeps the moving average of the weights beside the weights that were trained.

    Attributes:
        shown_by: entries that all files of this kind have.
        trained: path to the weights that were trained; None where the format keeps its tensors.
        average: path to their moving average.
    """

    shown_by: tuple[str, ...]
    trained: str | None
    average: str


@dataclass(frozen=True)
class Format:
    """The checkpoint format of one code base.

    Attributes:
        name: the value of --from.
        origin: the code base.
        weights: the sets of weights that a file may hold and the places of each, the default set first.
        containers: dotted paths to the mapping of tensors, tried in this order; "" is the file itself.
        marks: patterns of keys that distinguish this format from others; each must be found.
        unless: patterns of keys that show another format; none may be found.
        drop: what is left out on purpose, as it is no part of a backbone: its description and the pattern of its keys.
        names: (pattern, replacement) pairs, applied in order, from this format's names to torchvision's.
        entries: top-level entries that distinguish this format from others, with their value.
        cifar: the stem that a single 3×3 convolution means here; "" where the code base does not decide it.
        cifar_entry: an entry that only the code base itself writes; without it `cifar` does not count.
        method: the pre-training method, where the format implies it.
        refuse: entries that show another network under the same names, unless --from is given: dotted path, pattern of
            the value, and the reason.
    """

    name: str
    origin: str
    weights: dict[str, tuple[Place, ...]]
    containers: tuple[str, ...] = ("state_dict", "model", "model_state_dict", "module", "net", "")
    marks: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    drop: dict[str, str] = field(default_factory=dict)
    names: Rules = ()
    entries: dict[str, str] = field(default_factory=dict)
    cifar: str = ""
    cifar_entry: str = ""
    method: str | None = None
    refuse: tuple[tuple[str, str, str], ...] = ()


# Names of the two encoders in different code bases; --weights takes any of them.
ROLES = (
    {"model", "query", "student", "online", "base", "encoder", "backbone"},
    {"ema", "key", "teacher", "momentum", "target"},
)

OWN = "unimoco-suite"
_CONTENT = yaml.safe_load(Path(__file__).with_name("formats.yaml").read_text(encoding="utf-8"))


def _format(name: str, entry: dict[str, Any]) -> Format:
    for key in ("containers", "marks", "unless"):
        entry[key] = tuple(entry.get(key, getattr(Format, key)))
    for key in ("names", "refuse"):
        entry[key] = tuple(map(tuple, entry.get(key, ())))
    entry["drop"] = entry.get("drop", {}) | _CONTENT["drop"]
    return Format(name, weights={key: _places(value) for key, value in entry.pop("weights").items()}, **entry)


def _places(value: Any) -> tuple[Place, ...]:
    """Read the places of a set: a prefix, a list of prefixes, or of [prefix, container]."""
    return tuple(Place(*([each] if isinstance(each, str) else each)) for each in ([value], value)[type(value) is list])


FORMATS = tuple(_format(name, entry) for name, entry in _CONTENT["formats"].items())
BY_NAME = {entry.name: entry for entry in FORMATS}
AVERAGES = tuple(Average(tuple(shown), trained, average) for shown, trained, average in _CONTENT["averages"])
REFUSED_CONFIGS: Rules = tuple(map(tuple, _CONTENT["refuse"]))
