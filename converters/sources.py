"""Reads any checkpoint into a Backbone: recognises the layout, keeps one encoder, accounts for every key."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from converters import arch as archs
from converters import files, named
from converters.backbone import Backbone, Source, is_counter, some
from converters.formats import BY_NAME, FORMATS, ROLES, Branch, Format

_WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")  # of DistributedDataParallel and torch.compile
_PROBE = "layer1.0.conv1.weight"
_WIDENED = (torch.float16, torch.bfloat16)  # every value of theirs is a float32 value
_Names = dict[str, str]  # torchvision name → key in the file


@dataclass(frozen=True)
class Reading:
    """A backbone and the account of the file it came from.

    Attributes:
        backbone: what was read.
        branch: the encoder it is.
        total: number of keys where its tensors were found.
        dropped: keys left out on purpose, by the reason.
        notes: what a user should know.
    """

    backbone: Backbone
    branch: str
    total: int
    dropped: dict[str, list[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_backbone(
    path: str | Path, branch: str | None = None, source: str | None = None, trust: bool = False
) -> Backbone:
    """Read the backbone of any checkpoint known to converters/formats.py.

    Args:
        path: a file, or timm:NAME, torchvision:NAME (both pre-trained; ?pretrained=false) or random:ARCH?seed=N.
        branch: which encoder: query or key, student or teacher, …; the default is the one its authors transfer.
        source: name of the layout, when it is not to be recognised.
        trust: let the file run any code while it is read.

    Raises:
        ValueError: the file is unsafe, unknown or not one whole ResNet; the message names the keys.
    """
    return read(path, branch, source, trust).backbone


def read(
    path: str | Path,
    branch: str | None = None,
    source: str | None = None,
    trust: bool = False,
    drop: Iterable[str] = (),
) -> Reading:
    """Read as `read_backbone`, and account for every key; `drop` are more patterns of keys to leave out."""
    if named.is_named(str(path)):
        if branch or source or list(drop):
            raise ValueError(f"{path} is one whole network: --branch, --from and --drop are for files")
        return _read_named(str(path))
    path = Path(path)
    tree = files.read(path, trust)
    limit = path.stat().st_size
    chosen = _by_name(source) if source else _recognise(tree, path)
    name, wanted = _choose_branch(chosen, tree, branch, path)
    keys = _clean(_container(tree, chosen, wanted), path)
    found, dropped = _sort_keys(keys, chosen, wanted, path, tuple(drop))
    tensors = {}
    for tv, key in found.items():  # together they cannot be larger than the file
        tensors[tv] = _as_tensor(keys[key], key, limit, path)
        limit -= _bytes(keys[key])
    foreign = _check_style(tree, chosen, explicit=source is not None, path=path)
    arch, tensors, notes = _complete(tensors, chosen, path)
    meta = _meta(tree, chosen, arch, path)
    stored = {str(keys[key].dtype).removeprefix("torch.") for tv, key in found.items() if not is_counter(tv)}
    if wide := sorted(stored - {"float32"}):
        notes = (*notes, f"stored as {', '.join(wide)}, read as float32: no value changes")
    backbone = Backbone(tensors, arch, Source(chosen.name, str(path), files.sha256(path)), meta)
    return Reading(backbone, name, len(keys), dropped, (*foreign, *notes))


def backbone_state(state: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Take the trunk out of a built model's state_dict and give it torchvision's names.

    Args:
        state: what `model.state_dict()` returns, heads and all.
        layout: the name of the model's layout in converters/formats.py: torchvision, timm, detectron2, openmmlab.

    Raises:
        ValueError: a key belongs neither to the trunk nor to a part that the layout is known to have.
    """
    entry = _by_name(layout)
    keys = _clean(state, Path(f"a {layout} model"))
    found, _ = _sort_keys(keys, entry, next(iter(entry.branches.values())), Path(f"a {layout} model"))
    return {tv: keys[key] for tv, key in found.items()}


def _read_named(path: str) -> Reading:
    loaded = named.load(path)
    shapes = {key: tuple(value.shape) for key, value in loaded.state.items()}
    arch = loaded.arch or _infer(shapes, "_cifar", path)
    _check_whole(shapes, arch, path)
    tensors = {key: loaded.state[key].detach().clone() for key in archs.expected(arch)}
    digest = hashlib.sha256()
    for key, tensor in tensors.items():
        digest.update(key.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    backbone = Backbone(tensors, arch, Source(loaded.kind, path, digest.hexdigest()), loaded.meta)
    loaded.check(backbone)
    return Reading(backbone, "network", len(tensors))


def _by_name(name: str) -> Format:
    if name not in BY_NAME:
        raise ValueError(f"layout {name!r} is unknown; --from takes one of {', '.join(BY_NAME)}")
    return BY_NAME[name]


def _at(tree: Any, dotted: str) -> Any:
    for step in dotted.split(".") if dotted else ():
        tree = tree.get(step) if isinstance(tree, Mapping) else None
    return tree


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray | np.generic)


def _container(tree: Any, entry: Format, branch: Branch) -> Mapping[str, Any]:
    """Return the first mapping with tensors among the places where `branch` of `entry` may be, or {}."""
    for place in (branch.container,) if branch.container is not None else entry.containers:
        inside = _at(tree, place)
        if isinstance(inside, Mapping) and any(_is_tensor(value) for value in inside.values()):
            return inside
    return {}


def _clean(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Free keys of wrappers; ValueError when two keys become one."""
    keys: dict[str, Any] = {}
    for raw, value in state.items():
        key = _WRAPPERS.sub("", str(raw))
        if key in keys:
            raise ValueError(f"{path} holds {key} twice, with and without a wrapper's prefix (module., _orig_mod.)")
        keys[key] = value
    return keys


def _tv_name(key: str, entry: Format, branch: Branch) -> str | None:
    """Return the torchvision name of `key` in `branch`, or None when it is not of that branch."""
    match = re.match(branch.prefix, key)
    if not match:
        return None
    name = key[match.end() :]
    for pattern, replacement in entry.names:
        name = re.sub(pattern, replacement, name)
    return name


def _has_backbone(keys: Iterable[str], entry: Format, branch: Branch) -> bool:
    return any(_tv_name(key, entry, branch) == _PROBE for key in keys)


def _recognise(tree: Any, path: Path) -> Format:
    for entry in FORMATS:
        if not all(
            _at(tree, key) is not None and value in (None, _at(tree, key)) for key, value in entry.entries.items()
        ):
            continue
        for branch in entry.branches.values():
            keys = [_WRAPPERS.sub("", str(key)) for key in _container(tree, entry, branch)]
            marked = all(any(re.search(mark, key) for key in keys) for mark in entry.marks)
            if keys and marked and _has_backbone(keys, entry, branch):
                return entry
    state = next((s for s in (_at(tree, c) for c in ("state_dict", "model", "")) if isinstance(s, Mapping)), {})
    shown = some([str(key) for key in state], 6) or f"a {type(tree).__name__}"
    raise ValueError(
        f"{path} has no layout known here: no ResNet trunk under any known prefix (it holds {shown}); "
        f"--from takes one of {', '.join(BY_NAME)}"
    )


def _choose_branch(entry: Format, tree: Any, asked: str | None, path: Path) -> tuple[str, Branch]:
    """Return the branch asked for, by its name here or another code base's, or the default one."""
    roles = next((role for role in ROLES if asked in role), {asked})
    names = [name for name in entry.branches if asked in (None, name)] or [n for n in entry.branches if n in roles]
    if not names:
        raise ValueError(f"{entry.name} files have no branch {asked!r}; --branch takes {' or '.join(entry.branches)}")
    name = names[0]
    present = [
        other
        for other, branch in entry.branches.items()
        if _has_backbone(_clean(_container(tree, entry, branch), path), entry, branch)
    ]
    if name not in present:
        has = f"it has {' and '.join(present)}: --branch {present[0]}" if present else "nor any other"
        raise ValueError(f"{path} read as {entry.name} has no {name} encoder ({has})")
    return name, entry.branches[name]


def _sort_keys(
    keys: Mapping[str, Any], entry: Format, branch: Branch, path: Path, more: tuple[str, ...] = ()
) -> tuple[_Names, dict[str, list[str]]]:
    """Give every key its place: backbone, dropped for a reason, or the error that it has none."""
    found: _Names = {}
    dropped: dict[str, list[str]] = {}
    unknown = []
    others = {n: b for n, b in entry.branches.items() if b is not branch and b.container == branch.container}
    rules = {rule: re.compile(pattern) for rule, pattern in entry.drop.items()}
    for pattern in more:
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
        elif name is None or not _is_tensor(value):
            unknown.append(key)
        elif name in found:
            raise ValueError(f"{path}: {key} and {found[name]} are both {name}")
        else:
            found[name] = key
    if unknown:
        raise ValueError(
            f"{path} read as {entry.name} has {len(unknown)} keys without a rule: {some(unknown)}; "
            "--drop REGEX leaves keys out, --from names another layout"
        )
    return found, dropped


def _bytes(value: Any) -> int:
    return int(value.numel() * value.element_size() if isinstance(value, Tensor) else value.nbytes)


def _from_numpy(value: Any, key: str, path: Path) -> Tensor:
    try:
        return torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:  # objects, strings, records, another byte order
        raise ValueError(f"{path}: {key} is an array of {value.dtype}, not of plain numbers") from error


def _as_tensor(value: Any, key: str, limit: int, path: Path) -> Tensor:
    """Return a float32 copy (int64 for counters) that no longer needs the file."""
    if isinstance(value, Tensor) and value.layout != torch.strided:
        raise ValueError(f"{path}: {key} is stored as {value.layout}, not as a plain tensor")
    if (claimed := _bytes(value)) > limit:
        raise ValueError(f"{path}: {key} claims {claimed:,} bytes where the file has {limit:,} left for it")
    tensor = value if isinstance(value, Tensor) else _from_numpy(value, key, path)
    if tensor.device.type == "meta":
        raise ValueError(f"{path}: {key} is a tensor of the meta device: it has a shape and no values")
    if is_counter(key):
        return tensor.detach().reshape(()).to(torch.int64, copy=True)
    if tensor.dtype not in (torch.float32, *_WIDENED):
        raise ValueError(f"{path}: {key} is {tensor.dtype}, a backbone's tensors are float32, float16 or bfloat16")
    tensor = tensor.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{path}: {key} holds {int((~torch.isfinite(tensor)).sum())} values that are not finite")
    return tensor


def _infer(shapes: archs.Shapes, cifar: str, path: Path | str) -> str:
    try:
        return archs.infer(shapes, cifar)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_whole(shapes: archs.Shapes, arch: str, path: Path | str) -> None:
    expected = archs.expected(arch)
    wrong = [f"{n} has shape {shapes[n]}, not {s}" for n, s in expected.items() if n in shapes and shapes[n] != s]
    missing = [name for name in expected if name not in shapes]
    extra = [name for name in shapes if name not in expected]
    told = [
        f"{len(names)} {what}: {some(names)}"
        for what, names in (("missing", missing), ("left over", extra), ("of another shape", wrong))
        if names
    ]
    if told:
        raise ValueError(f"{path} is not one whole {arch}: {'; '.join(told)}")


def _complete(tensors: dict[str, Tensor], entry: Format, path: Path) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    """Name the network, check that it is whole, and order its tensors."""
    arch = _infer({name: tuple(t.shape) for name, t in tensors.items()}, entry.cifar, path)
    notes: tuple[str, ...] = ()
    counters = [name for name in archs.expected(arch) if is_counter(name)]
    if not any(name in tensors for name in counters):
        tensors = tensors | {name: torch.tensor(0) for name in counters}
        notes = (f"the file has no BN step counters: {len(counters)} num_batches_tracked set to 0",)
    _check_whole({name: tuple(t.shape) for name, t in tensors.items()}, arch, path)
    return arch, {name: tensors[name] for name in archs.expected(arch)}, notes


def _detectron2_style(tree: Any) -> tuple[str, str]:
    author = tree.get("__author__") if isinstance(tree, Mapping) else None
    if author == "Detectron2 Model Zoo":
        return "detectron2's zoo trains most networks on BGR images with STRIDE_IN_1X1", ""
    note = "the file does not tell its input: taken as RGB, stride in the 3×3 convolution"
    return "", "" if author else note


def _openmmlab_style(tree: Any) -> tuple[str, str]:
    config = str(_at(tree, "meta.cfg") or "")
    caffe = re.search(r"""style['"]?\s*[=:]\s*['"]caffe|(bgr_)?to_rgb['"]?\s*[=:]\s*False""", config)
    return (f"its config says {caffe.group()}" if caffe else ""), ""


_STYLES: dict[str, Callable[[Any], tuple[str, str]]] = {
    "detectron2": _detectron2_style,
    "openmmlab": _openmmlab_style,
}


def _check_style(tree: Any, entry: Format, explicit: bool, path: Path) -> tuple[str, ...]:
    """Refuse files whose names and shapes fit and whose numbers mean another network; --from overrules."""
    refusal, note = _STYLES.get(entry.name, lambda tree: ("", ""))(tree)
    if refusal and not explicit:
        raise ValueError(
            f"{path}: {refusal}, which is another network than torchvision's; if this one was trained on RGB "
            f"images with the stride in the 3×3 convolution, say so with --from {entry.name}"
        )
    return (note,) if note else ()


def _meta(tree: Any, entry: Format, arch: str, path: Path) -> dict[str, Any]:
    """Return what the file says of its training; ValueError if it names another network than its shapes do."""
    told = tree.get("meta") if isinstance(tree, Mapping) else None
    plain = (str, int, float, bool, type(None))
    meta = {str(k): v for k, v in told.items() if type(v) in plain and k != "cfg"} if isinstance(told, Mapping) else {}
    if entry.name == "unimoco-suite":
        if tree.get("version", 1) != 1:
            raise ValueError(
                f"{path} is version {tree['version']} of this suite's checkpoints; this code reads version 1"
            )
        stem = "" if meta.get("stem", "imagenet") == "imagenet" else f"_{meta['stem']}"
        if (said := f"{meta.get('arch', arch)}{stem}") not in (arch, arch.removesuffix("_cifar")):
            raise ValueError(f"{path} says it is {said}, its tensors are {arch}'s")
    if entry.method:
        meta.setdefault("method", entry.method)
    if isinstance(tree, Mapping) and type(tree.get("epoch")) is int:
        meta.setdefault("epoch", tree["epoch"])
    return meta
