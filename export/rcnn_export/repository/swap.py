"""Puts new folders in the place of older ones: all of them, or none."""

import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rcnn_export.errors import ExportError


def swap_folders(new: Path, repository: Path, names: Sequence[str], outdated: Sequence[str] = ()) -> None:
    """Moves each folder ``new / name`` to ``repository / name``, and takes the ``outdated`` ones away.

    The older folders wait in a folder of their own beside ``new`` and are deleted when every new one is in its
    place. When anything fails before, interrupts included, each older folder is moved back.

    Raises:
        ExportError: a move failed, and an older folder could not be moved back either. It is kept, and the
            message says where.
        OSError: a move failed, and every older folder is back in its place.
    """
    old = Path(tempfile.mkdtemp(prefix=".rcnn-replaced-", dir=repository))
    try:
        for name in (*names, *outdated):
            if (repository / name).exists():
                (repository / name).rename(old / name)
            if name not in outdated:
                (new / name).rename(repository / name)
    except BaseException as error:
        _move_back(new, old, repository, names, outdated)
        if kept := sorted(path.name for path in old.iterdir()):
            raise ExportError(
                f"cannot write to the repository {repository}: {type(error).__name__} {error}. These folders of the "
                f"earlier export could not be put back: {', '.join(kept)}. They are kept in {old}: move them to "
                f"{repository}"
            ) from error
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def _move_back(new: Path, old: Path, repository: Path, names: Sequence[str], outdated: Sequence[str]) -> None:
    """Undoes the moves that were made; one that cannot be undone does not keep the others from it.

    What was moved is read from the folders, because an interrupt may come between a move and a note of it.
    Nothing is deleted here, so a failure loses nothing.
    """
    for name in (*names, *outdated):
        is_new_in_place = name in names and (repository / name).exists() and not (new / name).exists()
        with contextlib.suppress(BaseException):
            if is_new_in_place:
                (repository / name).rename(new / name)
            if (old / name).exists():
                (old / name).rename(repository / name)
