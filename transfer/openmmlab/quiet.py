"""Import and use OpenMMLab's packages without their output. Needs none of them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout


@contextmanager
def quiet(prints: bool = True) -> Iterator[None]:
    """Suppress the deprecation warnings of OpenMMLab and torch.

    Args:
        prints: whether to show what is printed; importing mmseg and mmdet prints too.
    """
    with warnings.catch_warnings(), nullcontext() if prints else redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
