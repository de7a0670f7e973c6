"""The certificates that a command's arguments name."""

from __future__ import annotations

import argparse

from .._connection import TLSConfig


def tls_config(args: argparse.Namespace) -> TLSConfig | None:
    """The certificates that the arguments name; None means no encryption."""
    if not (args.tls or args.tls_ca or args.tls_cert or args.tls_key):
        return None
    return TLSConfig(args.tls_ca, args.tls_cert, args.tls_key)
