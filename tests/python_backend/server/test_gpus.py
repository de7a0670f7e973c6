"""Which GPUs, whole or MIG slices, a CUDA program sees, found with a fake nvidia-smi that gives recorded answers."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from rcnn_backend.errors import ServerError
from rcnn_backend.server.gpus import choose_gpus, find_gpus

MIB = 2**20
TOTALS = "--query-gpu=index,memory.total --format=csv,noheader,nounits"

# A divided A100 with 40 GB, listed as by drivers since R470, and an undivided one.
GPU_CUT = "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-e86cb44c-6756-fd30-cd4a-1e6da3caf9b0)\n"
SMALL = "MIG-c7384736-a75d-5afc-978f-d2f1294409fd"
LARGE = "MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d"
SLICES = f"""\
  MIG 3g.20gb     Device  0: (UUID: {LARGE})
  MIG 1g.5gb      Device  1: (UUID: {SMALL})
"""
GPU_WHOLE = "GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)\n"
XML = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
  <attached_gpus>2</attached_gpus>
  <gpu id="00000000:36:00.0">
    <mig_mode><current_mig>Enabled</current_mig><pending_mig>Enabled</pending_mig></mig_mode>
    <mig_devices>
      <mig_device>
        <index>0</index><gpu_instance_id>2</gpu_instance_id><compute_instance_id>0</compute_instance_id>
        <fb_memory_usage><total>19968 MiB</total><used>25 MiB</used><free>19942 MiB</free></fb_memory_usage>
      </mig_device>
      <mig_device>
        <index>1</index><gpu_instance_id>9</gpu_instance_id><compute_instance_id>0</compute_instance_id>
        <fb_memory_usage><total>4864 MiB</total><used>12 MiB</used><free>4851 MiB</free></fb_memory_usage>
      </mig_device>
    </mig_devices>
    <fb_memory_usage><total>40960 MiB</total><used>N/A</used><free>N/A</free></fb_memory_usage>
  </gpu>
  <gpu id="00000000:3B:00.0">
    <mig_mode><current_mig>Disabled</current_mig><pending_mig>Disabled</pending_mig></mig_mode>
    <mig_devices>
      None
    </mig_devices>
    <fb_memory_usage><total>40960 MiB</total><used>0 MiB</used><free>40960 MiB</free></fb_memory_usage>
  </gpu>
</nvidia_smi_log>
"""


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes PATH contain only an nvidia-smi that gives these answers and fails for any other question."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def write(totals: str, listed: str = "", xml: str = "", code: int = 0) -> None:
        answers = {TOTALS: totals, "-L": listed, "-q -x": xml}
        cases = "".join(
            f'"{asked}") echo {shlex.quote(told)}; exit {code};;\n' for asked, told in answers.items() if told
        )
        program = folder / "nvidia-smi"
        program.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}esac\nexit 2\n')
        program.chmod(0o755)

    return write


def test_gpus_are_found(nvidia_smi: Callable[..., None]) -> None:
    assert find_gpus() == (0, 0)  # no nvidia-smi
    nvidia_smi("0, 81559\n1, 24564")
    assert find_gpus() == (2, 24564 * MIB)
    nvidia_smi("0, 40960\n1, 40960", "GPU 0: NVIDIA A100 (UUID: GPU-1)\n" + GPU_WHOLE)
    assert find_gpus() == (2, 40960 * MIB)
    nvidia_smi("0, [N/A]")
    assert find_gpus() == (1, 0)
    nvidia_smi("No devices were found")
    assert find_gpus() == (0, 0)
    nvidia_smi("0, 81559", code=9)
    assert find_gpus() == (0, 0)


@pytest.mark.parametrize(
    ("visible", "num_gpus"),
    [("", 0), ("-1", 0), ("1", 1), ("1,0", 2), ("0,-1,1", 1), ("0, 2", 1), ("GPU-8932f937,GPU-45cbf7b3", 2)],
)
def test_hidden_gpus_do_not_count(
    visible: str, num_gpus: int, nvidia_smi: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi("0, 81559\n1, 81559")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_gpus()[0] == num_gpus


@pytest.mark.parametrize(
    ("visible", "numbers", "chosen"),
    [
        (None, [0], "0"),
        (None, [1], "1"),
        (None, [1, 0], "1,0"),
        ("1, 0", [0], "1"),
        ("GPU-8932f937,GPU-45cbf7b3", [1], "GPU-45cbf7b3"),
    ],
)
def test_gpus_are_chosen_among_those_that_are_seen(
    visible: str | None,
    numbers: list[int],
    chosen: str,
    nvidia_smi: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvidia_smi("0, 81559\n1, 81559")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert choose_gpus(numbers) == chosen
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert find_gpus()[0] == len(numbers)


def test_a_gpu_that_is_not_seen_cannot_be_chosen(
    nvidia_smi: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ServerError, match="--gpus names GPU 0, and a CUDA program sees none here"):
        choose_gpus([0])
    nvidia_smi("0, 81559\n1, 81559")
    with pytest.raises(ServerError, match=r"names GPU 2, and those that a CUDA program sees here are 0, 1$"):
        choose_gpus([0, 2])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(ServerError, match=r"names GPU 1, and those that a CUDA program sees here are 0$"):
        choose_gpus([1])


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, (1, 4864)),
        (LARGE, (1, 19968)),
        (f"{LARGE[:12]},{SMALL}", (1, 19968)),
        (f"{SMALL},{LARGE}", (1, 4864)),
        ("0", (1, 4864)),
        ("GPU-e86cb44c-6756-fd30-cd4a-1e6da3caf9b0", (1, 4864)),
        ("MIG-of-another-machine", (1, 4864)),
        ("", (0, 0)),
        ("-1", (0, 0)),
    ],
)
def test_a_mig_slice_counts_with_its_own_memory(
    visible: str | None,
    found: tuple[int, int],
    nvidia_smi: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for totals in ("0, 40960\n1, 40960", "0, [Insufficient Permissions]\n1, 40960", ""):
        nvidia_smi(totals, GPU_CUT + SLICES + GPU_WHOLE, XML)
        assert find_gpus() == (found[0], found[1] * MIB)


def test_slices_of_the_second_gpu_and_of_older_drivers(
    nvidia_smi: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = '<gpu id="0"><mig_devices>None</mig_devices></gpu>'
    cut = XML[XML.index("<gpu") : XML.index("</gpu>") + len("</gpu>")]
    gpu = "GPU-e86cb44c-6756-fd30-cd4a-1e6da3caf9b0"
    listed = SLICES.replace(LARGE, f"MIG-{gpu}/2/0").replace(SMALL, f"MIG-{gpu}/9/0")
    nvidia_smi("0, 40960\n1, 40960", GPU_WHOLE + GPU_CUT + listed, f"<log>{whole}{cut}</log>")
    assert find_gpus() == (1, 4864 * MIB)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"MIG-{gpu}/2/0")
    assert find_gpus() == (1, 19968 * MIB)


@pytest.mark.parametrize("xml", ["", "<nvidia_smi_log><gpu>", "<nvidia_smi_log></nvidia_smi_log>"])
def test_a_slice_whose_memory_is_not_reported_counts_as_0(xml: str, nvidia_smi: Callable[..., None]) -> None:
    nvidia_smi("0, 40960", GPU_CUT + SLICES, xml)
    assert find_gpus() == (1, 0)
