"""The one error this package raises for something its user can put right, and how a command ends after Ctrl-C."""

INTERRUPTED = 130  # the exit code after Ctrl-C, as a shell has it


class ExportError(Exception):
    """Says what was given, what was expected, and how to fix it."""
