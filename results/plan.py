"""A study file: which checkpoints, which tasks, which seeds; and the cells that it expands to.

    runs: runs                                  # pre-training runs go to RUNS/NAME
    paths: {imagenet: /data/imagenet}           # {imagenet} in commands; must be there when the study runs
    checkpoints:
      unimoco:
        name: r{ratio}_s{seed}
        over: {ratio: [0, 1], seed: [0, 1]}     # every combination
        pretrain: --recipe fashion_desk --labels.ratio {ratio} --seed {seed}
        minutes: 12                             # or gpu_hours: an estimate; neither: unknown
      random:
        name: random_s{seed}
        over: {seed: [0, 1]}
        ckpt: random:resnet18?seed={seed}       # there already: a file, or SCHEME:NAME
    tasks:
      knn:
        task: knn                               # what its records call it
        command: python transfer/knn.py --ckpt {ckpt} --seeds {seed} --records {records}
        records: results/records/knn.jsonl
        where: {size: 32}                       # of the record's config: tells it from others of the task
        seeds: [0]
        only: [unimoco, r1_*]                   # families or names of checkpoints; default: all
        minutes: 2
    after: [python results/tables.py]

A cell is one command: `pretrain/NAME` for a checkpoint that is trained, `TASK/NAME/seedN` for a measurement of it.
"""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import json
import re
import shlex
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PRETRAIN = "pretrain"
TOP = ("runs", "pretrain", "paths", "checkpoints", "tasks", "after")
COST = ("minutes", "gpu_hours", "gpus")
CHECKPOINT = ("name", "over", "pretrain", "ckpt", *COST)
TASK = ("task", "command", "records", "where", "seeds", "only", *COST)
_SCHEME = re.compile(r"[a-z]+:")  # random:resnet18, timm:NAME, torchvision:NAME


@dataclass(frozen=True)
class Cell:
    """One command of a study.

    Attributes:
        name: pretrain/CHECKPOINT or TASK/CHECKPOINT/seedN.
        command: its words.
        ckpt: the checkpoint that it trains or measures: a file, or SCHEME:NAME.
        needs: the cell that trains its checkpoint, where there is one.
        task: what its Record calls the task; None of pre-training.
        seed: of its Record.
        records: file of its Record; None of pre-training.
        where: entries of its Record's config, under dotted names, as JSON: they tell it from others of the task.
        minutes: estimated wall time; None: unknown.
        gpus: devices that it is estimated for, and asks Slurm for.
    """

    name: str
    command: tuple[str, ...]
    ckpt: str
    needs: str | None = None
    task: str | None = None
    seed: int = 0
    records: Path | None = None
    where: tuple[tuple[str, str], ...] = ()
    minutes: float | None = None
    gpus: int = 0

    @property
    def is_file(self) -> bool:
        """Whether its checkpoint is a file."""
        return not _SCHEME.match(self.ckpt)

    @property
    def row(self) -> tuple[str, str]:
        """Checkpoint and task, its place in a table."""
        task, checkpoint, *_ = self.name.split("/")
        return checkpoint, task


@dataclass(frozen=True)
class Study:
    """A study file, expanded.

    Attributes:
        name: the file's name.
        text: the file's text.
        cells: a checkpoint's training before its measurements.
        paths: folders that the commands read, by the name of their placeholder.
        after: commands that follow the cells.
    """

    name: str
    text: str
    cells: tuple[Cell, ...]
    paths: Mapping[str, Path]
    after: tuple[tuple[str, ...], ...]

    def select(self, patterns: Sequence[str]) -> tuple[Cell, ...]:
        """The cells whose name, or a part of it between slashes, matches one of the patterns, and what they need.

        Raises:
            ValueError: a pattern that matches none.
        """
        if not patterns:
            return self.cells
        chosen: set[str | None] = set()
        for pattern in patterns:
            found = [c for c in self.cells if any(fnmatch.fnmatch(n, pattern) for n in (c.name, *c.name.split("/")))]
            if not found:
                names = {part for c in self.cells for part in (c.name, *c.name.split("/"))}
                raise ValueError(f"--only {pattern}: matches no cell of {self.name}{nearest(pattern, names)}")
            chosen |= {c.name for c in found} | {c.needs for c in found}
        return tuple(c for c in self.cells if c.name in chosen)


def load(path: Path, paths: Mapping[str, str] | None = None) -> Study:
    """Reads and checks a study file.

    Args:
        path: the YAML file.
        paths: replaces entries of its `paths`.

    Raises:
        ValueError: what is wrong, with file and key, in one line.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such study file{nearest(str(path), map(str, path.parent.glob('*.yaml')))}")
    try:
        text = path.read_text()
        tree = yaml.load(text, _Loader)
        return _study(path.stem, text, tree, paths or {})
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: no YAML: {' '.join(str(error).split())}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _study(name: str, text: str, tree: Any, replaced: Mapping[str, str]) -> Study:
    _check_keys("", tree, TOP, ("checkpoints", "tasks"))
    paths = _mapping("paths", tree.get("paths", {}))
    for key in replaced:
        if key not in paths:
            raise ValueError(f"--path {key}: unknown{nearest(key, paths)}; paths names {', '.join(paths) or 'none'}")
    paths = {key: str(value) for key, value in {**paths, **replaced}.items()}
    checkpoints = [
        (family, cell)
        for family, entry in _mapping("checkpoints", tree["checkpoints"]).items()
        for cell in _checkpoints(f"checkpoints.{family}", entry, tree, paths)
    ]
    _refuse_twice("checkpoints", (cell.row[0] for _, cell in checkpoints))
    tasks = [
        _measurements(f"tasks.{task}", task, entry, checkpoints, paths)
        for task, entry in _mapping("tasks", tree["tasks"]).items()
    ]
    cells: list[Cell] = []
    for _, checkpoint in checkpoints:
        cells += [checkpoint] if checkpoint.command else []
        cells += [cell for task in tasks for cell in task if cell.row[0] == checkpoint.row[0]]
    _refuse_twice("tasks", (cell.name for cell in cells))
    _refuse_twice("tasks", (shlex.join(cell.command) for cell in cells))
    after = tuple(_command("after", entry, paths) for entry in _list("after", tree.get("after", [])))
    return Study(name, text, tuple(cells), {key: Path(value) for key, value in paths.items()}, after)


def _checkpoints(key: str, entry: Any, tree: Any, paths: Mapping[str, str]) -> Iterator[Cell]:
    """A family of checkpoints; the command is empty where there is nothing to train."""
    _check_keys(key, entry, CHECKPOINT, ("name",))
    if ("pretrain" in entry) == ("ckpt" in entry):
        raise ValueError(f"{key}: one of pretrain (arguments) and ckpt (a checkpoint that is there) is needed")
    over = {k: _list(f"{key}.over.{k}", v) for k, v in _mapping(f"{key}.over", entry.get("over", {})).items()}
    minutes, gpus = _cost(key, entry)
    for values in itertools.product(*over.values()):
        known = {**paths, **dict(zip(over, map(str, values), strict=True))}
        name = _fill(f"{key}.name", entry["name"], known)
        if not re.fullmatch(r"[\w.=+-]+", name):
            raise ValueError(f"{key}.name: {name}: may hold letters, digits and . _ = + -")
        if "ckpt" in entry:
            cell = Cell(f"{PRETRAIN}/{name}", (), _fill(f"{key}.ckpt", entry["ckpt"], known))
            if cell.is_file and not Path(cell.ckpt).is_file():
                raise ValueError(f"{key}.ckpt: {cell.ckpt}: no such file; other networks are SCHEME:NAME")
            yield cell
            continue
        runs = str(tree.get("runs", "runs"))
        front = str(tree.get("pretrain", "bash pretrain/run.sh"))
        words = (*_command("pretrain", front, paths), "--runs", runs, "--name", name)
        words += _words(f"{key}.pretrain", entry["pretrain"], known)
        yield Cell(f"{PRETRAIN}/{name}", words, f"{runs}/{name}/last.pth", minutes=minutes, gpus=gpus)


def _measurements(
    key: str, name: str, entry: Any, checkpoints: Sequence[tuple[str, Cell]], paths: Mapping[str, str]
) -> list[Cell]:
    """A task on every checkpoint that it is meant for."""
    if name == PRETRAIN or not re.fullmatch(r"[\w.=+-]+", name):
        raise ValueError(f"{key}: a task may not be called {name}: letters, digits and . _ = + -, not {PRETRAIN}")
    _check_keys(key, entry, TASK, ("task", "command", "records"))
    for placeholder in ("ckpt", "seed", "records"):
        if f"{{{placeholder}}}" not in str(entry["command"]):
            raise ValueError(f"{key}.command: {{{placeholder}}} is missing")
    names = {cell.row[0] for _, cell in checkpoints} | {family for family, _ in checkpoints}
    only = [str(pattern) for pattern in _list(f"{key}.only", entry.get("only", ["*"]))]
    for pattern in only:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"{key}.only: {pattern}: matches no checkpoint{nearest(pattern, names)}")
    seeds = _list(f"{key}.seeds", entry.get("seeds", [0]))
    for seed in seeds:
        if type(seed) is not int:
            raise ValueError(f"{key}.seeds: {seed!r}: seeds are whole numbers")
    minutes, gpus = _cost(key, entry)
    cells = []
    for family, checkpoint in checkpoints:
        label = checkpoint.row[0]
        if not any(fnmatch.fnmatch(n, pattern) for n in (family, label) for pattern in only):
            continue
        for seed in seeds:
            known = {**paths, "ckpt": checkpoint.ckpt, "seed": str(seed), "records": str(entry["records"])}
            command = _command(f"{key}.command", entry["command"], known)
            where = _where(f"{key}.where", entry.get("where", {}), known)
            cells.append(
                Cell(
                    f"{name}/{label}/seed{seed}", command, checkpoint.ckpt,
                    needs=checkpoint.name if checkpoint.command else None, task=str(entry["task"]), seed=seed,
                    records=Path(entry["records"]), where=where, minutes=minutes, gpus=gpus,
                )
            )  # fmt: skip
    return cells


def _where(key: str, entry: Any, known: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Conditions on the config of a Record: (dotted name, value as JSON)."""
    return tuple(
        (name, json.dumps(_fill(f"{key}.{name}", value, known) if isinstance(value, str) else value))
        for name, value in _mapping(key, entry).items()
    )


def _cost(key: str, entry: Mapping[str, Any]) -> tuple[float | None, int]:
    """Estimated wall minutes and number of devices."""
    for name in COST:
        value = entry.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ValueError(f"{key}.{name}: {value!r}: must be a number, 0 or more")
    gpus = entry.get("gpus", 0)
    if int(gpus) != gpus:
        raise ValueError(f"{key}.gpus: {gpus}: must be a whole number")
    if "gpu_hours" not in entry:
        return entry.get("minutes"), int(gpus)
    if "minutes" in entry or not gpus:
        raise ValueError(f"{key}.gpu_hours: needs gpus, and takes the place of minutes")
    return 60 * entry["gpu_hours"] / gpus, int(gpus)


def _command(key: str, template: Any, known: Mapping[str, str]) -> tuple[str, ...]:
    """A command's words; its script has to be there."""
    words = _words(key, template, known)
    if not words:
        raise ValueError(f"{key}: an empty command")
    script = next((Path(word) for word in words if word.endswith((".py", ".sh"))), None)
    if script and not script.is_file():
        near = nearest(str(script), map(str, script.parent.glob(f"*{script.suffix}")))
        raise ValueError(f"{key}: {script}: no such file{near}")
    return words


def _words(key: str, template: Any, known: Mapping[str, str]) -> tuple[str, ...]:
    try:
        words = shlex.split(str(template))
    except ValueError as error:
        raise ValueError(f"{key}: {template}: {error}") from error
    return tuple(_fill(key, word, known) for word in words)


def _fill(key: str, template: Any, known: Mapping[str, str]) -> str:
    """Replaces {placeholders}."""
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(str(template)) if field is not None]
    except ValueError as error:
        raise ValueError(f"{key}: {template}: {error}; a brace is written twice") from error
    for field in fields:
        if field not in known:
            near = nearest(field, known)
            raise ValueError(f"{key}: {{{field}}}: unknown placeholder{near}; there are {', '.join(known) or 'none'}")
    return str(template).format_map(known)


def _check_keys(key: str, entry: Any, known: Sequence[str], needed: Sequence[str]) -> None:
    place = f"{key}." if key else ""
    for name in _mapping(key, entry):
        if name not in known:
            raise ValueError(f"{place}{name}: unknown key{nearest(str(name), known)}; there are {', '.join(known)}")
    for name in needed:
        if name not in entry:
            raise ValueError(f"{place}{name}: is missing")


def _mapping(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{key or 'the file'}: {value!r}: holds keys of its own")
    return {str(name): entry for name, entry in value.items()}


def _list(key: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or any(isinstance(v, bool | dict | list | None) for v in value):
        raise ValueError(f"{key}: {value!r}: must be a list of numbers or words, [a, b]")
    return value


def _refuse_twice(key: str, names: Iterable[str]) -> None:
    for name, times in Counter(names).items():
        if times > 1:
            raise ValueError(f"{key}: {name} comes {times} times; is a placeholder missing in a name or a command?")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message: the known name that is most like a wrong one, if there is one."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


class _Loader(yaml.SafeLoader):
    """Refuses a key that comes twice: YAML's own rule is that the last one wins, silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(name, deep=True) for name, _ in node.value]
        for name, times in Counter(map(str, names)).items():
            if times > 1:
                raise ValueError(f"{name}: comes {times} times, at line {node.start_mark.line + 1} and below")
        return super().construct_mapping(node, deep)
