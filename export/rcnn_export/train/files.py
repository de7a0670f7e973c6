"""Files that are written whole or not at all."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from rcnn_export.errors import ExportError


@contextlib.contextmanager
def replacing(*paths: Path) -> Iterator[list[Path]]:
    """Yields a partial file to write for each path, and at the end moves each into place in one step.

    Raises:
        ExportError: a file cannot be written, for example because the disk is full; the earlier files at ``paths`` are kept.
    """
    partials = [path.with_name(path.name + ".partial") for path in paths]
    try:
        yield partials
        for partial, path in zip(partials, paths, strict=True):
            partial.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch raises a RuntimeError after the OSError
        for partial in partials:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        causes = (error, error.__context__)
        reason = next((cause.strerror for cause in causes if isinstance(cause, OSError)), str(error))
        raise ExportError(f"cannot write {paths[0]}: {reason}; the earlier files are unchanged") from error
