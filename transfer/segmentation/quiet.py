"""Import and use mmseg without its output. Needs no mmseg."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout


@contextmanager
def quiet(prints: bool = True) -> Iterator[None]:
    """Suppress the deprecation warnings of mmseg and torch.

    Args:
        prints: whether to show what is printed; importing mmseg prints too.
    """
    with warnings.catch_warnings(), nullcontext() if prints else redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
