"""Resolve a task: the mmengine config of one run from the config file, the backbone, the processes and the options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jsonargparse import Namespace
from mmengine.config import Config

from converters import Backbone
from transfer.changes import changed
from transfer.openmmlab.config import (
    by_option,
    limit_workers,
    name_source,
    replace_sync_batch_norm,
    rescale,
    step_batch,
)
from transfer.openmmlab.overrides import apply
from transfer.openmmlab.weights import ModelBackbone


@dataclass(frozen=True)
class Resolved:
    """A task resolved for a backbone, the options and the processes.

    Attributes:
        cfg: mmengine's config, its data not yet found.
        weights: the backbone in OpenMMLab's format.
        batch: images per optimiser step, over all processes.
        changes: what was changed, for the screen.
        config: what the metrics depend on, for the record.
        title: the settings in words, for the record.
    """

    cfg: Config
    weights: ModelBackbone
    batch: int
    changes: tuple[str, ...]
    config: dict[str, Any]
    title: str


@dataclass(frozen=True)
class Framework:
    """What differs between mmseg and mmdet when a task is resolved.

    Attributes:
        read: reads the config of a task by name, or a user's by path.
        fit: sets the backbone's network and the input widths of the heads in a config.
        check: raises a ValueError for settings that the framework accepts but fails on.
        recorded: returns what the metrics depend on, from a config and its images per step.
        title: returns the settings in words: from a config, its images per step, whether each process has batch
            statistics of its own, and the changes by --cfg-options.
        optional: keys that a config need not have and `check` checks, by the dict that holds them.
    """

    read: Callable[[str], Config]
    fit: Callable[[Config, ModelBackbone], None]
    check: Callable[[Config], None]
    recorded: Callable[[Config, int], dict[str, Any]]
    title: Callable[[Config, int, bool, Sequence[str]], str]
    optional: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def resolve(self, options: Namespace, backbone: Backbone, kind: str, processes: int) -> Resolved:
        """Resolve a task; --cfg-options are applied last.

        Args:
            options: of the command.
            backbone: what is measured; its network replaces the task's.
            kind: "cuda" or "cpu".
            processes: how many train together.

        Raises:
            ValueError: no such task, a wrong option, or a model that cannot hold the backbone.
        """
        cfg, weights = self.read(options.task), ModelBackbone.of(backbone)
        with name_source(f"--task {options.task}"):
            self.fit(cfg, weights)
            self.check(cfg)
            changes = [rescale(cfg, processes, options.batch, options.accumulate, not options.no_scale)]
        own_statistics = processes > 1 and kind == "cpu"
        if processes == 1 or own_statistics:
            count = replace_sync_batch_norm(cfg.model)
            reason = "it needs a GPU; each process has its own statistics" if own_statistics else "one process"
            changes.append(f"BN replaces SyncBN ({count} settings): {reason}")
        if options.amp:  # evaluation stays in float32
            cfg.optim_wrapper.type = "AmpOptimWrapper" if kind == "cuda" else "CpuAmpOptimWrapper"
        limit_workers(cfg)
        before = self.recorded(cfg, step_batch(cfg, processes))
        apply(cfg, options.cfg_options, self.optional)
        with name_source(f"--cfg-options {' '.join(options.cfg_options)}"):
            self.check(cfg)
            weights.check(cfg)
            batch = step_batch(cfg, processes)
            config = self.recorded(cfg, batch)
            title = self.title(cfg, batch, own_statistics, changed(by_option(before), by_option(config)))
        return Resolved(cfg, weights, batch, tuple(changes), config, title)
