"""The command ``rcnn-serve``: tritonserver on a model repository."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rcnn_backend.errors import RepositoryError, ServerError
from rcnn_backend.server.access import Access
from rcnn_backend.server.addresses import PROTOCOLS
from rcnn_backend.server.arguments import parse_arguments
from rcnn_backend.server.log import Repeats, is_routine
from rcnn_backend.server.stub_processes import tell_dead

if TYPE_CHECKING:
    from rcnn_backend.server.local_server import RunningServer

MAX_TEMPORARY_LOG_BYTES = 16 << 20
MAX_OPEN_FILES = 65536  # of the server; each connection is one


def main(argv: list[str] | None = None) -> int:
    """Serves until a signal arrives or the server ends. Returns the server's exit code, or 1 if it did not start."""
    options, flags = parse_arguments(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may contain any bytes
    _raise_open_files()
    # These imports take a second, and --help should not wait for them.
    from rcnn_backend.server.gpus import VISIBLE, choose_gpus
    from rcnn_backend.server.local_server import running_server

    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM stops it as Ctrl-C does
    try:
        if options.gpus:
            os.environ[VISIBLE] = choose_gpus(options.gpus)
        if options.rebuild and (code := _rebuild(options.repository, options.models)):
            return code
        print(f"Starting tritonserver on {options.repository} ...", flush=True)
        with running_server(
            options.repository,
            options.models,
            host=options.host,
            ports={protocol: getattr(options, f"{protocol}_port") for protocol in PROTOCOLS},
            flags=flags,
            access=read_access(options),
            trace=options.trace,
            mps=options.mps,
            fused=options.fused,
            images_in_flight=options.images_in_flight,
            ready_timeout_s=options.ready_timeout_s,
            hang_timeout_s=options.hang_timeout_s,
            log=options.log_file,
            log_to_stderr=not options.log_file and any(flag.startswith("--log-") for flag in flags),
        ) as server:
            start_of_service = server.log.stat().st_size if server.log else 0
            try:
                print(_ready_message(server, options), flush=True)
                if server.warning:
                    print(server.warning, file=sys.stderr, flush=True)
                _relay_log(server, start_of_service)
            except KeyboardInterrupt:
                with contextlib.suppress(OSError):
                    print("Stopping; a second Ctrl-C or SIGTERM kills the server", flush=True)
                code = server.stop()
            except _BrokenError as broken:
                _write_error(f"rcnn-serve: {broken}\n")
                server.kill()  # a draining server refuses requests quickly, so a load balancer would send it more
                return 1
            else:
                code = server.process.returncode
                if code != 0:
                    _write_error(f"rcnn-serve: {server.failure()}\n")
            return code if code >= 0 else 128 - code  # as a shell reports a death by signal
    except (ServerError, RepositoryError, OSError) as error:
        _write_error(f"rcnn-serve: {error}\n")
        return 1
    except KeyboardInterrupt:  # before the server was ready, or a second one
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)


def _raise_open_files() -> None:
    """Lets the server open as many connections as the user may. Many systems allow only 1024 until a program asks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _BrokenError(RuntimeError):
    """A process has ended or hangs, and Triton does not repair that."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}: stopping, so that whatever started rcnn-serve (systemd, Docker, Kubernetes) restarts it"
        )


def read_access(options: argparse.Namespace) -> Access:
    """Who may call which API, according to the options.

    Raises:
        ServerError: a file is missing or empty, or one option needs another.
    """
    token = ""
    if options.token_file:
        token = options.token_file.read_text().strip()
        if not token:
            raise ServerError(f"{options.token_file} is empty, expected a token")
    return Access(options.shared_memory, token, options.tls_cert, options.tls_key, options.tls_ca)


def _rebuild(repository: Path, models: list[str]) -> int:
    """Rebuilds plans where needed. Returns 0 if the plans of these models can run here afterwards."""
    return subprocess.run(
        [sys.executable, "-m", "rcnn_backend.engines.rebuild", str(repository), *models]
    ).returncode


def _ready_message(server: RunningServer, options: argparse.Namespace) -> str:
    addresses = ", ".join(f"{protocol} {endpoint}" for protocol, endpoint in server.endpoints.items())
    lines = [*server.notes]
    if server.models is None:
        served = f"{options.repository} (models chosen by --model-control-mode)"
    else:
        lines += [f"Skipped {name}: {why}" for name, why in server.models.skipped.items()]
        served = ", ".join(server.models.served)
    lines.append(f"Serving {served} at {addresses}")
    if server.models and server.models.detectors and "grpc" in server.urls:
        lines.append(f"Try it:  {_try_command(server.grpc_url, server.models.detectors[0], options)}")
    return "\n".join(lines)


def _try_command(url: str, model: str, options: argparse.Namespace) -> str:
    """The command that sends a picture to the model."""
    command = f"rcnn-detect photo.jpg --url {shlex.quote(url)} --model {shlex.quote(model)} --out boxed.png"
    if options.tls_cert:
        command += " --tls-ca CA.pem"
    if options.tls_ca:
        command += " --tls-cert CLIENT.pem --tls-key CLIENT.key"
    if options.token_file:
        command += f' --header "triton-grpc-protocol-token: $(cat {shlex.quote(str(options.token_file))})"'
    return command


def _relay_log(server: RunningServer, offset: int) -> None:
    """Shows new lines of the server's log until the server ends: warnings, errors and what models print.

    Raises:
        _BrokenError: the process of a step ended while the server still runs, or the server or a step hangs.
    """
    repeats = Repeats()
    with server.log.open("rb") if server.log else io.BytesIO() as log:
        log.seek(offset)
        while True:
            dead = server.dead_steps()
            ended = server.process.poll() is not None
            for line in log:
                if not is_routine(line):
                    _write_error(repeats.show(line))
            hang = server.hang()
            if ended or dead or hang:
                _write_error(repeats.rest())
            if ended:
                return
            if dead:
                raise _BrokenError(tell_dead(dead))
            if hang:
                raise _BrokenError(hang)
            if server.log and server.log_is_temporary and log.tell() > MAX_TEMPORARY_LOG_BYTES:
                os.truncate(server.log, 0)
                log.seek(0)
            time.sleep(0.2)


def _write_error(text: str | bytes) -> None:
    """Writes to stderr and ignores failures: the server keeps running if a disk is full or the reader is gone."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text if isinstance(text, str) else text.decode(errors="replace"))
        sys.stderr.flush()
