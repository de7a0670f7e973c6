"""Repositories, temporary folders and installations on paths that Triton's shell would change."""

import os
import tempfile
from pathlib import Path

import pytest
from rcnn_backend.errors import RepositoryError, ServerError
from rcnn_backend.server import paths
from rcnn_backend.server.model_selection import select_models
from rcnn_backend.server.paths import check_plain, check_separators, is_plain, make_plain_folder, plain_link

ODD = [
    "a b",
    "a(b",
    "a'b",
    'a"b',
    "a$b",
    "a&b",
    "a;b",
    "a\nb",
    "a*b",
    "~a",
    "#a",
    "a\\b",
    "ä",
    "猫",
    os.fsdecode(b"a\xff"),
]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(paths, "FOLDERS_OF_ALL", ())
    return tmp_path


def test_plain_paths() -> None:
    assert not any(is_plain(f"/models/{name}") for name in ODD)
    assert is_plain("/models/digits-2.0_v1+b@x") and not is_plain("")


def test_a_repository_on_an_odd_path_is_reached_by_a_link(tmp_path: Path) -> None:
    assert plain_link(tmp_path, tmp_path) == tmp_path
    for number, name in enumerate(ODD):
        repository, folder = tmp_path / name, tmp_path / str(number)
        repository.mkdir()
        folder.mkdir()
        link = plain_link(repository, folder)
        assert is_plain(link) and link.parent == folder and link.resolve() == repository


def test_temporary_files_go_to_another_folder_where_tmpdir_is_odd(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make_plain_folder().parent == temporary
    odd = temporary / "a b"
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    with pytest.raises(
        ServerError,
        match=r"temporary files is '.*/a b', .*: set TMPDIR to a folder whose path has only letters",
    ):
        make_plain_folder()
    link = temporary / "link"
    link.symlink_to(odd)
    monkeypatch.setattr(tempfile, "tempdir", str(link))
    with pytest.raises(ServerError, match=r"is '.*/link'"):
        make_plain_folder()
    monkeypatch.setattr(paths, "FOLDERS_OF_ALL", (str(temporary),))
    assert make_plain_folder().parent == temporary


def test_a_temporary_folder_that_is_noexec_or_full(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.statvfs(temporary)
    fields = list(found)[:10]
    noexec = os.statvfs_result([*fields[:8], found.f_flag | os.ST_NOEXEC, *fields[9:]])
    with (
        monkeypatch.context() as patch,
        pytest.raises(ServerError, match=rf"{temporary} is mounted noexec.* set TMPDIR"),
    ):
        patch.setattr(os, "statvfs", lambda path: noexec)
        make_plain_folder()
    with (
        monkeypatch.context() as patch,
        pytest.raises(ServerError, match=r"MiB free, .* need 9999999999: free some"),
    ):
        patch.setattr(paths, "MIN_FREE_BYTES", 9999999999 << 20)
        make_plain_folder()
    assert not list(temporary.iterdir())


def test_installations_that_cannot_work() -> None:
    with pytest.raises(ServerError, match=r"Triton is installed in '/opt/my triton'"):
        check_plain(Path("/opt/my triton"))
    check_plain(Path("/opt/tritonserver"))
    with pytest.raises(ServerError, match=r"'/a;b/bin' has a ';', which separates folders in PATH"):
        check_separators(Path("/a b/bin"), Path("/a;b/bin"))


def test_models_whose_names_the_shell_would_change(tmp_path: Path) -> None:
    for model, config in {"plain": "", "my model": "", "other": 'default_model_filename: "a(b.py"'}.items():
        (tmp_path / model / "1").mkdir(parents=True)
        (tmp_path / model / "config.pbtxt").write_text(f'backend: "python"\n{config}')
        (tmp_path / model / "1" / "model.py").touch()
    selection = select_models(tmp_path)
    assert selection.served == ["plain"]
    assert selection.skipped["my model"].startswith("Triton cannot start 'my model': rename it, using only")
    assert selection.skipped["other"].startswith("Triton cannot start 'a(b.py'")
    with pytest.raises(RepositoryError, match="cannot start 'my model'"):
        select_models(tmp_path, ["my model"])
