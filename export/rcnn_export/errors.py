"""The error this package raises for something its user can fix, and a command's exit code after Ctrl-C."""

INTERRUPTED = 130  # the exit code after Ctrl-C, as in a shell


class ExportError(Exception):
    """Says what was given, what was expected, and how to fix it."""
