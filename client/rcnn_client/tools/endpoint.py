"""A served model, and how the commands connect to it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

from .. import Detector, DetectorInfo, TLSConfig
from .certificates import tls_config


@dataclass(frozen=True)
class Endpoint:
    """A model on a server; `tls` and `headers` as `Detector` takes them."""

    url: str
    model: str
    tls: TLSConfig | None = None
    headers: Mapping[str, str] | None = None

    @staticmethod
    def of(args: argparse.Namespace) -> Endpoint:
        """The model that the arguments of `add_server_arguments` name."""
        return Endpoint(args.url, args.model, tls_config(args), dict(args.header))

    def __str__(self) -> str:
        return f"{self.url}/{self.model}"

    def connect(self) -> Detector:
        """A client of the model."""
        return Detector(self.url, self.model, tls=self.tls, headers=self.headers)

    def info(self) -> DetectorInfo:
        """What the server says about the model.

        Raises:
            RcnnError: the server or the model cannot be used.
        """
        with self.connect() as detector:
            return detector.info()
