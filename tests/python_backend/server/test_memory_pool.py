"""The size of Triton's CUDA memory pool, from the configs of R50-FPN and a fake nvidia-smi."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rcnn_backend.contract.configs import read_configs
from rcnn_backend.errors import RepositoryError
from rcnn_backend.server.memory_pool import image_bytes, pool_bytes, size_pool
from tritonclient.grpc.model_config_pb2 import TYPE_FP16, ModelConfig

MODEL_REPOSITORY = Path(__file__).resolve().parents[3] / "model_repository"
QUERY = "--query-gpu=index,memory.total --format=csv,noheader,nounits"
GB = 10**9

# Bytes of the tensors of one image whose sizes do not depend on the image's size; all elements have 4 bytes.
BOXES = 4 * (
    5 * 1000 * 6  # rpn_boxes
    + 1000 * 4  # proposals
    + 1000 * 256 * 7 * 7  # roialigned_feature
    + 1000 * 90  # class_scores
    + 1000 * 90 * 4  # class_boxes
    + 4  # image_sizes
    + 1  # num_proposals
)
# Bytes of its 3 channels of 800x1344, and of 256 channels at each of the strides 4, 8, 16 and 32.
PIXELS = 4 * (3 * 800 * 1344 + 256 * (200 * 336 + 100 * 168 + 50 * 84 + 25 * 42))


@pytest.fixture
def configs() -> dict[str, ModelConfig]:
    return read_configs(MODEL_REPOSITORY)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The configs of R50-FPN and nothing else."""
    for path in MODEL_REPOSITORY.glob("faster_rcnn*/config.pbtxt"):
        copy = tmp_path / "models" / path.parent.name / path.name
        copy.parent.mkdir(parents=True)
        shutil.copyfile(path, copy)
    return tmp_path / "models"


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes PATH contain only an nvidia-smi that runs the given shell lines for the expected query."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def write(lines: str) -> None:
        program = folder / "nvidia-smi"
        program.write_text(f'#!/bin/sh\n[ "$*" = "{QUERY}" ] || exit 2\n{lines}\n')
        program.chmod(0o755)

    return write


def set_parameter(config: ModelConfig, name: str, value: object) -> None:
    config.parameters[name].string_value = json.dumps(value)


def check(computed: int, by_hand: int) -> None:
    """The steps may send a few more bytes than those counted here."""
    assert by_hand <= computed < by_hand + 1000


def test_bytes_of_an_image(configs: dict[str, ModelConfig]) -> None:
    assert (PIXELS, BOXES) == (104_294_400, 52_112_020)
    check(image_bytes(configs, "faster_rcnn"), 156_406_420)
    check(image_bytes(configs, "faster_rcnn_pixels"), 156_406_420)  # the same steps


def test_fp16_halves_what_is_fp16(configs: dict[str, ModelConfig]) -> None:
    for config in configs.values():
        for output in config.output:
            if output.name in ("input", "roialigned_feature") or output.name.startswith("feature_"):
                output.data_type = TYPE_FP16
    check(image_bytes(configs, "faster_rcnn"), PIXELS // 2 + BOXES - 2 * 1000 * 256 * 7 * 7)


def test_the_largest_size_counts(configs: dict[str, ModelConfig]) -> None:
    preprocess = configs["faster_rcnn_preprocess"]
    set_parameter(preprocess, "padded_sizes_hw", [[1344, 1344], [800, 1344]])
    square = 4 * (3 * 1344 * 1344 + 256 * (336 * 336 + 168 * 168 + 84 * 84 + 42 * 42))
    check(image_bytes(configs, "faster_rcnn"), square + BOXES)
    set_parameter(preprocess, "padded_sizes_hw", [])
    check(image_bytes(configs, "faster_rcnn"), PIXELS + BOXES)
    set_parameter(preprocess, "size_divisible", 1)  # 800x1333: the levels round up
    uneven = 4 * (3 * 800 * 1333 + 256 * (200 * 334 + 100 * 167 + 50 * 84 + 25 * 42))
    check(image_bytes(configs, "faster_rcnn"), uneven + BOXES)
    set_parameter(preprocess, "size_divisible", 32)
    set_parameter(preprocess, "fixed_size_hw", [600, 600])
    fixed = 4 * (3 * 608 * 608 + 256 * (152 * 152 + 76 * 76 + 38 * 38 + 19 * 19))
    check(image_bytes(configs, "faster_rcnn"), fixed + BOXES)


def test_the_padded_count_counts(configs: dict[str, ModelConfig]) -> None:
    set_parameter(configs["faster_rcnn_proposals"], "padded_counts", [100, 500])
    one_box = 4 * (4 + 256 * 7 * 7 + 90 + 90 * 4)
    check(image_bytes(configs, "faster_rcnn"), PIXELS + BOXES - 500 * one_box)


def test_the_rpn_boxes_count(configs: dict[str, ModelConfig]) -> None:
    """With a different number of anchors per level than torchvision's 1000."""
    set_parameter(configs["faster_rcnn_proposals"], "max_rpn_boxes", 20_000)
    check(image_bytes(configs, "faster_rcnn"), PIXELS + BOXES + 4 * 15_000 * 6)


def test_only_detectors_count(configs: dict[str, ModelConfig]) -> None:
    assert image_bytes(configs, "faster_rcnn_rpn") == 0
    configs["other"] = ModelConfig()
    configs["other"].CopyFrom(configs["faster_rcnn"])
    assert image_bytes(configs, "other") == image_bytes(configs, "faster_rcnn")  # by its steps, not its name
    del configs["other"].ensemble_scheduling.step[2]  # the proposals
    assert image_bytes(configs, "other") == 0


def test_configs_that_do_not_fit(configs: dict[str, ModelConfig]) -> None:
    preprocess = configs["faster_rcnn_preprocess"].parameters
    preprocess["min_size"].string_value = "800 px"
    with pytest.raises(RepositoryError, match="parameter 'min_size' is '800 px', expected a JSON"):
        image_bytes(configs, "faster_rcnn")
    preprocess["min_size"].string_value = "800"
    header = configs.pop("faster_rcnn_header")
    with pytest.raises(RepositoryError, match=r"no faster_rcnn_header/config\.pbtxt: export"):
        image_bytes(configs, "faster_rcnn")
    header.output[0].name = "logits"
    with pytest.raises(
        RepositoryError, match=r"header/config\.pbtxt has no output 'class_scores', which a later step"
    ):
        image_bytes({**configs, "faster_rcnn_header": header}, "faster_rcnn")


def test_the_pool_is_between_the_default_and_the_share() -> None:
    assert pool_bytes(150_000_000, images_in_flight=32, gpu_bytes=80 * GB) == 9_600_000_000
    assert pool_bytes(150_000_000, images_in_flight=32, gpu_bytes=20 * GB) == 8 * GB
    assert pool_bytes(1_000_000, images_in_flight=8, gpu_bytes=80 * GB) == 67_108_864
    assert pool_bytes(150_000_000, images_in_flight=32, gpu_bytes=0) == 67_108_864


def test_flags_and_summary(repository: Path, nvidia_smi: Callable[[str], None]) -> None:
    assert size_pool(repository, ["faster_rcnn"], 32, []).flags == []
    nvidia_smi("echo '0, 81559'; echo '1, 81559'")
    pool = size_pool(repository, ["faster_rcnn"], 32, [])
    pinned, *cuda = pool.flags
    assert pinned == "--pinned-memory-pool-byte-size=0"
    assert [flag.rpartition(":")[0] for flag in cuda] == [
        f"--cuda-memory-pool-byte-size={gpu}" for gpu in (0, 1)
    ]
    for flag in cuda:
        check(int(flag.rpartition(":")[2]) // (32 * 2), 156_406_420)
    assert pool.summary == (
        "CUDA memory pool: 10.0 GB on each of 2 GPUs, for 32 images in flight (156 MB each, twice)"
    )
    assert size_pool(repository, None, 32, []) == pool  # whatever is loaded later
    assert size_pool(repository, ["faster_rcnn_rpn"], 32, []).flags == [pinned]
    assert size_pool(repository / "absent", None, 32, []).flags == [pinned]


def test_a_small_gpu_says_how_many_images_fit(repository: Path, nvidia_smi: Callable[[str], None]) -> None:
    nvidia_smi("echo '0, 15360'")  # 40% of 16.1 GB is 6.4 GB, which is 20 times 313 MB
    assert size_pool(repository, ["faster_rcnn"], 32, []).summary == (
        "CUDA memory pool: 6.4 GB on GPU 0, at most 40% of its memory, for 20 of 32 images in flight "
        "(156 MB each, twice); more are slower"
    )


def test_flags_of_the_caller_stand(repository: Path, nvidia_smi: Callable[[str], None]) -> None:
    nvidia_smi("echo '0, 81559'; echo '1, 81559'")
    cuda, pinned = "--cuda-memory-pool-byte-size=1:1000000000", "--pinned-memory-pool-byte-size=1000000"
    assert size_pool(repository, None, 32, [cuda]).flags == ["--pinned-memory-pool-byte-size=0"]
    assert size_pool(repository, None, 32, [cuda]).summary == ""
    assert size_pool(repository, None, 32, [cuda, pinned]).flags == []
    assert len(size_pool(repository, None, 32, [pinned]).flags) == 2
