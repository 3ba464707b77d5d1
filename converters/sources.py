"""Read any checkpoint into a Backbone: recognise its format, keep one encoder, account for every key."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.files import sha256
from converters import arch as archs
from converters import files, named
from converters.backbone import Backbone, Source, is_counter
from converters.formats import BY_NAME, FORMATS, OWN, ROLES, Branch, Format
from converters.messages import shorten

_WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")  # of DistributedDataParallel and torch.compile
_PROBE = "layer1.0.conv1.weight"  # every ResNet has it
_TENSORS = (Tensor, np.ndarray, np.generic)
_HALF = (torch.float16, torch.bfloat16)  # float32 holds each of their values


@dataclass(frozen=True)
class ReadOptions:
    """How to read a checkpoint file.

    Attributes:
        branch: which encoder: query or key, student or teacher, …; None for the one that its authors transfer.
        format: name of the checkpoint format (converters/formats.yaml); None to recognise it.
        drop: patterns of more keys to leave out.
        trust: let the file run any code while it is read.
    """

    branch: str | None = None
    format: str | None = None
    drop: tuple[str, ...] = ()
    trust: bool = False


DEFAULT = ReadOptions()


@dataclass(frozen=True)
class Reading:
    """A backbone and what was done with every key of its file.

    Attributes:
        backbone: the result.
        branch: the encoder that was read.
        total: number of keys in the mapping that holds the tensors.
        dropped: keys left out on purpose, by reason.
        notes: what the user should know.
    """

    backbone: Backbone
    branch: str
    total: int
    dropped: dict[str, list[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_backbone(path: str | Path, options: ReadOptions = DEFAULT) -> Backbone:
    """Read the backbone of a checkpoint in any format of converters/formats.yaml.

    Args:
        path: a file, or timm:NAME, torchvision:NAME (both pre-trained; ?pretrained=false) or random:ARCH?seed=N.
        options: how to read a file.

    Raises:
        ValueError: the file is unsafe, unknown or not one whole ResNet; the message names the keys.
    """
    return read(path, options).backbone


def read(path: str | Path, options: ReadOptions = DEFAULT) -> Reading:
    """Read as `read_backbone` does, and account for every key."""
    if named.is_named(str(path)):
        if options != DEFAULT:
            raise ValueError(f"{path} is one whole network: --branch, --from, --drop and --trust are for files")
        backbone = named.read(str(path))
        return Reading(backbone, "network", len(backbone.tensors))
    path = Path(path)
    content = files.read(path, options.trust)
    chosen = _by_name(options.format) if options.format else _recognize(content, path)
    name, branch = _choose_branch(chosen, content, options.branch, path)
    keys = _unwrap(_find_tensors(content, chosen, branch), path)
    found, dropped = _sort_keys(keys, chosen, branch, path, options.drop)
    limit, tensors = path.stat().st_size, {}
    for tv_name, key in found.items():  # together they cannot be larger than the file
        tensors[tv_name] = _as_tensor(keys[key], key, limit, path)
        limit -= keys[key].nbytes
    notes = _check_style(content, chosen, explicit=options.format is not None, path=path)
    arch, tensors, more = _complete(tensors, chosen, path)
    stored = {str(keys[key].dtype).removeprefix("torch.") for name, key in found.items() if not is_counter(name)}
    if half := sorted(stored - {"float32"}):
        more += (f"stored as {', '.join(half)}, read as float32: no value changes",)
    source = Source(chosen.name, str(path), sha256(path))
    backbone = Backbone(tensors, arch, source, _read_meta(content, chosen, arch, path))
    return Reading(backbone, name, len(keys), dropped, notes + more)


def backbone_state(state: Mapping[str, Tensor], format_name: str) -> dict[str, Tensor]:
    """Return the backbone of a built model's state_dict under torchvision's names.

    Args:
        state: what `model.state_dict()` returns, heads and all.
        format_name: the format of the model's keys: torchvision, timm, detectron2 or openmmlab.

    Raises:
        ValueError: a key belongs neither to the backbone nor to a known other part of such a model.
    """
    model, entry = Path(f"a {format_name} model"), _by_name(format_name)
    keys = _unwrap(state, model)
    found, _ = _sort_keys(keys, entry, next(iter(entry.branches.values())), model)
    return {tv_name: keys[key] for tv_name, key in found.items()}


def _by_name(name: str) -> Format:
    if name not in BY_NAME:
        raise ValueError(f"format {name!r} is unknown; --from takes one of {', '.join(BY_NAME)}")
    return BY_NAME[name]


def _get(content: Any, dotted: str) -> Any:
    """Return the entry of nested mappings at `dotted`, or None; "" is the content itself."""
    for step in dotted.split(".") if dotted else ():
        content = content.get(step) if isinstance(content, Mapping) else None
    return content


def _find_tensors(content: Any, entry: Format, branch: Branch) -> Mapping[str, Any]:
    """Return the first mapping with tensors among those where `entry` may keep `branch`, or {}."""
    for path in (branch.container,) if branch.container is not None else entry.containers:
        inside = _get(content, path)
        if isinstance(inside, Mapping) and any(isinstance(value, _TENSORS) for value in inside.values()):
            return inside
    return {}


def _unwrap(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Remove wrappers' prefixes from the keys; raise ValueError where two keys become one."""
    keys: dict[str, Any] = {}
    for raw, value in state.items():
        key = _WRAPPERS.sub("", str(raw))
        if key in keys:
            raise ValueError(f"{path} holds {key} twice, with and without a wrapper's prefix (module., _orig_mod.)")
        keys[key] = value
    return keys


def _tv_name(key: str, entry: Format, branch: Branch) -> str | None:
    """Return the torchvision name of `key`, or None where it is not in `branch`."""
    match = re.match(branch.prefix, key)
    if not match:
        return None
    name = key[match.end() :]
    for pattern, replacement in entry.names:
        name = re.sub(pattern, replacement, name)
    return name


def _has_backbone(keys: Iterable[str], entry: Format, branch: Branch) -> bool:
    return any(_tv_name(key, entry, branch) == _PROBE for key in keys)


def _recognize(content: Any, path: Path) -> Format:
    for entry in FORMATS:
        if any(_get(content, name) != value for name, value in entry.entries.items()):
            continue
        for branch in entry.branches.values():
            keys = [_WRAPPERS.sub("", str(key)) for key in _find_tensors(content, entry, branch)]
            marked = all(any(re.search(mark, key) for key in keys) for mark in entry.marks)
            if marked and _has_backbone(keys, entry, branch):
                return entry
    mappings = (_get(content, name) for name in ("state_dict", "model", ""))
    state = next((mapping for mapping in mappings if isinstance(mapping, Mapping)), {})
    shown = shorten([str(key) for key in state], 6) or f"a {type(content).__name__}"
    raise ValueError(
        f"{path} is in no known format: no ResNet under any known prefix (it holds {shown}); "
        f"--from takes one of {', '.join(BY_NAME)}"
    )


def _choose_branch(entry: Format, content: Any, wanted: str | None, path: Path) -> tuple[str, Branch]:
    """Return the branch that `wanted` names in this or another code base's terms, or the default one."""
    roles = next((role for role in ROLES if wanted in role), {wanted})
    names = [name for name in entry.branches if wanted in (None, name)] or [n for n in entry.branches if n in roles]
    if not names:
        raise ValueError(f"{entry.name} files have no branch {wanted!r}; --branch takes {' or '.join(entry.branches)}")
    name = names[0]
    present = [
        other
        for other, branch in entry.branches.items()
        if _has_backbone(_unwrap(_find_tensors(content, entry, branch), path), entry, branch)
    ]
    if name not in present:
        has = f"it has {' and '.join(present)}: --branch {present[0]}" if present else "nor any other"
        raise ValueError(f"{path} read as {entry.name} has no {name} encoder ({has})")
    return name, entry.branches[name]


def _sort_keys(
    keys: Mapping[str, Any], entry: Format, branch: Branch, path: Path, drop: tuple[str, ...] = ()
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Sort every key into the backbone (torchvision name → key) or into what is dropped (reason → keys).

    Raises:
        ValueError: names the keys that are neither.
    """
    found: dict[str, str] = {}
    dropped: dict[str, list[str]] = {}
    unknown = []
    others = {n: b for n, b in entry.branches.items() if b is not branch and b.container == branch.container}
    rules = {rule: re.compile(pattern) for rule, pattern in entry.drop.items()}
    for pattern in drop:
        try:
            rules[f"--drop {pattern}"] = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"--drop {pattern} is no regular expression: {error}") from error
    for key, value in keys.items():
        rule = next((rule for rule, pattern in rules.items() if pattern.search(key)), None)
        other = next((n for n, b in others.items() if re.match(b.prefix, key)), None)
        name = _tv_name(key, entry, branch)
        if rule is not None:
            dropped.setdefault(rule, []).append(key)
        elif name is None and other is not None:
            dropped.setdefault(f"the {other} encoder", []).append(key)
        elif name is not None and isinstance(value, files.Inert):
            raise ValueError(f"{path}: {key} is stored as {value.name}, not as a plain tensor")
        elif name is None or not isinstance(value, _TENSORS):
            unknown.append(key)
        elif name in found:
            raise ValueError(f"{path}: {key} and {found[name]} are both {name}")
        else:
            found[name] = key
    if unknown:
        raise ValueError(
            f"{path} read as {entry.name} has {len(unknown)} keys without a rule: {shorten(unknown)}; "
            "--drop REGEX leaves keys out, --from names another format"
        )
    return found, dropped


def _as_tensor(value: Any, key: str, limit: int, path: Path) -> Tensor:
    """Return a float32 copy (int64 for counters) that does not need the file any more."""
    if isinstance(value, Tensor) and value.layout != torch.strided:
        raise ValueError(f"{path}: {key} is stored as {value.layout}, not as a plain tensor")
    if (claimed := value.nbytes) > limit:
        raise ValueError(f"{path}: {key} claims {claimed:,} bytes where the file has {limit:,} left for it")
    if not isinstance(value, Tensor):
        try:
            value = torch.from_numpy(np.array(value))
        except (TypeError, ValueError) as error:  # objects, strings, records, another byte order
            raise ValueError(f"{path}: {key} is an array of {value.dtype}, not of plain numbers") from error
    if value.device.type == "meta":
        raise ValueError(f"{path}: {key} is a tensor of the meta device: it has a shape and no values")
    if is_counter(key):
        return _as_counter(value, key, path)
    if value.dtype not in (torch.float32, *_HALF):
        raise ValueError(f"{path}: {key} is {value.dtype}, a backbone's tensors are float32, float16 or bfloat16")
    tensor = value.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{path}: {key} holds {int((~torch.isfinite(tensor)).sum())} values that are not finite")
    if key.endswith("running_var") and (tensor < 0).any():
        raise ValueError(f"{path}: {key} holds {int((tensor < 0).sum())} negative values, which are no variances")
    return tensor


def _as_counter(value: Tensor, key: str, path: Path) -> Tensor:
    """Return BN's step counter as an int64 scalar."""
    if value.numel() != 1:
        raise ValueError(f"{path}: {key} has shape {tuple(value.shape)}, a step counter is one number")
    steps = value.item()
    if isinstance(steps, complex) or not 0 <= steps < 2**63 or steps != int(steps):
        raise ValueError(f"{path}: {key} is {steps}, a step counter is a whole number from 0")
    return torch.tensor(int(steps))


def _complete(tensors: dict[str, Tensor], entry: Format, path: Path) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    """Return the architecture, its tensors in order, and notes; raise ValueError where one is missing or left over."""
    notes: tuple[str, ...] = ()
    try:
        arch = archs.infer({name: tuple(tensor.shape) for name, tensor in tensors.items()}, entry.cifar)
        counters = [name for name in archs.expected(arch) if is_counter(name)]
        if not any(name in tensors for name in counters):
            tensors = tensors | {name: torch.tensor(0) for name in counters}
            notes = (f"the file has no BN step counters: {len(counters)} num_batches_tracked set to 0",)
        archs.check_whole({name: tuple(tensor.shape) for name, tensor in tensors.items()}, arch)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return arch, {name: tensors[name] for name in archs.expected(arch)}, notes


def _check_style(content: Any, entry: Format, explicit: bool, path: Path) -> tuple[str, ...]:
    """Refuse a file whose names and shapes fit but whose weights are for another network, unless --from is given."""
    for dotted, pattern, reason in entry.refuse:
        match = re.search(pattern, str(_get(content, dotted) or ""))
        if match and not explicit:
            raise ValueError(
                f"{path}: {reason.format(match.group())}, which is another network than torchvision's; if this one was "
                f"trained on RGB images with the stride in the 3×3 convolution, say so with --from {entry.name}"
            )
    if entry.name == "detectron2" and not _get(content, "__author__"):
        return ("the file does not state its input: RGB, stride in the 3×3 convolution are assumed",)
    return ()


def _read_meta(content: Any, entry: Format, arch: str, path: Path) -> dict[str, Any]:
    """Return what the file says about its training.

    Raises:
        ValueError: the file is of a later version, or names another network than its shapes show.
    """
    stored = _get(content, "meta")
    plain = (str, int, float, bool, type(None))
    stored = stored if isinstance(stored, Mapping) else {}
    meta = {str(key): value for key, value in stored.items() if type(value) in plain and key != "cfg"}
    if entry.name == OWN:
        if content.get("version", 1) != 1:
            raise ValueError(
                f"{path} is version {content['version']} of this suite's checkpoints; this code reads version 1"
            )
        stem = "" if meta.get("stem", "imagenet") == "imagenet" else f"_{meta['stem']}"
        if (stated := f"{meta.get('arch', arch)}{stem}") not in (arch, arch.removesuffix("_cifar")):
            raise ValueError(f"{path} says it is {stated}, its tensors are {arch}'s")
    else:
        meta.pop("backbone_id", None)  # other files are identified by their sha256
    if entry.method:
        meta.setdefault("method", entry.method)
    if type(epoch := _get(content, "epoch")) is int:
        meta.setdefault("epoch", epoch)
    return meta
