"""Every checkpoint format that can be read: formats.yaml as dataclasses. To add one, add an entry there."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Branch:
    """One of the encoders in a file."""

    prefix: str  # pattern at the start of its keys
    container: str | None = None  # path to its tensors where not one of the format's


@dataclass(frozen=True)
class Format:
    """The checkpoint format of one code base.

    Attributes:
        name: the value of --from.
        origin: the code base.
        branches: the encoders in a file, the default first.
        containers: dotted paths to the mapping of tensors, tried in this order; "" is the file itself.
        marks: patterns of keys that distinguish this format from others; each must be found.
        drop: what is left out on purpose, as it is no part of a backbone: its description and the pattern of its keys.
        names: (pattern, replacement) pairs, applied in order, from this format's names to torchvision's.
        entries: top-level entries that distinguish this format from others, with their value.
        cifar: the stem that a single 3×3 convolution means here.
        method: the pre-training method, where the format implies it.
        refuse: entries that show another network under the same names: dotted path, pattern of the value, and the
            reason, where {} stands for the match.
    """

    name: str
    origin: str
    branches: dict[str, Branch]
    containers: tuple[str, ...] = ("state_dict", "model", "")
    marks: tuple[str, ...] = ()
    drop: dict[str, str] = field(default_factory=dict)
    names: Rules = ()
    entries: dict[str, str] = field(default_factory=dict)
    cifar: str = "_cifar"
    method: str | None = None
    refuse: tuple[tuple[str, str, str], ...] = ()


# Names of the two encoders in different code bases; --branch takes any of them.
ROLES = ({"query", "student", "online", "base", "encoder"}, {"key", "teacher", "momentum", "target", "ema"})

OWN = "unimoco-suite"


def _load(path: Path) -> tuple[Format, ...]:
    """Read the formats of a YAML file; a branch is its prefix, or the prefix and its container."""

    def format_of(name: str, entry: dict[str, Any]) -> Format:
        for key in ("containers", "marks"):
            entry[key] = tuple(entry.get(key, getattr(Format, key)))
        for key in ("names", "refuse"):
            entry[key] = tuple(map(tuple, entry.get(key, ())))
        branches = {key: Branch(*([b] if isinstance(b, str) else b)) for key, b in entry.pop("branches").items()}
        return Format(name, branches=branches, **entry)

    content = yaml.safe_load(path.read_bytes())["formats"]
    return tuple(format_of(name, entry) for name, entry in content.items())


FORMATS = _load(Path(__file__).with_name("formats.yaml"))
BY_NAME = {entry.name: entry for entry in FORMATS}
