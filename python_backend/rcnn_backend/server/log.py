"""What tritonserver's log says about a start that failed, and which of its lines are shown."""

import re


def load_failures(log: str) -> dict[str, str]:
    """Each model that failed to load, and why, from the server's last words; empty if they name none.

    The failure of an ensemble is reported as that of the step that caused it; only the error and the
    innermost line of a Python traceback are kept.
    """
    reasons = {}
    failure = r"load failed for model '(.+?)': (.*?)(?=;?\nload failed for model|;?\s*\Z)"
    for name, reason in re.findall(failure, log, re.S):
        if cause := re.match(r"ensemble .*? Model '(.+?)' loading failed with error: (.*)", reason, re.S):
            name, reason = cause.groups()
        reason = re.sub(r"^version \d+ is at UNAVAILABLE state: (Internal: )?", "", reason)
        message, _, trace = reason.partition("\n\nAt:\n")
        reasons[name] = message.rstrip("; \n") + (f" (at {trace.splitlines()[0].strip()})" if trace else "")
    return reasons


def still_loading(log: str) -> list[str]:
    """The models whose loading began and neither succeeded nor failed."""
    begun = dict.fromkeys(re.findall(r'"loading: (.+?):\d+"', log))
    ended = set(re.findall(r"(?:successfully loaded|failed to load) '(.+?)'", log))
    return [name for name in begun if name not in ended]


def last_words(log: str, num_lines: int = 8) -> list[str]:
    """The last lines before the server ended, without the help text that follows a wrong flag."""
    return log.split("\nUsage: tritonserver")[0].splitlines()[-num_lines:]


def is_routine(line: bytes) -> bool:
    """Whether a line says nothing that needs attention: INFO and below, such as ``I1123 01:26:02.6 ...``.

    Without a GPU there is no pinned memory, and the server warns about that at its first request.
    """
    return re.match(rb"[IV]\d{4} \d\d:\d\d:\d\d", line) is not None or b"no pinned memory pool" in line


class Repeats:
    """Leaves out lines that repeat the previous line, and reports their number."""

    def __init__(self) -> None:
        self._last, self._left_out = b"", 0

    def show(self, line: bytes) -> bytes:
        """What to write for this line."""
        if line == self._last:
            self._left_out += 1
            return b""
        shown = self.rest() + line
        self._last = line
        return shown

    def rest(self) -> bytes:
        """What to write after the last line."""
        count, self._left_out = self._left_out, 0
        return b"(the same line %d more times)\n" % count if count else b""
