"""Replaces older folders by new ones: all of them, or none."""

import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rcnn_export.errors import ExportError


def swap_folders(new: Path, repository: Path, names: Sequence[str], outdated: Sequence[str] = ()) -> None:
    """Moves each folder ``new / name`` to ``repository / name``, and removes the ``outdated`` ones.

    The older folders are moved to a temporary folder in ``repository``, and deleted when every new folder is in its place.
    If anything fails before that, including an interrupt, each older folder is moved back.

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
    """Undoes the moves that were made. If one cannot be undone, the others are still undone.

    The folders show which moves were made, because an interrupt could come between a move and a record of it.
    Nothing is deleted here, so a failure loses nothing.
    """
    for name in (*names, *outdated):
        is_new_in_place = name in names and (repository / name).exists() and not (new / name).exists()
        with contextlib.suppress(BaseException):
            if is_new_in_place:
                (repository / name).rename(new / name)
            if (old / name).exists():
                (old / name).rename(repository / name)
