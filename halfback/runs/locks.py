"""Who works in a run's folder: one process that writes, or any number that read a checkpoint from it."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from halfback.errors import UserError

log = logging.getLogger(__name__)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else writes in this folder or loads what is in it, until the end of the block or of the process.

    The lock is the kernel's, on the folder itself: it leaves no file, moves with a folder that is renamed, and goes
    with its process, however that ends. On a file system without locks it is said that there is none.

    Raises:
        UserError: another process has the folder; or the folder is not there.
    """
    with _locked(folder, fcntl.LOCK_EX):
        yield


@contextmanager
def unchanging(folder: Path) -> Iterator[None]:
    """Nobody writes in this folder meanwhile; raises as `alone` does."""
    with _locked(folder, fcntl.LOCK_SH):
        yield


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(f"{folder} can't be locked: {error.strerror}") from None
    try:
        try:
            fcntl.flock(handle, how | fcntl.LOCK_NB)
            if not folder.exists() or not os.path.samestat(os.fstat(handle), folder.stat()):  # replaced meanwhile
                raise BlockingIOError
        except BlockingIOError:
            doing = "is at work in it" if how == fcntl.LOCK_EX else "writes in it"
            raise UserError(f"{folder} is in use: another process {doing}; wait until it is done, or stop it") from None
        except OSError as error:
            log.warning("%s can't be locked (%s): see to it that no other process works in it", folder, error.strerror)
        yield
    finally:
        os.close(handle)
