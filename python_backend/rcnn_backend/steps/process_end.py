"""Ends the process of a step that can no longer compute anything.

A GPU that has failed refuses every call of the process, for as long as the process lives.
Triton still reports the server as ready. Once the process has ended, ``rcnn-serve`` stops.
"""

import logging
import os
import threading
import time

RETURN_S = 0.5  # long enough for ``execute`` to return


class ProcessEnd:
    """Ends the process between two executions, each of which holds the lock ``executing``.

    An execution cannot end the process itself, because Triton's stub sends the responses after
    ``execute`` has returned them. From then on, the stub keeps Python's interpreter lock until Triton has
    taken the responses, and it runs one execution at a time. So another thread can run again only when
    every response has been delivered, or during the next execution; in that case it waits for its end.
    """

    def __init__(self) -> None:
        self.executing = threading.Lock()
        self.is_near = False

    def begin(self) -> None:
        """Returns at once; the process ends with exit code 1 soon after the current execution."""
        if self.is_near:
            return
        self.is_near = True
        logging.getLogger(__name__).critical(
            "the GPU failed and this process cannot use it again: the process ends now"
        )
        threading.Thread(target=self._end, daemon=True).start()

    def _end(self) -> None:
        time.sleep(RETURN_S)
        with self.executing:
            os._exit(1)  # skips all clean-up, which would wait for the GPU
