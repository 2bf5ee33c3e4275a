"""Checks of a launcher's (`accelerate launch`, `torchrun`) environment variables for the processes of one machine.

Imports no torch: the checks run before anything is loaded.
"""

import os
import time
from collections.abc import Mapping
from typing import NoReturn

from differad.errors import DifferadError, OptionError, PeerError

# How long a process waits for its launcher to end it.
SECONDS = 20.0


def check_devices(devices: int, environment: Mapping[str, str] = os.environ) -> None:
    """Raise OptionError if a launcher started more processes on this machine than it has `devices`; they would wait forever.

    Without any device, processes share the CPU, unless `accelerate launch` was set to use GPUs.
    """
    processes = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    on_gpus = "ACCELERATE_MIXED_PRECISION" in environment and environment.get("ACCELERATE_USE_CPU") != "true"
    if processes > max(devices, 1) and (devices or on_gpus):
        remedy = f"--num_processes {devices}" if devices > 1 else "the command without its launcher"
        raise OptionError(
            f"{processes} processes for {devices} {'GPU' if devices == 1 else 'GPUs'} of this machine; expected one for each at "
            f"most: {remedy}"
        )


def raise_in_first(error: DifferadError) -> NoReturn:
    """Raise an error that occurred in every process of a machine, in the first process only.

    The others wait until the launcher ends them: if one exited earlier, the launcher could end the first before it reports the
    error. They raise PeerError if no launcher ends them.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        raise error
    time.sleep(SECONDS)
    raise PeerError(str(error))
