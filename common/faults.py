"""One line for what libraries report in many: memory that ran out, an error or the death of a loader process."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path

SHARED = Path("/dev/shm")  # shared memory on Linux, through which loader processes hand over batches
ENLARGE = (
    "enlarge it (docker run --shm-size=8g, mount -o remount,size=8g /dev/shm), or use fewer --data.workers "
    "(benchmarks: --workers); 0 needs none"
)
_MEMORY = re.compile(r"out of memory|can't allocate memory|Insufficient memory")
_DIED = re.compile(r"DataLoader worker \(pid\S* [\d, ]+\) (?:is killed by signal: ([\w ]+)|exited unexpectedly)")
_CODE = re.compile(r"exited unexpectedly with exit code (\d+)")
_CAUGHT = re.compile(r"Caught \w+ in DataLoader worker process \d+\.\n.*^[\w.]+: (.*)", re.DOTALL | re.MULTILINE)


def explain(error: BaseException) -> str | None:
    """Return one line for an error of a loader process and for memory that ran out; None for any other error."""
    if isinstance(error, MemoryError) or _MEMORY.search(str(error)):
        reason = " ".join(str(error).split()).split(". ")[0][-150:]
        return f"memory ran out ({reason or 'of Python'}): smaller images, batches or fewer loader processes take less"
    text = f"{error.__cause__ or ''}\n{error}"  # the cause knows the signal or exit code where the error does not
    code = _CODE.search(text)
    if "unable to allocate shared memory" in text or (code and int(code[1]) == errno.ENOSPC):
        return f"a loader process found {describe_shared()}: {ENLARGE}"
    if caught := _CAUGHT.search(text):
        return " ".join(caught[1].split()) if isinstance(error, ValueError | OSError) else None
    died = _DIED.search(text)
    if died is None:
        return None
    way = "use fewer --data.workers (benchmarks: --workers), or 0: load in the main process"
    if died[1] == "Bus error":
        return f"a loader process died of a bus error, as a full /dev/shm causes ({describe_shared()}): {ENLARGE}"
    if died[1] == "Killed":
        return f"a loader process was killed (SIGKILL), as the system does where memory runs out: {way}"
    if died[1] or code:
        how = f"signal: {died[1]}" if died[1] else f"exit code {code and code[1]}"
        return f"a loader process died ({how}): {way}, which shows where"
    return f"a loader process died, as one does without memory or with a full /dev/shm ({describe_shared()}): {way}"


def describe_shared() -> str:
    """Return how full /dev/shm is, for a message."""
    if not SHARED.is_dir():
        return "no shared memory left"
    usage = shutil.disk_usage(SHARED)
    return f"{usage.free / 2**20:.0f} of {usage.total / 2**20:.0f} MiB of {SHARED} free"
