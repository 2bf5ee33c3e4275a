"""The `card` stage of `gpu.py`: the GPU's name, the versions, and the GPU's ceilings measured on random numbers.

Later stages compare their operations with `bfloat16 product` (`tflops`) and their bytes with `device copy` (`tb_per_s`, reads
plus writes). Published for an H100 SXM: 989 TFLOP/s in bfloat16 and 3.35 TB/s; typical measurements are about 800 and 3.0.
"""

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cv2
import torch

from differad.training.provenance import git_commit
from gpu_context import GIB, Context, Row, attempt

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "numpy", "differad")


def rows(context: Context) -> Iterator[Row]:
    yield from attempt("GPU", lambda: {"value": gpu_name(context)})
    for name, value in surroundings().items():
        yield {"what": name, "value": value}
    side = 256 if context.tiny else 8192
    yield from attempt("bfloat16 product", lambda: product(context, side, torch.bfloat16))
    for name, precision in (("tf32 off", "highest"), ("tf32 on", "high")):
        yield from attempt(f"float32 product, {name}", lambda precision=precision: float_product(context, precision))
    yield from attempt("device copy", lambda: device_copy(context))
    for name, pinned in (("pinned", True), ("pageable", False)):
        yield from attempt(f"host to device, {name}", lambda pinned=pinned: host_copy(context, pinned))
    yield from attempt("kernel launch", lambda: launch(context))


def gpu_name(context: Context) -> str | None:
    """Name, memory, compute capability and multiprocessors; None on a CPU."""
    if context.device.type != "cuda":
        return None
    card = torch.cuda.get_device_properties(context.device)
    return (
        f"{card.name}, {card.total_memory / GIB:.1f} GiB, compute capability {card.major}.{card.minor}, "
        f"{card.multi_processor_count} multiprocessors"
    )


def surroundings() -> dict[str, str | None]:
    """Driver, versions, commit, cores and memory of the machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "driver": driver(),
        "CUDA of torch": torch.version.cuda,
        "python": platform.python_version(),
        **{name: installed(name) for name in PACKAGES},
        "opencv": cv2.__version__,
        "commit": git_commit(Path(__file__)),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory of the machine, GiB": f"{memory / GIB:.0f}",
    }


def driver() -> str | None:
    """Driver, maximum clock and power limit from nvidia-smi; None without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = "--query-gpu=driver_version,clocks.max.sm,power.limit"
    found = subprocess.run([program, query, "--format=csv,noheader"], capture_output=True, text=True, timeout=20)
    return found.stdout.strip() or None


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def product(context: Context, side: int, dtype: torch.dtype, times: int = 10) -> Row:
    """A matrix product (side x side)(side x side), repeated `times`, so that launches do not count."""
    left, right = (torch.randn(side, side, device=context.device).to(dtype) for _ in range(2))
    into = torch.empty_like(left)
    seconds = context.seconds(repeated(lambda: torch.mm(left, right, out=into), times), warm_up=2) / times
    return {"side": side, "ms": 1e3 * seconds, "tflops": 2 * side**3 / seconds / 1e12}


def float_product(context: Context, precision: str) -> Row:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        return product(context, 128 if context.tiny else 4096, torch.float32)
    finally:
        torch.set_float32_matmul_precision(before)


def device_copy(context: Context, times: int = 10) -> Row:
    """A copy within the device's memory; each byte is read and written."""
    size = (1 << 20) if context.tiny else 4 * GIB
    source = torch.randint(256, (size,), dtype=torch.uint8, device=context.device)
    into = torch.empty_like(source)
    seconds = context.seconds(repeated(lambda: into.copy_(source), times), warm_up=2) / times
    return {"gib": size / GIB, "ms": 1e3 * seconds, "tb_per_s": 2 * size / seconds / 1e12}


def host_copy(context: Context, pinned: bool) -> Row:
    size = (1 << 20) if context.tiny else GIB
    source = torch.ones(size, dtype=torch.uint8, pin_memory=pinned and context.device.type == "cuda")
    into = torch.empty(size, dtype=torch.uint8, device=context.device)
    seconds = context.seconds(lambda: into.copy_(source, non_blocking=True), repeats=3)
    return {"gib": size / GIB, "ms": 1e3 * seconds, "gb_per_s": size / seconds / 1e9}


def launch(context: Context, times: int = 1000) -> Row:
    """Time of one operation on a single number, from Python: the minimum cost of any small operation."""
    number = torch.zeros(1, device=context.device)
    seconds = context.seconds(repeated(lambda: number.add_(1), times)) / times
    return {"microseconds": 1e6 * seconds}


def repeated(work: Callable[[], object], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            work()

    return run
