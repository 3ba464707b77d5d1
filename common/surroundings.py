"""What a process finds around it and libraries take for granted: open streams, a home folder, cores."""

from __future__ import annotations

import errno
import getpass
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import TextIO

import joblib

# Environment variables that commands or the libraries below them obey, as --help explains them.
VARIABLES = {
    "CUDA_VISIBLE_DEVICES": "numbers of the GPUs that may be used, such as 0,1; empty: none",
    "OMP_NUM_THREADS": "CPU threads of each process (default: the cores it may use)",
    "HF_HOME": "where weights of timm:NAME are kept (default: ~/.cache/huggingface)",
    "TORCH_HOME": "where weights of torchvision:NAME are kept (default: ~/.cache/torch)",
    "DETECTRON2_DATASETS": "folder of the data sets where --data-root is not given (default: datasets)",
    "NPROC": "processes on this machine, one per device (default: the number of GPUs, else 1)",
    "NNODES": "machines (default: 1); above 1, RDZV says where they meet",
    "RDZV": "host:port of the first machine, the same on each",
    "DRY_RUN": "1: print the command of the training, run nothing",
    "UNIMOCO_ENV": "folder of the Python environment (default: the active one, else .venv)",
}
WEIGHTS = ("HF_HOME", "TORCH_HOME")
DEVICES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


def prepare() -> None:
    """Make a command work without streams, without a home folder or a user's name, and in any locale."""
    if sys.getfilesystemencoding() != "utf-8":  # Python's C locale without its UTF-8 mode; it is fixed at the start
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    _open_streams()
    if not os.path.isdir(os.path.expanduser("~")):  # Path.expanduser fails where there is none
        os.environ["HOME"] = _temporary_home()
    try:
        getpass.getuser()
    except (KeyError, OSError):  # no passwd entry; torch's compiler and others name folders after the user
        os.environ["LOGNAME"] = str(os.getuid())


def cores() -> int:
    """Return the CPU cores that this process may use: of its affinity, and of its control group (`docker --cpus`)."""
    return int(joblib.cpu_count())


def leave_process_group() -> None:
    """End the process group of torch.distributed, of which a process that has not loaded it is no part."""
    if "torch.distributed" in sys.modules:
        from common import distributed

        distributed.stop()


def drop_output(error: OSError) -> bool:
    """Return whether an error is of standard output, which is dropped then: one more line cannot be written either."""
    if error.filename or error.errno not in (errno.EPIPE, errno.ENOSPC):
        return False
    try:
        os.write(1, b"\n")
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes what it holds once more at its end
        return True
    return False


def _open_streams() -> None:
    """Open the null device for closed streams, and print characters that a stream lacks as escapes.

    The next file to be opened would get the number of a closed stream, and with it whatever libraries print.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdout, sys.stderr = sys.stdout or _null(), sys.stderr or _null()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _null() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def _temporary_home() -> str:
    """Return a home for a user without one, such as that of `docker run --user 12345`.

    matplotlib, yapf (for mmengine), Snakemake and the hubs of weights keep settings and caches there.

    Raises:
        ValueError: the folder is somebody else's.
    """
    home = Path(tempfile.gettempdir(), f"home-of-{os.getuid()}")
    home.mkdir(mode=0o700, exist_ok=True)
    if home.stat().st_uid != os.getuid():
        raise ValueError(f"{home}: it belongs to another user; set HOME to a folder of yours")
    return str(home)
