"""The errors of this package."""


class InvalidInputError(ValueError):
    """The request cannot be served as sent; the message says what was wrong and how to fix it.

    A server answers such a request with INVALID_ARGUMENT and counts it by ``reason``, one of a few fixed words.
    """

    def __init__(self, message: str, reason: str = "other") -> None:
        super().__init__(message)
        self.reason = reason


class RepositoryError(RuntimeError):
    """The model repository is incomplete or inconsistent; the message says where and what to run."""


class ServerError(RuntimeError):
    """The server cannot start or run; the message says why and how to fix it."""


class LostTensorError(RuntimeError):
    """A tensor that the previous step sent did not arrive; the message says which setting to change."""


class UnusableDeviceError(RuntimeError):
    """The GPU failed before the request arrived; another server can answer the request."""
