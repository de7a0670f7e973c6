"""Which models are chosen if the names of detectors look like those of steps."""

from pathlib import Path

import pytest
from rcnn_backend.contract.chain import FASTER_RCNN, MASK_RCNN
from rcnn_backend.contract.chain_types import FUSED, PIXELS, Chain
from rcnn_backend.engines.rebuild import rebuild_plans
from rcnn_backend.errors import RepositoryError
from rcnn_backend.server.model_selection import select_models


def write(repository: Path, name: str, chain: Chain) -> None:
    """Writes the models of a detector. Their configs contain only what the selection reads."""
    steps = " ".join(f'step {{ model_name: "{step}" }}' for step in chain.step_names(name))
    for model in chain.model_names(name):
        (repository / model / "1").mkdir(parents=True)
        (repository / model / "1" / "model.any").touch()
        config = 'backend: "tensorrt"' if model in (f"{name}_rpn", f"{name}_header") else 'backend: "python"'
        if model in (name, f"{name}_{PIXELS}"):
            config = f"ensemble_scheduling {{ {steps} }}"
        (repository / model / "config.pbtxt").write_text(config)


@pytest.mark.parametrize("name", ["my_mask", "a_fused", "a_pixels", "rpn", "x_masks"])
def test_a_detector_of_any_name_is_served_with_its_fused_model(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, MASK_RCNN)
    write(tmp_path, "other", FASTER_RCNN)
    everything = select_models(tmp_path)
    assert everything.served == sorted([name, f"{name}_{PIXELS}", "other", f"other_{PIXELS}"])
    assert everything.detectors == sorted([name, "other"]) and all(everything.ensembles.values())
    assert set(everything.skipped) == {f"{name}_{FUSED}", f"other_{FUSED}"}
    assert select_models(tmp_path, [name]).served == [name, f"{name}_{PIXELS}"]
    fused = select_models(tmp_path, [f"{name}_{FUSED}"])
    assert fused.detectors == fused.served == [f"{name}_{FUSED}"]


def test_a_model_that_is_named_as_a_fused_one_is_served_as_what_it_is(tmp_path: Path) -> None:
    write(tmp_path, "a_fused", FASTER_RCNN)
    write(tmp_path, "b", FASTER_RCNN)
    for model in ("a", "a_pixels", "d"):  # no detectors
        (tmp_path / model / "1").mkdir(parents=True)
        (tmp_path / model / "1" / "model.py").touch()
        (tmp_path / model / "config.pbtxt").write_text('backend: "python"')
    assert {"a", "a_fused", "a_pixels", "b", "d"} <= set(select_models(tmp_path).served)
    assert select_models(tmp_path, ["a"]).served == ["a"]


@pytest.mark.parametrize("name", ["my_mask", "a_fused"])
def test_missing_files_are_reported_with_the_name_to_export(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, FASTER_RCNN)
    (tmp_path / f"{name}_header" / "1" / "model.any").unlink()
    with pytest.raises(
        RepositoryError, match=f"missing {name}_header/1/.*`rcnn-export faster_rcnn --name {name} "
    ):
        select_models(tmp_path, [name])


@pytest.mark.parametrize("model", ["a_fused", "a_fused_fused", "a_fused_pixels"])
def test_the_plans_of_a_detector_are_rebuilt_whatever_its_name(tmp_path: Path, model: str) -> None:
    write(tmp_path, "a_fused", FASTER_RCNN)
    write(tmp_path, "b", FASTER_RCNN)
    lines: list[str] = []
    rebuild_plans(tmp_path, [model], "8.9", lines.append)
    assert [line.partition(":")[0] for line in lines] == ["a_fused_header", "a_fused_rpn"]
