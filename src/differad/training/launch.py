"""What a launcher (`accelerate launch`, `torchrun`) says of the processes of one machine, by the environment that it sets.

Imports no torch: it is asked before anything is loaded.
"""

import os
import time
from collections.abc import Mapping
from typing import NoReturn

from differad.errors import DifferadError, OptionError, PeerError

# How long a process waits for its launcher to end it.
SECONDS = 20.0


def check_devices(devices: int, environment: Mapping[str, str] = os.environ) -> None:
    """Raise OptionError where a launcher started more processes on this machine than it has `devices`, which would wait for ever.

    Without any device processes share the CPU, unless `accelerate launch` was told to take GPUs.
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
    """Raise an error that every process of a machine has met alike: the first one says it.

    The others wait for the launcher to end them: if one of them left before, the first would be ended in its place, unheard.
    Raises PeerError there if none comes.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        raise error
    time.sleep(SECONDS)
    raise PeerError(str(error))
