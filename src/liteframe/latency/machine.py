"""What this machine can do and hold: matrix rate, bandwidth, memory that is free, memory that was used."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from liteframe.latency.cost import Rates
from liteframe.runtime import best_seconds, machine_facts, matrix_rate

_COLUMNS = 1024
_SMALLEST_BUFFER, _LARGEST_BUFFER = 1 << 20, 256 << 20
_PROCESS = Path("/proc/self")


class Gauge:
    """The best rates that torch has reached here in all measurements; the first is taken at once.

    The matrix rate is that of square products, as linear layers compute them. Bandwidth is that of a copy or of a
    matrix-vector product, whichever moves more bytes a second, on buffers of the size of the language model's weights,
    1 to 256 MiB: what stays in a processor's cache is read from there in the model as well, and must not beat its own
    bound. On a machine that others use, one measurement may fall into a slow moment; a bound needs the fast ones, so
    measure again now and then.

    Args:
        weight_bytes: of the language model.

    Attributes:
        best: ``flops_per_second``, ``copy_bytes_per_second``, ``read_bytes_per_second``, ``bytes_per_second`` (the
            larger of these two), ``buffer_bytes``.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, weight_bytes: int) -> None:
        self._device, self._dtype = device, dtype
        size = min(max(weight_bytes, _SMALLEST_BUFFER), _LARGEST_BUFFER)
        self._count = size // dtype.itemsize // _COLUMNS * _COLUMNS
        self.best: dict[str, float] = {"buffer_bytes": self._count * dtype.itemsize}
        self.measure()

    @property
    def rates(self) -> Rates:
        """What bounds are computed with."""
        return Rates(self.best["flops_per_second"], self.best["bytes_per_second"])

    def measure(self) -> None:
        """Measure once more: of every rate the best of a few runs after one of warm-up."""
        device, dtype = self._device, self._dtype
        self._keep("flops_per_second", matrix_rate(device, dtype))
        source, target = (torch.rand(self._count, device=device, dtype=dtype) for _ in range(2))
        size = self._count * dtype.itemsize
        self._keep("copy_bytes_per_second", 2 * size / best_seconds(partial(target.copy_, source), device))
        rows, vector = source.view(-1, _COLUMNS), torch.rand(_COLUMNS, device=device, dtype=dtype)
        self._keep("read_bytes_per_second", size / best_seconds(partial(torch.mv, rows, vector), device))
        self._keep("bytes_per_second", max(self.best[f"{kind}_bytes_per_second"] for kind in ("copy", "read")))

    def _keep(self, name: str, rate: float) -> None:
        self.best[name] = max(self.best.get(name, 0.0), rate)


def bench_facts(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """`machine_facts`, and the settings that a latency depends on."""
    facts = {
        **machine_facts(),
        **{package: version(package) for package in ("transformers", "av", "numpy")},
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "environment": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["gpu_memory_bytes"] = torch.cuda.mem_get_info(device)[1]
        facts["cuda"] = torch.version.cuda
    return facts


_ENVIRONMENT = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "LITEFRAME_ALLOCATOR",
    "LITEFRAME_LINEAR",
    "PYTORCH_CUDA_ALLOC_CONF",
)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on the device: of a CPU what the system and its control group leave."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    free = psutil.virtual_memory().available
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii").strip()
    except OSError:
        return free
    return free if limit == "max" else min(free, int(limit) - int(used))


def reset_peak(device: torch.device) -> None:
    """Give back what is free, and count the peak from now on."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    if sys.platform.startswith("linux"):
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)
        try:
            (_PROCESS / "clear_refs").write_text("5", encoding="ascii")  # VmHWM starts again from what is resident
        except OSError:  # a sandbox without it: the peak is that of the process's whole life
            return


def peak_memory(device: torch.device) -> int:
    """The most bytes since `reset_peak`: on CUDA of torch's tensors there, elsewhere resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = (_PROCESS / "status").read_text(encoding="ascii")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
