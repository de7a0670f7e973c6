"""Files that are written whole or not at all."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from rcnn_export.errors import ExportError


@contextlib.contextmanager
def replacing(*paths: Path) -> Iterator[list[Path]]:
    """Gives a partial file for each path to write to, and puts them in place at the end, each in one move.

    Raises:
        ExportError: one cannot be written, say because the disk is full; what was at ``paths`` before is left.
    """
    partials = [path.with_name(path.name + ".partial") for path in paths]
    try:
        yield partials
        for partial, path in zip(partials, paths, strict=True):
            partial.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch raises its own after the system's
        for partial in partials:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        causes = (error, error.__context__)
        reason = next((cause.strerror for cause in causes if isinstance(cause, OSError)), str(error))
        raise ExportError(
            f"cannot write {paths[0]}: {reason}; what was there before is left as it was"
        ) from error
