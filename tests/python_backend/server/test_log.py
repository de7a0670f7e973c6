"""Which lines of tritonserver's log are shown."""

from rcnn_backend.server.log import Repeats


def test_a_repeated_line_is_shown_once_with_its_number() -> None:
    repeats = Repeats()
    lines = [b"a\n", b"b\n", b"b\n", b"b\n", b"a\n", b"c\n", b"c\n"]
    assert b"".join(map(repeats.show, lines)) + repeats.rest() == (
        b"a\nb\n(the same line 2 more times)\na\nc\n(the same line 1 more times)\n"
    )
    assert repeats.rest() == b""
