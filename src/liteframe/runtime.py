"""The machine: device and dtype, threads, allocator, seeds, a synchronised clock."""

from __future__ import annotations

import ctypes
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from liteframe.errors import InputError

if TYPE_CHECKING:
    import torch

# glibc's mallopt parameters (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_KEEPING = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 1 << 30, _M_TOP_PAD: 64 << 20}
_kept_by: dict[int, int] = {}  # once `tune_allocator` has set them
_LARGE_BYTES = 1 << 17
# Of a rate: runs of which the best counts, and the sides of the square matrices that are multiplied.
_REPEATS = 5
CPU_MATRIX_SIDES, GPU_MATRIX_SIDES = (512, 1024, 2048), (4096, 8192)


def tune_allocator() -> bool:
    """Let glibc keep freed tensors instead of giving them back to the system after every operation.

    Returning and faulting in tens of megabytes per operation costs more on CPU than the arithmetic itself. Disabled by
    ``LITEFRAME_ALLOCATOR=system`` (to measure the difference). Returns whether the setting took effect: only glibc
    has it.
    """
    if os.environ.get("LITEFRAME_ALLOCATOR") == "system" or not sys.platform.startswith("linux"):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    accepted = [libc.mallopt(name, value) for name, value in _KEEPING.items()]
    _kept_by.update(_KEEPING)
    return all(accepted)


def return_freed_memory() -> None:
    """Give what was freed back to the system, glibc's only: `tune_allocator` keeps it.

    For what is rare and large, in the thread that freed it. What is needed next is faulted in anew, so that it is not
    for every operation.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    # A thread's arena gives back its end at a large free alone, and malloc_trim leaves the ends of those arenas.
    for name in _kept_by:
        libc.mallopt(name, 0)
    libc.free(libc.malloc(_LARGE_BYTES))
    libc.malloc_trim(0)
    for name, value in _kept_by.items():
        libc.mallopt(name, value)


def choose_device(name: str = "auto") -> torch.device:
    """The torch device for `name`; ``auto`` takes CUDA, then MPS, then the CPU. Raises InputError if it is absent."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}: unknown device; use auto, cpu, cuda or mps") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name}: this torch sees no CUDA device; use --device cpu")
    return device


def choose_dtype(device: torch.device, name: str = "auto") -> torch.dtype:
    """The torch dtype for `name`; ``auto`` is bfloat16 on CUDA and float32 elsewhere, where it measured faster."""
    import torch

    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"dtype {name}: unknown; use auto, float32, bfloat16 or float16")
    return dtype


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def machine_facts() -> dict[str, Any]:
    """What a figure was taken on: system, processor, memory in bytes, load, versions, threads, and the GPU's name."""
    import psutil
    import torch

    facts = {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": psutil.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _processor() -> str:
    """The processor's name; Linux tells it in a file only."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 (a file of the kernel)
            named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        named = []
    return named[0] if named else platform.processor() or platform.machine()


def matrix_rate(device: torch.device, dtype: torch.dtype, is_quick: bool = False) -> float:
    """Floating-point operations a second, two a multiply-add, of the best square matrix product of a linear layer here.

    Args:
        is_quick: without the largest, which gains a few per cent and takes most of the time.
    """
    import torch

    from liteframe.packed import linear

    rate = 0.0
    sides = GPU_MATRIX_SIDES if device.type == "cuda" else CPU_MATRIX_SIDES
    for side in sides[:-1] if is_quick else sides:
        matrix = torch.rand(side, side, device=device, dtype=dtype)
        rate = max(rate, 2 * side**3 / best_seconds(partial(linear, matrix, matrix), device))
    return rate


def best_seconds(run: Callable[[], Any], device: torch.device) -> float:
    """The shortest of a few runs; what is short is repeated inside a run, so that the clock's grain is small."""
    import torch

    watch = Stopwatch(device)

    def timed(times: int) -> float:
        watch.synchronize()
        start = time.perf_counter()
        for _ in range(times):
            run()
        watch.synchronize()
        return (time.perf_counter() - start) / times

    with torch.inference_mode():
        times = max(1, min(50, int(0.02 / max(timed(1), 1e-6))))
        return min(timed(times) for _ in range(_REPEATS))


class Stopwatch:
    """Adds up the seconds spent in named stages, waiting for the device at both ends of each.

    Without the wait a CUDA stage looks free and the next one pays for it.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device

    def synchronize(self) -> None:
        """Wait until the device has finished what was queued."""
        if self._device is not None and self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the enclosed block to stage `name`."""
        self.synchronize()
        start = time.perf_counter()
        try:
            yield
        finally:
            self.synchronize()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
