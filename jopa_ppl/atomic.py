"""A file is written whole or not at all, and no other file stays beside it.

The bytes go to a part file in the same folder, which then takes the name of the file. A part file
is locked while its process lives; one that a killed process has left is removed by the next write
into that folder.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from glob import escape, glob
from typing import BinaryIO

try:
    import fcntl
except ImportError:         # Windows: nothing is locked, and nothing swept
    fcntl = None            # type: ignore[assignment]

_PART = ".jopa_ppl-"


def write_whole(path: str, fill: Callable[[BinaryIO], object]) -> None:
    """Put the file that `fill` writes in the place of `path`: of its target, where that is a link.

    The mode is that of any new file (0666 less the umask). Until the new file is complete, and on
    the disk, the old one is there.

    Raises:
        OSError, ValueError: the path is not one that can be written; nothing has changed.
    """
    target = os.path.realpath(path)
    if os.path.islink(target):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    if os.path.exists(target):
        if not os.path.isfile(target):
            raise OSError("not a file")
        if not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    folder = os.path.dirname(target)
    _sweep(folder)
    file = _new(folder)
    try:
        with file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:           # Windows does not rename an open file
                file.close()
            os.replace(file.name, target)   # while it is locked, or a sweep could come between
    finally:
        with suppress(OSError):         # after an error or an interruption: else it has moved
            os.unlink(file.name)


def _new(folder: str) -> BinaryIO:
    """A new file, locked. Where a sweep took it before it was, another one, of another name: a
    second sweep that still has the first one open would remove what has its name."""
    while True:
        file = open(os.path.join(folder, f"{_PART}{secrets.token_hex(8)}.part"), "xb")
        if fcntl is None:
            return file
        with suppress(OSError):         # a file system without locks: then no sweep gets one either
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()


def _sweep(folder: str) -> None:
    """Remove part files whose processes have gone: their locks can be had."""
    if fcntl is None:
        return
    for part in glob(os.path.join(escape(folder), f"{_PART}*.part")):
        with suppress(OSError), open(part, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(part)
