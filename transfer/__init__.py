"""Measure checkpoints downstream: detection, segmentation, classification.

from transfer import evaluate
records = evaluate("runs/birds/last.pth", data="/data/birds", tasks=["knn", "linear"], val_fraction=0.2)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import common  # noqa: F401  says what is to be done where the environment is not active

if TYPE_CHECKING:
    from transfer.evaluation import evaluate

__all__ = ["evaluate"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: torch takes a second (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("transfer.evaluation"), name)
