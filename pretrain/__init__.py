"""Pre-train backbones on images with any mixture of labels.

from pretrain import UniMoCo                # the model: encoders, queue and loss
from pretrain.losses import unicon          # the loss alone
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import common  # noqa: F401  says what is to be done where the environment is not active

if TYPE_CHECKING:
    from pretrain.config import ModelConfig
    from pretrain.losses import info_nce, unicon
    from pretrain.model import UniMoCo

__all__ = ["ModelConfig", "UniMoCo", "info_nce", "unicon"]
_PLACES = {"ModelConfig": "config", "UniMoCo": "model", "info_nce": "losses", "unicon": "losses"}


def __getattr__(name: str) -> Any:
    """Import what is asked for: torch takes a second, and options are parsed without (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
