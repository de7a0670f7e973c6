import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from rcnn_export.errors import ExportError
from rcnn_export.train.files import replacing
from safetensors.torch import save_file

BIG = {"tensor": torch.zeros(100_000)}


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files are limited to 64 kB: writing more fails, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _save_checkpoint(path: Path) -> None:
    with path.open("wb") as file:
        torch.save(BIG, file)


def _save_weights(path: Path) -> None:
    save_file(BIG, path)


@pytest.mark.parametrize("save", [_save_checkpoint, _save_weights])
@pytest.mark.usefixtures("small_files")
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, save: Callable[[Path], None]) -> None:
    path, other = tmp_path / "checkpoint.pt", tmp_path / "labels.txt"
    path.write_text("old")
    said = r"cannot write .*checkpoint\.pt: .*File too large.*earlier files are unchanged"
    with pytest.raises(ExportError, match=said), replacing(path, other) as (partial, other_partial):
        other_partial.write_text("new")
        save(partial)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_all_are_put_in_place(tmp_path: Path) -> None:
    paths = tmp_path / "a", tmp_path / "b"
    with replacing(*paths) as partials:
        for partial in partials:
            partial.write_text("new")
        assert not paths[0].exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]
