"""torchrun, whose exit status is that of pre-training: 143 or 130 after a signal, 2 for a mistake.

Its own is 1 whatever happened. It passes a signal on to its processes, and waits for them to save their state for
TORCH_ELASTIC_SHUTDOWN_TIMEOUT seconds.
"""

from __future__ import annotations

import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun


def main(arguments: list[str] | None = None) -> int:
    """Run torchrun; return 0, 128 + the signal that it received, or the status of the first process that failed."""
    try:
        torchrun(arguments)
    except SignalException as error:
        return 128 + error.sigval
    except ChildFailedError as error:
        status: int = error.get_first_failure()[1].exitcode
        return status if status >= 0 else 128 - status  # negative: the signal that ended it
    return 0


if __name__ == "__main__":
    sys.exit(main())
