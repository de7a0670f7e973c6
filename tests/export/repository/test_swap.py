"""If anything fails while an export replaces an older one, the older one survives."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rcnn_export.errors import ExportError
from rcnn_export.repository.swap import swap_folders

NAMES = ["one", "one_rpn", "one_header", "one_added"]
OUTDATED = ["one_masks"]
OLD_NAMES = [*NAMES[:3], *OUTDATED]  # the older export lacks the last model and has an outdated one


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with an older export, and the new export in ``.new``."""
    for name in OLD_NAMES:
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "engine").write_text(f"old {name}")
    for name in NAMES:
        (tmp_path / ".new" / name / "1").mkdir(parents=True)
        (tmp_path / ".new" / name / "1" / "engine").write_text(f"new {name}")
    return tmp_path


def exported(folder: Path) -> dict[str, str]:
    return {path.parts[-3]: path.read_text() for path in folder.glob("*/1/engine")}


OLD = {name: f"old {name}" for name in OLD_NAMES}
NEW = {name: f"new {name}" for name in NAMES}


def failing_rename(fails: Callable[[int], bool], error: BaseException, moves_first: bool) -> object:
    """A ``Path.rename`` that raises ``error`` at each call, counted from 1, for which ``fails`` is true."""
    rename, calls = Path.rename, 0

    def rename_or_fail(path: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if not fails(calls):
            return rename(path, target)
        if moves_first:
            rename(path, target)
        raise error

    return rename_or_fail


def test_the_new_folders_take_their_places(repository: Path) -> None:
    swap_folders(repository / ".new", repository, NAMES, OUTDATED)
    assert exported(repository) == NEW
    assert {path.name for path in repository.iterdir()} == {*NAMES, ".new"}


# Three models are moved out and their new versions in, the last one is moved in, and the outdated one out: 8 moves.
@pytest.mark.parametrize("call", range(1, 9))
@pytest.mark.parametrize("error", [OSError("disk failed"), KeyboardInterrupt()])
@pytest.mark.parametrize("moves_first", [False, True])
def test_one_failed_move_puts_everything_back(
    repository: Path, monkeypatch: pytest.MonkeyPatch, call: int, error: BaseException, moves_first: bool
) -> None:
    monkeypatch.setattr(Path, "rename", failing_rename(lambda number: number == call, error, moves_first))
    with pytest.raises(type(error)):
        swap_folders(repository / ".new", repository, NAMES, OUTDATED)
    assert exported(repository) == OLD
    assert exported(repository / ".new") == NEW
    assert {path.name for path in repository.iterdir()} == {*OLD_NAMES, ".new"}


@pytest.mark.parametrize("first", range(1, 9))
@pytest.mark.parametrize("count", [2, 3, 100])
@pytest.mark.parametrize("error", [OSError("disk failed"), KeyboardInterrupt()])
def test_what_cannot_be_put_back_is_kept_and_named(
    repository: Path, monkeypatch: pytest.MonkeyPatch, first: int, count: int, error: BaseException
) -> None:
    """The moves that should undo the earlier ones fail, too."""
    fails = failing_rename(lambda number: first <= number < first + count, error, moves_first=False)
    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises((ExportError, type(error))) as raised:
        swap_folders(repository / ".new", repository, NAMES, OUTDATED)
    kept = [path for path in repository.iterdir() if path.name.startswith(".rcnn-replaced-")]
    found = exported(repository)
    for folder in kept:
        assert str(folder) in str(raised.value)
        for name, content in exported(folder).items():
            assert name in str(raised.value)
            found[name] = content
    assert {name: found[name] for name in OLD_NAMES} == OLD
