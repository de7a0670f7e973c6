"""Runs tritonserver on a model repository for the duration of a ``with`` block.

with running_server("model_repository") as server:
    detector = rcnn_client.Detector(server.grpc_url)
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rcnn_backend.contract.executions import VARIABLE
from rcnn_backend.errors import ServerError
from rcnn_backend.server.acceleration import accelerate
from rcnn_backend.server.access import RESTRICTIONS, Access, lock, warn_of_others
from rcnn_backend.server.addresses import LOOPBACK, PROTOCOLS, Endpoint, choose_endpoints, is_for_this_host
from rcnn_backend.server.draining import drain
from rcnn_backend.server.flags import backend_flags, get_flag, model_flags, trace_flags
from rcnn_backend.server.fused import write_view
from rcnn_backend.server.gpus import find_gpus
from rcnn_backend.server.hangs import HangWatch
from rcnn_backend.server.log import last_words, load_failures, still_loading
from rcnn_backend.server.memory_pool import size_pool
from rcnn_backend.server.model_selection import ModelSelection, select_models
from rcnn_backend.server.mps import CONTROL, PIPES
from rcnn_backend.server.paths import make_plain_folder, plain_link
from rcnn_backend.server.shared_memory import SHARED_MEMORY, check_shared_memory
from rcnn_backend.server.stub_processes import StubWatch, tell_dead
from rcnn_backend.server.triton_install import (
    check_engine_packages,
    find_triton,
    prepare_backends,
    server_environment,
)

IDLE_EXIT_S = 15.0  # time for a server without requests to end; its stubs take a few seconds
START_LOOK_S = 0.1
ANYONE = {"http": "/v2/health/live", "metrics": "/metrics"}  # paths open to anyone, even with TLS and a token

# Removes folder $1 and shared memory $2* when this process is done with them or was killed. It reads the
# server's process id, then a line once the server has stopped. Without that line, it kills the server first: then the
# ports are free for the next server, and callers try another server (a server that is stopping refuses requests).
CLEANER = f"""
read -r pid && ! read -r stopped && {{
    kill -s KILL -- "-$pid"
    [ -d "$1/mps" ] && echo quit | {PIPES}="$1/mps" {CONTROL}
}}
rm -rf -- "$1" "/dev/shm/$2"*
"""


@dataclass
class RunningServer:
    """A tritonserver process.

    ``endpoints``: by ``http``, ``grpc`` and ``metrics``, without those that the flags turn off. ``models``: None
    if the user's flags have a ``--model-control-mode``, which chooses them. ``notes``: lines about how the models
    are served. ``warning``: a sentence, or empty. ``log``: None if the log goes to stderr. ``admin_headers``:
    the headers that open the HTTP API that unloads models. ``watch``: watches the processes of Python models.
    ``hang_watch``: watches those and the server once the server is ready. ``repository``: the folder that holds the
    models. ``served_from``: the path that Triton gets instead, a link or a view.
    """

    process: subprocess.Popen[bytes]
    endpoints: dict[str, Endpoint]
    models: ModelSelection | None
    notes: list[str]
    warning: str
    log: Path | None
    log_is_temporary: bool
    exit_timeout_s: float
    admin_headers: dict[str, str]
    repository: Path
    served_from: Path
    watch: StubWatch
    hang_watch: HangWatch | None = None

    @property
    def urls(self) -> dict[str, str]:
        """``host:port`` of each endpoint, as tritonclient on this host expects it."""
        return {protocol: endpoint.url for protocol, endpoint in self.endpoints.items()}

    @property
    def grpc_url(self) -> str:
        """``host:port`` of the gRPC endpoint."""
        return self.urls["grpc"]

    def stop(self) -> int:
        """Lets the server answer the accepted requests and end, or else kills it. Returns its exit code.

        The exit code is 0 if every request was answered, even if Triton then does not end in time. Triton does not
        end while a client keeps a connection to its HTTP endpoint open.
        """
        deadline = time.monotonic() + self.exit_timeout_s
        drained = False
        with contextlib.suppress(subprocess.TimeoutExpired):
            try:
                if self.process.poll() is None:
                    os.killpg(self.process.pid, signal.SIGCONT)  # a process that was stopped gets no SIGTERM
                    if self.models and "http" in self.urls:
                        drained = drain(
                            self.urls["http"], self.models.served, self.admin_headers, self.exit_timeout_s
                        )
                    self.process.terminate()
                    left_s = max(0.0, deadline - time.monotonic())
                    self.process.wait(min(left_s, IDLE_EXIT_S) if drained else left_s + 15)
            finally:
                self.kill()
        return 0 if drained else self.process.returncode

    def dead_steps(self) -> list[str]:
        """The model instances whose process died while their model is loaded.

        If models can be unloaded (``--model-control-mode=explicit`` and ``poll``), none is reported without HTTP.
        """
        return self.watch.look()

    def hang(self) -> str:
        """A sentence that names the process that hangs; empty if none does."""
        return self.hang_watch.look(self.watch.stubs) if self.hang_watch else ""

    def kill(self) -> None:
        """Ends the server and its stubs at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def failure(self) -> str:
        """Why the server ended or is not ready, according to its log. The text names the log, which is kept."""
        code, log = self.process.poll(), self.log.read_text(errors="replace") if self.log else ""
        if reasons := load_failures(log):
            lines = [f"model {name} failed to load: {reason}" for name, reason in reasons.items()]
        elif code is None:
            untold = "none" if self.log else "unknown"
            lines = [f"models still loading: {', '.join(still_loading(log)) or untold}"]
        else:
            lines = [f"tritonserver ended with exit code {code}", *(f"  {line}" for line in last_words(log))]
        try:
            kept = _keep(self.log) if self.log and self.log_is_temporary else self.log
            lines.append(f"The server's whole log: {kept or 'above'}")
        except OSError as error:
            lines.append(f"The server's log cannot be kept: {error}")
        text = "\n".join(lines)
        return text.replace(str(self.served_from), str(self.repository))


@contextlib.contextmanager
def running_server(
    repository: str | Path,
    models: Sequence[str] = (),
    *,
    host: str = LOOPBACK,
    ports: Mapping[str, int] | None = None,
    flags: Sequence[str] = (),
    access: Access | None = None,
    trace: Path | None = None,
    mps: str = "off",
    fused: str = "off",
    images_in_flight: int = 32,
    ready_timeout_s: float = 300.0,
    hang_timeout_s: float = 30.0,
    log: str | Path | None = None,
    log_to_stderr: bool = False,
) -> Iterator[RunningServer]:
    """Starts tritonserver, waits until it serves, and stops it when the block is left.

    No process and no file except ``log`` is left behind, even if this process is killed.

    Args:
        models: the names to serve; by default every complete model of the repository.
        host: the IPv4 or IPv6 address to listen on; ``0.0.0.0`` and ``::`` stand for all addresses of this host.
        ports: by ``http``, ``grpc`` and ``metrics``; a free port is used if one is missing or 0.
        flags: more flags of tritonserver, each as ``--name=value``. If ``--model-control-mode`` is
            among them, the flags decide which models are loaded.
        access: who may call what; by default shared memory is open if gRPC and HTTP listen to this host alone.
        trace: a folder for traces of every request; it is created if it does not exist.
        mps: ``on``, ``off`` or ``auto``: the steps run their kernels concurrently on a GPU through a daemon that is
            started for them.
        fused: ``on``, ``off`` or ``auto``: the fused models are served under the names of the detectors.
        images_in_flight: how many images of the largest size, over all requests, Triton's CUDA
            memory pool holds on a GPU, unless the flags set its size. More images are slower.
        hang_timeout_s: how long a process may make no progress before ``hang`` reports it; 0: never.
        log: file for the server's log; by default a temporary one, kept only if the start fails.
        log_to_stderr: the server's log goes to stderr and not to a file.

    Raises:
        ServerError: the server cannot run in this environment, an address or a port cannot be used, a model
            failed to load, a process of one died, or the server was not ready within ``ready_timeout_s``.
        RepositoryError: the models do not exist or are not complete (see ``select_models``).
    """
    install = find_triton()
    check_engine_packages()
    check_shared_memory(1)
    repository = Path(repository)
    selection = None if get_flag(flags, "model-control-mode") else select_models(repository, models)
    endpoints = choose_endpoints(host, ports or {}, flags)
    if access is None:
        access = Access(shared_memory=all(is_for_this_host(host, flags, each) for each in RESTRICTIONS))
    locks = lock(access, flags, host=host)
    if trace:
        trace.mkdir(parents=True, exist_ok=True)

    folder = make_plain_folder()
    cleaner = subprocess.Popen(
        ["sh", "-c", CLEANER, "sh", folder, folder.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
        bufsize=1,
    )
    assert cleaner.stdin is not None
    opened = contextlib.ExitStack()
    try:
        acceleration = accelerate(mps, fused, selection, folder, opened)
        shown = repository
        if selection and acceleration.fused:
            shown = write_view(repository, acceleration.fused, folder / "models")
            selection = selection.fuse(acceleration.fused)
        pool = size_pool(shown, selection.served if selection else None, images_in_flight, flags)
        served_from = plain_link(shown.resolve(), folder)
        command: list[str | Path] = [install.server, f"--model-repository={served_from}"]
        for protocol, endpoint in endpoints.items():
            command += endpoint.flags(protocol)
        backends = prepare_backends(install, folder)
        command += backend_flags(backends, folder.name)
        command += model_flags(selection.served) if selection else []
        command += [*locks.flags, *(trace_flags(trace) if trace else [])]
        environment = server_environment(install, backends, folder)
        executions = f"{SHARED_MEMORY}/{folder.name}-executions-"  # the cleaner removes them
        environment |= {VARIABLE: executions, **acceleration.environment}
        log_path = None if log_to_stderr else Path(log).resolve() if log else folder / "tritonserver.log"
        if log_path:
            log_path.write_bytes(b"")
        with log_path.open("ab") if log_path else contextlib.nullcontext(2) as output:
            process = subprocess.Popen(
                [*command, *pool.flags, *_without_addresses(flags)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a terminal's signals reach it through this process only
            )
        cleaner.stdin.write(f"{process.pid}\n")
        exit_timeout_s = float(get_flag(flags, "exit-timeout-secs") or 30)
        http, models_stay = endpoints.get("http"), get_flag(flags, "model-control-mode") in ("", "none")
        server = RunningServer(
            process,
            endpoints,
            selection,
            [*filter(None, [pool.summary]), *acceleration.notes],
            warn_of_others(access, flags, endpoints),
            log_path,
            log is None,
            exit_timeout_s,
            locks.admin_headers,
            repository.resolve(),
            served_from,
            StubWatch(process.pid, http.url if http else "", locks.admin_headers, models_stay, executions),
        )
        try:
            _wait_until_ready(server, ready_timeout_s)
            asked = next((name for name in ANYONE if name in server.urls), "")
            server.hang_watch = HangWatch(
                process.pid, server.urls.get(asked, ""), ANYONE.get(asked, ""), executions, hang_timeout_s
            )
            # On a GPU, only the tensors that a client sends and gets go through shared memory.
            if not (pool.flags or find_gpus()[0]):
                check_shared_memory(len(server.watch.stubs))
            yield server
        finally:
            server.stop()
            cleaner.stdin.write("stopped\n")
    finally:
        opened.close()
        cleaner.communicate()


def _keep(log: Path) -> Path:
    """Copies the log to a file that is not removed.

    Raises:
        OSError: there is no space for the copy.
    """
    with tempfile.NamedTemporaryFile(prefix="rcnn-serve-", suffix=".log", delete=False) as copy:
        kept = Path(copy.name)
    try:
        shutil.copyfile(log, kept)
    except OSError:
        kept.unlink()
        raise
    return kept


def _without_addresses(flags: Sequence[str]) -> list[str]:
    """The flags without the addresses, because the endpoints add those."""
    addresses = tuple(f"--{protocol}-address=" for protocol in PROTOCOLS)
    return [flag for flag in flags if not flag.startswith(addresses)]


def _wait_until_ready(server: RunningServer, timeout_s: float) -> None:
    """Waits until tritonserver opens its ports, which it does when every model is loaded.

    If that fails, tritonserver is killed, because it might go on loading forever.
    """
    deadline = time.monotonic() + timeout_s
    waiting = list(server.urls.values())
    try:
        while True:
            dead = server.watch.look_at_start()
            if server.process.poll() is not None:
                raise ServerError(server.failure())
            if dead:
                raise ServerError(f"{tell_dead(dead)}; {server.failure()}")
            if not (waiting or server.watch.uncollected):
                return
            if time.monotonic() > deadline:
                raise ServerError(f"not ready after {timeout_s:g} s; {server.failure()}")
            while waiting and _listens(waiting[0]):
                waiting.pop(0)
            time.sleep(START_LOOK_S)
    except ServerError:
        server.kill()
        raise


def _listens(url: str) -> bool:
    host, _, port = url.rpartition(":")
    with (
        contextlib.suppress(OSError),
        socket.create_connection((host.strip("[]"), int(port)), timeout=1) as connection,
    ):
        # TCP can connect a free port to itself
        return bool(connection.getsockname() != connection.getpeername())
    return False
