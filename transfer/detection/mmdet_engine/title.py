"""The title of a record: the resolved config in words."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.config import Config

from transfer.changes import flat
from transfer.detection.mmdet_engine import OPERATIONS

AUTOCAST = {"AmpOptimWrapper": "float16 autocast", "CpuAmpOptimWrapper": "bfloat16 autocast"}


def compose_title(cfg: Config, batch: int, own_statistics: bool, changes: Sequence[str]) -> str:
    """Return detector, norm, data and schedule of a resolved config with `batch` images per optimiser step.

    Batch norm with `own_statistics` in each process and `changes` by --cfg-options are unusual and come last.
    """
    model, network = cfg.model, cfg.model.backbone
    wrapper, optimizer = cfg.optim_wrapper, cfg.optim_wrapper.optimizer
    head = model.get("roi_head") or {}
    parts = "C4" if head.get("shared_head") else (model.get("neck") or {}).get("type", "no neck")
    parts += " with extra norm" * ((head.get("shared_head") or {}).get("type") == "Res5ExtraNorm")
    norms = {
        name.partition(".")[0]: kind for name, kind in flat(model.to_dict()).items() if name.endswith("norm_cfg.type")
    }
    kinds = {kind: [part for part, other in norms.items() if other == kind] for kind in norms.values()}
    accumulate = wrapper.get("accumulative_counts", 1)
    unusual = ["frozen backbone"] if cfg.get("freeze_backbone") else []
    unusual += [AUTOCAST[wrapper.type]] if wrapper.type in AUTOCAST else []
    unusual += [f"gradients of {accumulate} batches accumulated"] if accumulate > 1 else []
    unusual += ["batch norm of each process"] if own_statistics else []
    line = (
        f"mmdet: {model.type} on {network.type}-{network.depth}, {parts}, "
        f"{', '.join(f'{kind} in {chr(32).join(where)}' for kind, where in kinds.items())}, "
        f"{cfg.get('layout') or ('scenes' if cfg.get('scenes') else 'own data')}, "
        f"{cfg.train_cfg.max_iters // accumulate} iterations of {batch}, "
        f"{optimizer.type} lr {optimizer.lr:g} wd {optimizer.get('weight_decay', 0):g}, {OPERATIONS}'s operations"
    )
    return ", ".join([line, *unusual]) + (f"; changed: {' '.join(changes)}" if changes else "")
