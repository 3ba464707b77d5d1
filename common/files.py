"""Files that matter: atomic writes, errors that name the file, lines of text, hashes, and a lock on a folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems that have none
_BINARY = re.compile("[\x00-\x08\x0e-\x1f]")  # never in text


@contextlib.contextmanager
def naming(path: Path, instead_of: Path | None = None) -> Iterator[None]:
    """Name `path` in an OSError that names no file, as those of a full disk, or names `instead_of`.

    Raises:
        OSError: as the body, with the path that the user knows.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(instead_of)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call write(temporary path), then rename the file into place: after a crash `path` is the old or the new one.

    The folder is made where it is missing.

    Raises:
        OSError: it cannot be written; names `path`, and nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with naming(path, temporary):
        try:
            write(temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8; names of files that are not UTF-8 keep their bytes."""
    write_atomically(path, lambda part: part.write_bytes(text.encode("utf-8", "surrogateescape")))


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and builtins with torch.save, atomically.

    Raises:
        OSError: as `write_atomically`; torch itself reports a full disk as a RuntimeError ("unexpected pos").
    """
    import torch  # here: most commands that write files do without

    def write(part: Path) -> None:
        try:
            with part.open("wb") as file:
                torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise

    write_atomically(path, write)


def append_text(path: Path, text: str) -> None:
    """Add to the end of a text file.

    Raises:
        OSError: it cannot be written; names it.
    """
    with naming(path), path.open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)


def require_writable(folder: Path) -> None:
    """Raise an OSError where files cannot be made in a folder, which may be missing: before hours of work, not after.

    Raises:
        OSError: the nearest existing folder above is read-only, or a file is in the place of a folder.
    """
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(above))
    if not os.access(above, os.W_OK | os.X_OK):
        reason = errno.EROFS if os.statvfs(above).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(reason, os.strerror(reason), str(above))


@contextlib.contextmanager
def lock_folder(folder: Path, advice: str) -> Iterator[None]:
    """Keep other processes, also of other machines, from locking the same folder inside `with`.

    The system releases the lock when the process dies, however it dies. The lock file is beside the folder, which may
    be missing or be replaced.

    Args:
        folder: of a run.
        advice: what to do about a locked one; the end of the message.

    Raises:
        ValueError: it is locked; the message says by whom and since when.
    """
    path = folder.with_name(f".{folder.name}.lock")
    made = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path, folder, advice) as file:
        with naming(path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
            file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it is in use
                for parent in made:
                    parent.rmdir()


def _locked(path: Path, folder: Path, advice: str) -> IO[str]:
    """Return a file that this process has locked, until it is closed; raise a ValueError where another has."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            # A POSIX lock: unlike one of flock(2), no loader process inherits it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                with file:
                    file.seek(0)
                    raise ValueError(f"{folder} is in use by {file.read() or 'another process'}; {advice}") from error
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file
        file.close()  # its last holder has removed it meanwhile


def short_hash(content: bytes) -> str:
    """Return a hash of 64 bits, in hexadecimal, by which contents are told apart."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def sha256(path: Path) -> str:
    """Return the sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_lines(path: Path) -> list[str]:
    """Return the lines of a text file; bytes that are not UTF-8 come as in the names of files (PEP 383).

    Raises:
        ValueError: it is not text.
    """
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    if binary := _BINARY.search(text):
        raise ValueError(f"{path}: not a text file in UTF-8 (control character at position {binary.start()})")
    return text.removesuffix("\n").split("\n")  # names may hold the other characters at which str.splitlines splits


def listed_names(path: Path) -> list[str]:
    """Return the names in a text file, one a line; blank lines and blanks around names mean nothing.

    Raises:
        ValueError: it is not text.
    """
    return [line.strip() for line in text_lines(path) if line.strip()]
