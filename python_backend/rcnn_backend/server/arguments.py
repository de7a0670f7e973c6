"""The arguments of rcnn-serve. Imports nothing slow, so that --help is quick."""

import argparse
import difflib
import importlib.metadata
import math
from collections.abc import Sequence
from pathlib import Path

DEFAULT_PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
MODES = ("auto", "on", "off")


def parse_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of rcnn-serve, and the flags after ``--``, each as ``--name=value``, for tritonserver.

    Wrong ones end the program with exit code 2.
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
            parser.error(f"{flag!r} is no flag of tritonserver: after -- each begins with --")
        if name in known:
            parser.error(f"{name} is an option of rcnn-serve: give it before the --")
    names = {flag.partition("=")[0] for flag in flags}
    if "--model-control-mode" in names:
        if options.models:
            parser.error(
                "--models and --model-control-mode exclude each other: give --load-model=NAME instead"
            )
        if options.fused == "on":
            parser.error("--fused on and --model-control-mode exclude each other: load NAME_fused instead")
    if not 0 <= options.hang_timeout_s < math.inf:
        parser.error(f"--hang-timeout-s is {options.hang_timeout_s:g}, expected seconds, or 0 for never")
    if options.images_in_flight < 1:
        parser.error(f"--images-in-flight is {options.images_in_flight}, expected at least 1")
    return options, flags


def _gpu_numbers(text: str) -> list[int]:
    """Of ``0,1``."""
    numbers: list[int] = []
    for entry in text.split(","):
        if not entry.strip().isdecimal():
            raise argparse.ArgumentTypeError(f"{entry!r} is no number of a GPU, expected a list such as 0,1")
        if int(entry) in numbers:
            raise argparse.ArgumentTypeError(f"GPU {int(entry)} is named twice")
        numbers.append(int(entry))
    return numbers


def _explain(argument: str, known: Sequence[str]) -> str:
    flag = argument.partition("=")[0]
    if not flag.startswith("-"):
        return f"unexpected argument {argument!r}: one REPOSITORY is served"
    near = difflib.get_close_matches(flag, known, n=1)
    meant = f": did you mean {near[0]}?" if near else "."
    return (
        f"there is no option {flag}{meant} Flags of tritonserver go after --, as in: rcnn-serve -- {argument}"
    )


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
        description="Serves a Triton model repository with the tritonserver that pip installed, else the one on PATH.",
        epilog="Flags after -- go to tritonserver as they are: rcnn-serve -- --log-verbose=1. With a "
        "--model-control-mode among them, its meaning decides which models are loaded. With "
        "--model-control-mode=explicit, clients load models with the token of --token-file only; without a token, "
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
        "--models", metavar="NAME", nargs="+", default=[], help="serve these (default: every complete model)"
    )
    parser.add_argument("--log-file", metavar="FILE", type=Path, help="keep the server's whole log there")
    parser.add_argument(
        "--ready-timeout-s",
        metavar="S",
        type=float,
        default=300.0,
        help="give up when the models have not loaded by then (default: %(default)g)",
    )
    parser.add_argument(
        "--hang-timeout-s",
        metavar="S",
        type=float,
        default=30.0,
        help="end with code 1 when tritonserver has not answered for so long, or a step has been at the same requests. "
        "A process that computes all the while gets ten times as long. 0: never (default: %(default)g)",
    )
    parser.add_argument(
        "--rebuild",
        action="store_true",
        help="first build the TensorRT plans that cannot run here again, from the graphs beside them, and verify them",
    )
    parser.add_argument(
        "--trace",
        metavar="FOLDER",
        type=Path,
        help="write when each step of each request began and ended there; --fused off for those of a detector",
    )
    _add_speed(parser.add_argument_group("speed"))
    _add_access(parser.add_argument_group("who can reach it"))
    return parser


def _add_speed(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--gpus",
        metavar="N,N",
        type=_gpu_numbers,
        help="serve on these GPUs only, such as 0,1, by CUDA's numbers; where CUDA_VISIBLE_DEVICES is set, positions in "
        "it. The server numbers them from 0 (default: all that a CUDA program sees)",
    )
    group.add_argument(
        "--mps",
        choices=MODES,
        default="auto",
        help="let the processes of the steps compute side by side by NVIDIA's Multi-Process Service, which more than "
        "doubles what an ensemble serves. auto: where it can be started; on: fail where it cannot "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--fused",
        choices=MODES,
        default="auto",
        help="serve each detector by its fused model, one process in the place of five steps, which is faster still. "
        "It keeps its name, so clients stay as they are. Single steps have metrics and traces with off only. auto: on a "
        "CPU, and on a GPU where MPS is off (default: %(default)s)",
    )
    group.add_argument(
        "--images-in-flight",
        metavar="N",
        type=int,
        default=32,
        help="size Triton's CUDA memory pool, for the tensors between steps, for so many images of the largest size "
        "at once, over all requests; more still work, slower (default: %(default)s)",
    )


def _add_access(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--host",
        metavar="ADDRESS",
        default="127.0.0.1",
        help="listen on this address; 0.0.0.0 for all of this machine's, or :: for all of IPv6 "
        "(default: %(default)s, for programs of this machine only)",
    )
    for protocol, port in DEFAULT_PORTS.items():
        group.add_argument(
            f"--{protocol}-port",
            metavar="PORT",
            type=int,
            default=port,
            help="0: a free one (default: %(default)s)",
        )
    group.add_argument(
        "--tls-cert", metavar="FILE", type=Path, help="gRPC over TLS with this certificate (PEM)"
    )
    group.add_argument("--tls-key", metavar="FILE", type=Path, help="the certificate's private key (PEM)")
    group.add_argument(
        "--tls-ca",
        metavar="FILE",
        type=Path,
        help="clients must show a certificate that this one signed (PEM)",
    )
    group.add_argument(
        "--token-file",
        metavar="FILE",
        type=Path,
        help="every call but health must bring the token in this file, over gRPC in the header "
        "triton-grpc-protocol-token",
    )
    group.add_argument(
        "--shared-memory",
        action="store_true",
        help="let clients register shared memory of this host; for clients that you trust with the server",
    )
