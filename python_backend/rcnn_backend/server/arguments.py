"""The arguments of rcnn-serve. This module imports nothing slow, so that --help is fast."""

import argparse
import difflib
import importlib.metadata
import math
from collections.abc import Sequence
from pathlib import Path

DEFAULT_PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
MODES = ("auto", "on", "off")


def parse_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of rcnn-serve, and the flags for tritonserver after ``--``, each as ``--name=value``.

    Invalid arguments end the program with exit code 2.
    """
    end = argv.index("--") if "--" in argv else len(argv)
    own, passed_on = argv[:end], argv[end + 1 :]
    parser = _parser()
    options, unknown = parser.parse_known_args(own)
    known = sorted({option for action in parser._actions for option in action.option_strings})
    if unknown:
        parser.error(_explain(unknown[0], known))
    flags = _join_values(passed_on)
    for flag in flags:
        name = flag.partition("=")[0]
        if not name.startswith("--"):
            parser.error(f"{flag!r} is not a flag of tritonserver: its flags begin with --")
        if name in known:
            parser.error(f"{name} is an option of rcnn-serve: give it before the --")
    names = {flag.partition("=")[0] for flag in flags}
    if "--model-control-mode" in names:
        if options.models:
            parser.error(
                "--models and --model-control-mode cannot be combined: give --load-model=NAME instead"
            )
        if options.fused == "on":
            parser.error("--fused on and --model-control-mode cannot be combined: load NAME_fused instead")
    if not 0 <= options.hang_timeout_s < math.inf:
        parser.error(f"--hang-timeout-s is {options.hang_timeout_s:g}, expected seconds, or 0 for never")
    if options.images_in_flight < 1:
        parser.error(f"--images-in-flight is {options.images_in_flight}, expected at least 1")
    return options, flags


def _gpu_numbers(text: str) -> list[int]:
    """The numbers in a list such as ``0,1``."""
    numbers: list[int] = []
    for entry in text.split(","):
        if not entry.strip().isdecimal():
            raise argparse.ArgumentTypeError(f"{entry!r} is not a GPU number, expected a list such as 0,1")
        if int(entry) in numbers:
            raise argparse.ArgumentTypeError(f"GPU {int(entry)} is named twice")
        numbers.append(int(entry))
    return numbers


def _explain(argument: str, known: Sequence[str]) -> str:
    flag = argument.partition("=")[0]
    if not flag.startswith("-"):
        return f"unexpected argument {argument!r}: give only one REPOSITORY"
    near = difflib.get_close_matches(flag, known, n=1)
    meant = f": did you mean {near[0]}?" if near else "."
    return f"there is no option {flag}{meant} Flags for tritonserver go after --, as in: rcnn-serve -- {argument}"


def _join_values(flags: Sequence[str]) -> list[str]:
    """Joins ``--flag value`` to ``--flag=value``."""
    joined: list[str] = []
    for argument in flags:
        if joined and "=" not in joined[-1] and not argument.startswith("-"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rcnn-serve",
        usage="%(prog)s [REPOSITORY] [options] [-- FLAGS OF TRITONSERVER]",
        description="Serves a Triton model repository with the tritonserver from pip, or else with the one on PATH.",
        epilog="Flags after -- are passed to tritonserver unchanged: rcnn-serve -- --log-verbose=1. If "
        "--model-control-mode is among them, that mode decides which models are loaded. With "
        "--model-control-mode=explicit, clients can load models only with the token of --token-file; without a token, "
        "only where the server listens to this host alone.",
        allow_abbrev=False,
    )
    version = importlib.metadata.version("rcnn-backend")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version}")
    parser.add_argument(
        "repository",
        metavar="REPOSITORY",
        nargs="?",
        type=Path,
        default=Path("model_repository"),
        help="folder of the models (default: %(default)s)",
    )
    parser.add_argument(
        "--models",
        metavar="NAME",
        nargs="+",
        default=[],
        help="serve these models (default: every complete model)",
    )
    parser.add_argument(
        "--log-file", metavar="FILE", type=Path, help="write the server's whole log to this file"
    )
    parser.add_argument(
        "--ready-timeout-s",
        metavar="S",
        type=float,
        default=300.0,
        help="give up if the models have not loaded after this time (default: %(default)g)",
    )
    parser.add_argument(
        "--hang-timeout-s",
        metavar="S",
        type=float,
        default=30.0,
        help="end with code 1 when, for S seconds, tritonserver has not answered or a step has been processing the "
        "same requests. A process that computes during that time gets ten times as long. 0: never "
        "(default: %(default)g)",
    )
    parser.add_argument(
        "--rebuild",
        action="store_true",
        help="first rebuild the TensorRT plans that cannot run here, from the graphs next to them, and verify them",
    )
    parser.add_argument(
        "--trace",
        metavar="FOLDER",
        type=Path,
        help="write to this folder when each step of each request began and ended; with --fused off, this includes the "
        "steps of a detector",
    )
    _add_speed(parser.add_argument_group("speed"))
    _add_access(parser.add_argument_group("who can reach it"))
    return parser


def _add_speed(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--gpus",
        metavar="N,N",
        type=_gpu_numbers,
        help="serve only on these GPUs, such as 0,1, by CUDA's numbers; if CUDA_VISIBLE_DEVICES is set, they are "
        "positions in it. The server numbers the chosen GPUs from 0 (default: all that a CUDA program sees)",
    )
    group.add_argument(
        "--mps",
        choices=MODES,
        default="auto",
        help="run the processes of the steps concurrently with NVIDIA's Multi-Process Service, which more than doubles "
        "the throughput of an ensemble. auto: if it can be started; on: fail if it cannot (default: %(default)s)",
    )
    group.add_argument(
        "--fused",
        choices=MODES,
        default="auto",
        help="serve each detector with its fused model, one process instead of five steps, which is even faster. The "
        "detector keeps its name, so clients need no change. Single steps have metrics and traces only if the detector "
        "is not fused. auto: on a CPU, and on a GPU where MPS is off (default: %(default)s)",
    )
    group.add_argument(
        "--images-in-flight",
        metavar="N",
        type=int,
        default=32,
        help="size Triton's CUDA memory pool, which holds the tensors between steps, for N images of the largest size "
        "at once, over all requests; more images still work, but slower (default: %(default)s)",
    )


def _add_access(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--host",
        metavar="ADDRESS",
        default="127.0.0.1",
        help="listen on this address; 0.0.0.0 for all addresses of this machine, or :: for all its IPv6 addresses "
        "(default: %(default)s, which only programs on this machine can reach)",
    )
    for protocol, port in DEFAULT_PORTS.items():
        group.add_argument(
            f"--{protocol}-port",
            metavar="PORT",
            type=int,
            default=port,
            help="0: any free port (default: %(default)s)",
        )
    group.add_argument(
        "--tls-cert", metavar="FILE", type=Path, help="serve gRPC over TLS with this certificate (PEM)"
    )
    group.add_argument("--tls-key", metavar="FILE", type=Path, help="the certificate's private key (PEM)")
    group.add_argument(
        "--tls-ca",
        metavar="FILE",
        type=Path,
        help="clients must present a certificate that this one signed (PEM)",
    )
    group.add_argument(
        "--token-file",
        metavar="FILE",
        type=Path,
        help="every call except health must send the token in this file, over gRPC in the header "
        "triton-grpc-protocol-token",
    )
    group.add_argument(
        "--shared-memory",
        action="store_true",
        help="let clients register shared memory of this host; only for clients that you trust with the whole server",
    )
