"""A command that is restarted whenever it ends, as systemd and Docker do."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

RESTART_S = 0.5
EXIT_TIMEOUT_S = 45.0


class Supervised:
    """Runs ``command`` from now until ``stop``; its output is appended to the file ``log``.

    ``starts``: how many times it was started.
    """

    def __init__(
        self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        self.starts = 0
        self._command, self._environment = command, environment
        self._over = threading.Event()
        self._process = self._start()
        self._thread = threading.Thread(target=self._keep_running, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """Process id of the command's last start; it may have just ended."""
        return self._process.pid

    def stop(self) -> None:
        """Ends the command; kills it if it does not end in time."""
        self._over.set()
        for number in (signal.SIGCONT, signal.SIGTERM):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
        self._thread.join(EXIT_TIMEOUT_S)
        self._kill_group()
        self._thread.join()

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        with self.log.open("ab") as output:
            return subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _keep_running(self) -> None:
        while True:
            self._process.wait()
            self._kill_group()
            if self._over.wait(RESTART_S):
                return
            self._process = self._start()

    def _kill_group(self) -> None:
        """Kills the processes that the command has left behind, such as nginx's workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
