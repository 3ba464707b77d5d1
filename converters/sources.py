"""Read any checkpoint into a Backbone: recognise its format, keep one encoder, account for every key."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.cli import printable
from common.files import sha256
from converters import arch as archs
from converters import contents, files, identify, named
from converters.backbone import Backbone, Source, is_counter
from converters.contents import TENSORS, Content, WeightSet
from converters.formats import BY_NAME, OWN, Format
from converters.messages import shorten
from converters.options import is_named

_HALF = (torch.float16, torch.bfloat16)  # float32 holds each of their values
_LONGEST_META = 200  # characters of an entry; some files keep a whole config there


@dataclass(frozen=True)
class ReadOptions:
    """How to read a checkpoint file.

    Attributes:
        weights: which of the sets of weights: ema, query or key, student or teacher, …; None for the one that its
            authors transfer.
        arch: the network (a name in converters/arch.py), where the file does not decide between several.
        format: name of the checkpoint format (converters/formats.yaml); None to recognise it.
        drop: patterns of more keys to leave out.
        trust: let the file run any code while it is read.
    """

    weights: str | None = None
    arch: str | None = None
    format: str | None = None
    drop: tuple[str, ...] = ()
    trust: bool = False


DEFAULT = ReadOptions()


@dataclass(frozen=True)
class Reading:
    """A backbone and what was done with every key of its file.

    Attributes:
        backbone: the result.
        weights: the set of weights that was read.
        total: number of keys in the mapping that holds the tensors.
        dropped: keys left out on purpose, by reason.
        notes: what the user should know.
    """

    backbone: Backbone
    weights: str
    total: int
    dropped: dict[str, list[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_backbone(path: str | Path, options: ReadOptions = DEFAULT) -> Backbone:
    """Read the backbone of a checkpoint in any format of converters/formats.yaml.

    >>> from converters import read_backbone
    >>> backbone = read_backbone("random:resnet18?seed=0")  # or "runs/birds/last.pth"
    >>> backbone.arch, backbone.source.format
    ('resnet18', 'random')
    >>> network = backbone.build()  # a ResNet in eval mode
    >>> network(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 512])

    Args:
        path: a file, or timm:NAME, torchvision:NAME (both pre-trained; ?pretrained=false) or random:ARCH?seed=N.
        options: how to read a file.

    Raises:
        ValueError: the file is unsafe, unknown or not one whole ResNet; the message names the keys.
    """
    return read(path, options).backbone


def read(path: str | Path, options: ReadOptions = DEFAULT) -> Reading:
    """Read as `read_backbone` does, and account for every key."""
    if is_named(str(path)):
        if options != DEFAULT:
            raise ValueError(
                f"{path} is one whole network: --weights, --arch, --from, --drop and --trust are for files"
            )
        backbone = named.read(str(path))
        return Reading(backbone, "all", len(backbone.tensors))
    path = Path(path)
    content = Content(path, files.read(path, options.trust))
    entry = _by_name(options.format) if options.format else contents.recognize(content)
    sets = contents.find_sets(content, entry)
    chosen = contents.choose_set(sets, options.weights, entry, path)
    keys = content.tensors(chosen.container)
    found, dropped = _sort_keys(keys, entry, chosen, path, options.drop)
    limit, tensors = path.stat().st_size, {}
    for tv_name, key in found.items():  # together they cannot be larger than the file
        tensors[tv_name] = _as_tensor(keys[key], key, limit, path)
        limit -= keys[key].nbytes
    notes = () if options.weights else contents.describe_choice(sets, chosen)
    notes += identify.check_config(content, entry, forced=options.format is not None)
    arch, tensors, more = _complete(tensors, content, entry, options.arch)
    stored = {str(keys[key].dtype).removeprefix("torch.") for name, key in found.items() if not is_counter(name)}
    if half := sorted(stored - {"float32"}):
        more += (f"stored as {', '.join(half)}, read as float32: no value changes",)
    variant = "-".join([chosen.name] * (chosen != sets[0]) + [arch] * (options.arch is not None))
    source = Source(entry.name, str(path), sha256(path), chosen.name, variant)
    backbone = Backbone(tensors, arch, source, _read_meta(content, entry, arch))
    if options.arch is None and entry.name != OWN:
        more += identify.check_network(content, chosen.container, backbone)
    return Reading(backbone, chosen.name, len(keys), dropped, notes + more)


def backbone_state(state: Mapping[str, Tensor], format_name: str) -> dict[str, Tensor]:
    """Return the backbone of a built model's state_dict under torchvision's names.

    Args:
        state: what `model.state_dict()` returns, heads and all.
        format_name: the format of the model's keys: torchvision, timm, detectron2 or openmmlab.

    Raises:
        ValueError: a key belongs neither to the backbone nor to a known other part of such a model.
    """
    model, entry = Path(f"a {format_name} model"), _by_name(format_name)
    keys = contents.unwrap(state, model)
    prefix = next(iter(entry.weights.values()))[0].prefix
    found, _ = _sort_keys(keys, entry, WeightSet("model", "", prefix), model)
    return {tv_name: keys[key] for tv_name, key in found.items()}


def _by_name(name: str) -> Format:
    if name not in BY_NAME:
        raise ValueError(f"format {name!r} is unknown; --from takes one of {', '.join(BY_NAME)}")
    return BY_NAME[name]


def _sort_keys(
    keys: Mapping[str, Any], entry: Format, chosen: WeightSet, path: Path, drop: tuple[str, ...] = ()
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Sort every key into the backbone (torchvision name → key) or into what is dropped (reason → keys).

    Raises:
        ValueError: names the keys that are neither.
    """
    found: dict[str, str] = {}
    dropped: dict[str, list[str]] = {}
    unknown = []
    others = {
        place.prefix: name
        for name, places in entry.weights.items()
        for place in places
        if place.container in (None, chosen.container) and place.prefix != chosen.prefix
    }
    rules = {rule: re.compile(pattern) for rule, pattern in entry.drop.items()}
    for pattern in drop:
        try:
            rules[f"--drop {pattern}"] = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"--drop {pattern} is no regular expression: {error}") from error
    for key, value in keys.items():
        rule = next((rule for rule, pattern in rules.items() if pattern.search(key)), None)
        other = next((name for prefix, name in others.items() if re.match(prefix, key)), None)
        name = contents.torchvision_name(key, chosen.prefix, entry)
        if rule is not None:
            dropped.setdefault(rule, []).append(key)
        elif name is None and other is not None:
            dropped.setdefault(f"the {other} encoder", []).append(key)
        elif name is not None and isinstance(value, files.Inert):
            raise ValueError(f"{path}: {key} is stored as {value.name}, not as a plain tensor")
        elif name is None or not isinstance(value, TENSORS):
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


def _complete(
    tensors: dict[str, Tensor], content: Content, entry: Format, asked: str | None
) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    """Return the architecture, its tensors in order, and notes; raise ValueError where one is missing or left over."""
    notes: tuple[str, ...] = ()
    try:
        arch = asked or archs.infer({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        counters = [name for name in archs.expected(arch) if is_counter(name)]
        if not any(name in tensors for name in counters):
            tensors = tensors | {name: torch.tensor(0) for name in counters}
            notes = (f"the file has no BN step counters: {len(counters)} num_batches_tracked set to 0",)
        archs.check_whole({name: tuple(tensor.shape) for name, tensor in tensors.items()}, arch)
    except ValueError as error:
        raise ValueError(f"{content.path}: {error}") from error
    if asked is None and arch.endswith("_cifar"):
        arch, more = identify.choose_stem(content, entry, arch)
        notes += more
    return arch, {name: tensors[name] for name in archs.expected(arch)}, notes


def _read_meta(content: Content, entry: Format, arch: str) -> dict[str, Any]:
    """Return what the file says about its training.

    Raises:
        ValueError: the file is of a later version, or names another network than its shapes show.
    """
    path, stored = content.path, content.get("meta")
    plain = (str, int, float, bool, type(None))
    stored = stored if isinstance(stored, Mapping) else {}
    short = {str(k): v for k, v in stored.items() if type(v) in plain and len(str(v)) <= _LONGEST_META}
    meta = {printable(k): printable(v) if isinstance(v, str) else v for k, v in short.items()}  # names go into tables
    if entry.name == OWN:
        version = content.get("version")
        if version is not None and (type(version) is not int or version != 1):
            shown = version if type(version) in plain else f"a {type(version).__name__}"
            raise ValueError(f"{path} is version {shown} of this suite's checkpoints; this code reads version 1")
        stem = "" if meta.get("stem", "imagenet") == "imagenet" else f"_{meta['stem']}"
        if (stated := f"{meta.get('arch', arch)}{stem}") not in (arch, arch.removesuffix("_cifar")):
            raise ValueError(f"{path} says it is {stated}, its tensors are {arch}'s")
    else:
        meta.pop("backbone_id", None)  # other files are identified by their sha256
    if entry.method:
        meta.setdefault("method", entry.method)
    if type(epoch := content.get("epoch")) is int:
        meta.setdefault("epoch", epoch)
    return meta
