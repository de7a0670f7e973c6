"""Paths that Triton can take.

Triton starts the process of a Python model by a line for the shell. The line holds the paths of the model and of the
backend, unquoted. Where a path has a blank or a quote, the process never starts and the server waits for it for good.
The process also reads these paths as ASCII, unless the locale says UTF-8.
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
    """Whether a path, or a part of one, is the same for the shell and in every locale."""
    return re.fullmatch(PLAIN, str(path)) is not None


def plain_link(path: Path, folder: Path) -> Path:
    """The path itself if it is plain; otherwise a new link to it in ``folder``, whose own path is plain."""
    if is_plain(path):
        return path
    link = folder / "repository"
    link.symlink_to(path)
    return link


def check_plain(folder: Path) -> None:
    """Refuses an installed Triton whose path the shell would change.

    Raises:
        ServerError: names the folder.
    """
    if not is_plain(folder):
        raise ServerError(
            f"Triton lies in {str(folder)!r} and cannot start Python models from there: move it to a folder whose path "
            f"has {PLAIN_CHARACTERS} only"
        )


def check_separators(*folders: Path) -> None:
    """Refuses folders that cannot stand in PATH and LD_LIBRARY_PATH.

    Raises:
        ServerError: names the folder.
    """
    for folder in folders:
        if found := [character for character in ":;" if character in str(folder)]:
            raise ServerError(
                f"the path {str(folder)!r} has a {found[0]!r}, which separates folders in PATH and LD_LIBRARY_PATH: "
                "install rcnn-backend in a virtual environment whose path has none"
            )


def make_plain_folder() -> Path:
    """A new temporary folder on a plain path: in TMPDIR, else in /tmp or /var/tmp.

    Raises:
        ServerError: there is no such place to write to, or programs cannot run there.
    """
    wanted = _temporary_folder()
    places = [place for place in (wanted, *map(Path, FOLDERS_OF_ALL)) if is_plain(place.resolve())]
    for place in places:
        if os.access(place, os.W_OK | os.X_OK):
            _check_place(place)
            return Path(tempfile.mkdtemp(prefix="rcnn-serve-", dir=place.resolve()))
    raise ServerError(
        f"the folder for temporary files is {str(wanted)!r}, and Triton cannot start Python models from there: set "
        f"TMPDIR to a folder whose path has {PLAIN_CHARACTERS} only"
    )


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:  # Python has tried to write to each
        raise ServerError(
            f"no folder for temporary files can be written to ({error.strerror}): set TMPDIR to one that can"
        ) from error


def _check_place(place: Path) -> None:
    """The backend and its stub are copied there, and AOTInductor unpacks its engines there."""
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
