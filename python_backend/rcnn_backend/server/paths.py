"""Paths that Triton can handle.

Triton starts the process of a Python model with a shell command. The command contains the paths of the model and of the
backend, unquoted. If a path has a blank or a quote, the process never starts, and the server waits for it forever.
The process also reads these paths as ASCII unless the locale says UTF-8.
"""

import os
import re
import shutil
import tempfile
from pathlib import Path

from rcnn_backend.errors import ServerError

PLAIN = r"[A-Za-z0-9_./@+-]+"
PLAIN_CHARACTERS = "letters (a to z), digits and _ . - @ +"
FOLDERS_OF_ALL = ("/tmp", "/var/tmp")
MIN_FREE_BYTES = 32 << 20  # for the backend, its stub and the log


def is_plain(path: str | Path) -> bool:
    """Whether a path, or a part of one, means the same to the shell and in every locale."""
    return re.fullmatch(PLAIN, str(path)) is not None


def plain_link(path: Path, folder: Path) -> Path:
    """The path itself if it is plain; otherwise a new link to it in ``folder``, which must have a plain path."""
    if is_plain(path):
        return path
    link = folder / "repository"
    link.symlink_to(path)
    return link


def check_plain(folder: Path) -> None:
    """Refuses an installed Triton whose path the shell would change.

    Raises:
        ServerError: the path is not plain; the message names the folder.
    """
    if not is_plain(folder):
        raise ServerError(
            f"Triton is installed in {str(folder)!r} and cannot start Python models from there: move it to a folder "
            f"whose path has only {PLAIN_CHARACTERS}"
        )


def check_separators(*folders: Path) -> None:
    """Refuses folders that cannot be listed in PATH and LD_LIBRARY_PATH.

    Raises:
        ServerError: a path has a separator; the message names the folder.
    """
    for folder in folders:
        if found := [character for character in ":;" if character in str(folder)]:
            raise ServerError(
                f"the path {str(folder)!r} has a {found[0]!r}, which separates folders in PATH and LD_LIBRARY_PATH: "
                "install rcnn-backend in a virtual environment whose path has none"
            )


def make_plain_folder() -> Path:
    """A new temporary folder on a plain path: in TMPDIR, or else in /tmp or /var/tmp.

    Raises:
        ServerError: no such folder can be written to, programs cannot run there, or there is too little space.
    """
    wanted = _temporary_folder()
    places = [place for place in (wanted, *map(Path, FOLDERS_OF_ALL)) if is_plain(place.resolve())]
    for place in places:
        if os.access(place, os.W_OK | os.X_OK):
            _check_place(place)
            return Path(tempfile.mkdtemp(prefix="rcnn-serve-", dir=place.resolve()))
    raise ServerError(
        f"the folder for temporary files is {str(wanted)!r}, and Triton cannot start Python models from there: set "
        f"TMPDIR to a folder whose path has only {PLAIN_CHARACTERS}"
    )


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:  # Python tried to write to each candidate
        raise ServerError(
            f"no folder for temporary files can be written to ({error.strerror}): set TMPDIR to a writable folder"
        ) from error


def _check_place(place: Path) -> None:
    """Refuses a folder in which programs cannot run, or with too little space.

    The backend and its stub are copied there, and AOTInductor unpacks its engines there.
    """
    if os.statvfs(place).f_flag & os.ST_NOEXEC:
        raise ServerError(
            f"{place} is mounted noexec, and Triton's Python models run a program from there: set TMPDIR to a folder "
            "where programs may run"
        )
    if (free := shutil.disk_usage(place).free) < MIN_FREE_BYTES:
        raise ServerError(
            f"{place} has {free >> 20} MiB free, and the server's temporary files need {MIN_FREE_BYTES >> 20}: free "
            "some, or set TMPDIR to another folder"
        )
