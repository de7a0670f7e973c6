"""The command ``rcnn-serve``: tritonserver on a model repository."""

import argparse
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from rcnn_backend.errors import RepositoryError, ServerError
from rcnn_backend.server.access import Access
from rcnn_backend.server.flags import PROTOCOLS, get_flag
from rcnn_backend.server.local_server import RunningServer, running_server
from rcnn_backend.server.log import is_routine

DEFAULT_PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
MAX_TEMPORARY_LOG_BYTES = 16 << 20


def main(argv: list[str] | None = None) -> int:
    """Serves until a signal comes or the server ends. Returns the server's exit code, or 1 if it did not start."""
    options, flags = parse_arguments(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may have any bytes
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM stops it as Ctrl-C does
    try:
        if options.rebuild and (code := _rebuild(options.repository, options.models)):
            return code
        print(f"Starting tritonserver on {options.repository} ...", flush=True)
        with running_server(
            options.repository,
            options.models,
            host="0.0.0.0",
            ports={protocol: getattr(options, f"{protocol}_port") for protocol in PROTOCOLS},
            flags=flags,
            access=read_access(options),
            trace=options.trace,
            mps=options.mps,
            images_in_flight=options.images_in_flight,
            ready_timeout_s=options.ready_timeout_s,
            log=options.log_file,
            log_to_stderr=not options.log_file and any(flag.startswith("--log-") for flag in flags),
        ) as server:
            start_of_service = server.log.stat().st_size if server.log else 0
            try:
                print(_ready_message(server, options.repository), flush=True)
                _relay_log(server, start_of_service)
            except KeyboardInterrupt:
                print("Stopping; a second Ctrl-C or SIGTERM kills the server", flush=True)
                code = server.stop()
            except _StepDiedError as died:
                print(f"rcnn-serve: {died}", file=sys.stderr, flush=True)
                server.stop()
                return 1
            else:
                code = server.process.returncode
                if code != 0:
                    print(f"rcnn-serve: {server.failure()}", file=sys.stderr)
            return code if code >= 0 else 128 - code  # as a shell tells a death by signal
    except (ServerError, RepositoryError, OSError) as error:
        print(f"rcnn-serve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the server was ready, or a second one
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)


class _StepDiedError(RuntimeError):
    """The process of a Python step has ended. Triton does not start it again."""


def parse_arguments(argv: Iterable[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of rcnn-serve, and every other flag as ``--name=value`` for tritonserver."""
    parser = argparse.ArgumentParser(
        prog="rcnn-serve",
        description="Serves a Triton model repository with the tritonserver that pip installed, else the one on PATH.",
        epilog="Any other flag goes to tritonserver: --log-verbose=1, --grpc-address=127.0.0.1, ... "
        "With a --model-control-mode, its meaning decides which models are loaded. With "
        "--model-control-mode=explicit, clients load models with the token of --token-file only; without a token, "
        "only where the server listens to this host alone.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "repository",
        metavar="REPOSITORY",
        nargs="?",
        type=Path,
        default=Path("model_repository"),
        help="folder of the models (default: %(default)s)",
    )
    parser.add_argument(
        "--models", metavar="NAME", nargs="+", default=[], help="serve these (default: every complete model)"
    )
    for protocol, port in DEFAULT_PORTS.items():
        parser.add_argument(
            f"--{protocol}-port",
            metavar="PORT",
            type=int,
            default=port,
            help="0: a free one (default: %(default)s)",
        )
    parser.add_argument(
        "--images-in-flight",
        metavar="N",
        type=int,
        default=32,
        help="on a GPU, size Triton's CUDA memory pool for so many images of the largest size at once, "
        "over all requests; more still work, slower (default: %(default)s)",
    )
    parser.add_argument(
        "--ready-timeout-s",
        metavar="S",
        type=float,
        default=300.0,
        help="give up when the models have not loaded by then (default: %(default)s)",
    )
    parser.add_argument(
        "--rebuild",
        action="store_true",
        help="first build the TensorRT plans that cannot run here again, from the graphs beside them, and verify them",
    )
    parser.add_argument(
        "--mps",
        action="store_true",
        help="on a GPU, let the steps' processes compute side by side (NVIDIA's Multi-Process Service), which more "
        "than doubles what an ensemble serves",
    )
    parser.add_argument(
        "--trace",
        metavar="FOLDER",
        type=Path,
        help="write when each step of each request began and ended there",
    )
    parser.add_argument(
        "--tls-cert", metavar="FILE", type=Path, help="gRPC over TLS with this certificate (PEM)"
    )
    parser.add_argument("--tls-key", metavar="FILE", type=Path, help="the certificate's private key (PEM)")
    parser.add_argument(
        "--tls-ca",
        metavar="FILE",
        type=Path,
        help="clients must show a certificate that this one signed (PEM)",
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        type=Path,
        help="every call but health must bring the token in this file, over gRPC in the header "
        "triton-grpc-protocol-token",
    )
    parser.add_argument(
        "--shared-memory",
        action="store_true",
        help="let clients register shared memory of this host; for clients that you trust with the server",
    )
    parser.add_argument("--log-file", metavar="FILE", type=Path, help="keep the server's whole log there")
    known = {option for action in parser._actions for option in action.option_strings}
    options, flags = parser.parse_known_args(_join_values(argv, known))
    if stray := [flag for flag in flags if not flag.startswith("--")]:
        parser.error(f"unexpected {' '.join(stray)}")
    if options.models and get_flag(flags, "model-control-mode"):
        parser.error("--models and --model-control-mode exclude each other: give --load-model=NAME instead")
    if options.images_in_flight < 1:
        parser.error(f"--images-in-flight is {options.images_in_flight}, expected at least 1")
    return options, flags


def read_access(options: argparse.Namespace) -> Access:
    """Who may call which API, as the options say.

    Raises:
        ServerError: a file is missing or empty, or one option needs another.
    """
    token = ""
    if options.token_file:
        token = options.token_file.read_text().strip()
        if not token:
            raise ServerError(f"{options.token_file} is empty, expected a token")
    return Access(options.shared_memory, token, options.tls_cert, options.tls_key, options.tls_ca)


def _join_values(argv: Iterable[str], known: set[str]) -> list[str]:
    """Joins ``--flag value`` to ``--flag=value`` for unknown flags, so that no value is taken for REPOSITORY."""
    joined: list[str] = []
    for argument in argv:
        last = joined[-1] if joined else ""
        open_flag = last.startswith("--") and "=" not in last and last not in known
        if open_flag and not argument.startswith("-") and last != "--disable-auto-complete-config":
            joined[-1] = f"{last}={argument}"
        else:
            joined.append(argument)
    return joined


def _rebuild(repository: Path, models: list[str]) -> int:
    """Returns 0 when the plans of these models can run here."""
    return subprocess.run(
        [sys.executable, "-m", "rcnn_backend.engines.rebuild", str(repository), *models]
    ).returncode


def _ready_message(server: RunningServer, repository: Path) -> str:
    addresses = ", ".join(f"{protocol} {url}" for protocol, url in server.urls.items())
    lines = [server.memory_pool] if server.memory_pool else []
    if server.models is None:
        served = f"{repository}, the models that --model-control-mode chooses,"
    else:
        lines += [f"Skipped {name}: {why}" for name, why in server.models.skipped.items()]
        served = ", ".join(server.models.served)
    return "\n".join([*lines, f"Serving {served} at {addresses}"])


def _relay_log(server: RunningServer, offset: int) -> None:
    """Shows new lines of the server's log until it ends: warnings, errors and what models print.

    Raises:
        _StepDiedError: the process of a step ended and the server did not.
    """
    with server.log.open("rb") if server.log else io.BytesIO() as log:
        log.seek(offset)
        while True:
            dead = server.dead_steps()
            ended = server.process.poll() is not None
            for line in log:
                if not is_routine(line):
                    sys.stderr.write(line.decode(errors="replace"))
            sys.stderr.flush()
            if ended:
                return
            if dead:
                raise _StepDiedError(
                    f"the process of {', '.join(dead)} ended, and tritonserver starts no other: stopping, so that "
                    "whoever started rcnn-serve (systemd, Docker, Kubernetes) starts it again"
                )
            if server.log and server.log_is_temporary and log.tell() > MAX_TEMPORARY_LOG_BYTES:
                os.truncate(server.log, 0)
                log.seek(0)
            time.sleep(0.2)
