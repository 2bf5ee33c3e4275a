"""The number of launched processes is compared with the machine's devices."""

import pytest

from differad.errors import OptionError, PeerError
from differad.training import launch
from differad.training.launch import check_devices, raise_in_first

ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "bf16"}


@pytest.mark.parametrize(
    ("processes", "devices", "more", "message"),
    [
        (4, 2, ACCELERATE, r"^4 processes for 2 GPUs of this machine; .* --num_processes 2$"),
        (4, 1, ACCELERATE, r"^4 processes for 1 GPU of this machine; .* without its launcher$"),
        (4, 0, ACCELERATE, r"^4 processes for 0 GPUs of this machine; .* without its launcher$"),
        (2, 1, {}, r"^2 processes for 1 GPU"),
    ],
)
def test_more_processes_than_devices_are_refused(processes, devices, more, message):
    with pytest.raises(OptionError, match=message):
        check_devices(devices, {"LOCAL_WORLD_SIZE": str(processes), **more})


@pytest.mark.parametrize(
    ("devices", "environment"),
    [
        (0, {}),
        (1, {"LOCAL_WORLD_SIZE": "1", **ACCELERATE}),
        (0, {"LOCAL_WORLD_SIZE": "1", **ACCELERATE}),
        (4, {"LOCAL_WORLD_SIZE": "4", **ACCELERATE}),
        (8, {"LOCAL_WORLD_SIZE": "4"}),
        (0, {"LOCAL_WORLD_SIZE": "2"}),  # torchrun on CPUs
        (0, {"LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true", **ACCELERATE}),
    ],
)
def test_others_are_not(devices, environment):
    check_devices(devices, environment)


@pytest.mark.parametrize(("rank", "kind"), [("0", OptionError), ("1", PeerError)])
def test_the_first_process_says_what_all_have_met(monkeypatch, rank, kind):
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(launch, "SECONDS", 0.0)
    with pytest.raises(kind, match="too many"):
        raise_in_first(OptionError("too many"))
