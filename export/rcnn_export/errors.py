"""The one error this package raises for something its user can put right."""


class ExportError(Exception):
    """Says what was given, what was expected, and how to fix it."""
