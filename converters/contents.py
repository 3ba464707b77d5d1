"""The content of a checkpoint file: its entries, its mappings of tensors, and the sets of weights in it."""

import argparse
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from converters.formats import AVERAGES, BY_NAME, FORMATS, ROLES, Format
from converters.messages import shorten
from converters.stand_ins import Inert

TENSORS = (Tensor, np.ndarray, np.generic)
# What DistributedDataParallel, torch.compile, FSDP and activation checkpointing add to keys where they wrap a module.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+")
_PROBE = "layer1.0.conv1.weight"  # every ResNet has it


@dataclass(frozen=True)
class WeightSet:
    """One of the sets of weights in a file, e.g. the query encoder or the moving average.

    Attributes:
        name: the value of --weights.
        container: dotted path to the mapping that holds it; "" is the file itself.
        prefix: pattern at the start of its keys.
    """

    name: str
    container: str
    prefix: str

    def __str__(self) -> str:
        return f"{self.name} ({self.container})" if self.container else self.name


class Content:
    """What a file holds.

    Args:
        path: the file, for messages.
        whole: what was read from it.
    """

    def __init__(self, path: Path, whole: Any) -> None:
        self.path, self.whole = path, whole
        self._tensors: dict[str, dict[str, Any]] = {}

    def get(self, dotted: str) -> Any:
        """Return the entry at a path through nested mappings and namespaces, or None.

        Args:
            dotted: names joined by dots; "" is the whole, "*" the first entry in which the rest of the path exists.
        """
        return _follow(self.whole, dotted.split(".") if dotted else [])

    def tensors(self, container: str) -> dict[str, Any]:
        """Return the mapping at a path without wrappers' parts in its keys, or {} where it holds no tensor.

        Raises:
            ValueError: two keys become one.
        """
        if container not in self._tensors:
            inside = self.get(container)
            found = isinstance(inside, Mapping) and any(isinstance(value, TENSORS) for value in inside.values())
            self._tensors[container] = unwrap(inside, self.path) if found else {}
        return self._tensors[container]

    def modules(self, container: str) -> list[str]:
        """Return the names of all modules of the network, which state_dict() stores beside the tensors, or []."""
        stored = getattr(self.get(container), "_metadata", None)
        return [str(name) for name in stored] if isinstance(stored, Mapping) else []


def _follow(inside: Any, steps: list[str]) -> Any:
    for number, step in enumerate(steps):
        inside = _entries(inside)
        if not isinstance(inside, Mapping):
            return None
        if step == "*":
            found = (_follow(entry, steps[number + 1 :]) for entry in inside.values())
            return next((entry for entry in found if entry is not None), None)
        inside = inside.get(step)
    return inside.fields.get("_val") if isinstance(inside, Inert) else inside  # OmegaConf's leaves


def _entries(inside: Any) -> Any:
    """Return the entries of a namespace, of a class of another package, or of OmegaConf's containers."""
    if isinstance(inside, argparse.Namespace):
        return vars(inside)
    return inside.fields.get("_content", inside.fields) if isinstance(inside, Inert) else inside


def unwrap(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Remove wrappers' parts from the keys.

    Raises:
        ValueError: two keys become one.
    """
    keys: dict[str, Any] = {}
    for raw, value in state.items():
        key = _WRAPPERS.sub("", str(raw))
        if key in keys:
            raise ValueError(f"{path} holds {key} twice, with and without a wrapper's part (module., _orig_mod. …)")
        keys[key] = value
    return keys


def torchvision_name(key: str, prefix: str, entry: Format) -> str | None:
    """Return the torchvision name of `key`, or None where it does not start with `prefix`."""
    match = re.match(prefix, key)
    if not match:
        return None
    name = key[match.end() :]
    for pattern, replacement in entry.names:
        name = re.sub(pattern, replacement, name)
    return name


def _has_backbone(keys: Iterable[str], prefix: str, entry: Format) -> bool:
    return any(torchvision_name(key, prefix, entry) == _PROBE for key in keys if key.endswith("0.conv1.weight"))


def find_sets(content: Content, entry: Format) -> list[WeightSet]:
    """Return the sets of weights that hold a ResNet in this format, the default first."""

    def place(name: str, prefix: str, containers: Iterable[str]) -> WeightSet | None:
        container = next((path for path in containers if content.tensors(path)), None)
        found = container is not None and _has_backbone(content.tensors(container), prefix, entry)
        return WeightSet(name, container, prefix) if found and container is not None else None

    default = next(iter(entry.weights.values()))[0]
    kept = [a for a in AVERAGES if not default.container and all(content.get(p) is not None for p in a.shown_by)]
    trained, sets = next(((a.trained,) for a in kept if a.trained), entry.containers), []
    for name, places in entry.weights.items():
        found = (place(name, p.prefix, trained if p.container is None else (p.container,)) for p in places)
        sets += [s for s in found if s is not None][:1]
    averages = [place("ema", default.prefix, (a.average,)) for a in kept]
    return [s for s in averages if s is not None][:1] + sets


def recognize(content: Content) -> Format:
    """Return the first format whose marks and backbone the file has.

    Raises:
        ValueError: there is none; the message shows keys.
    """
    for entry in FORMATS:
        if any(content.get(name) != value for name, value in entry.entries.items()):
            continue
        for keys in (content.tensors(each.container) for each in find_sets(content, entry)):
            marked = all(any(re.search(mark, key) for key in keys) for mark in entry.marks)
            if marked and not any(re.search(pattern, key) for pattern in entry.unless for key in keys):
                return entry
    mappings = (content.get(name) for name in ("state_dict", "model", ""))
    state = next((mapping for mapping in mappings if isinstance(mapping, Mapping)), {})
    shown = shorten([str(key) for key in state], 6) or f"a {type(content.whole).__name__}"
    raise ValueError(
        f"{content.path} is in no known format: no ResNet under any known prefix (it holds {shown}); "
        f"--from takes one of {', '.join(BY_NAME)}"
    )


def choose_set(sets: list[WeightSet], wanted: str | None, entry: Format, path: Path) -> WeightSet:
    """Return the set that `wanted` names in this or another code base's terms, or the default one.

    Raises:
        ValueError: the file or the format has no such set; the message names those that it has.
    """
    if wanted is None and sets:
        return sets[0]
    roles = next((role for role in ROLES if wanted in role), {wanted})
    named = [s for s in sets if s.name == wanted] or [s for s in sets if s.name in roles]
    if len(named) == 1:
        return named[0]
    name = wanted or next(iter(entry.weights))
    if sets:
        known = " or ".join(s.name for s in sets)
        raise ValueError(f"{path} read as {entry.name} has no {name} weights: --weights takes {known}")
    raise ValueError(f"{path} read as {entry.name} has no {name} weights, nor any other")


def describe_choice(sets: list[WeightSet], chosen: WeightSet) -> tuple[str, ...]:
    """Return the note for a file with several sets of weights, of which nobody has chosen one."""
    others = [s for s in sets if s != chosen]
    if not others:
        return ()
    names = " or ".join(s.name for s in others)
    return (
        f"the file holds {len(sets)} sets of weights: {', '.join(map(str, sets))}; "
        f"{chosen.name} was read, --weights {names} reads {'the other' if len(others) == 1 else 'another'}",
    )
