"""Clocks and meters: seconds of methods that take turns, and the peak memory of one of them beyond its start."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")
Work = Callable[[], Any]
MEBIBYTE = 1024**2
EXACT_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Environment in which glibc returns every tensor's memory at once, so that resident memory is memory in use."""
HEAVY_IMPORTS = ["torch", "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl"]


def interleaved_seconds(works: Mapping[str, Work], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each work, `repeats` times in turn; a run for which the GPU has too little memory adds no number.

    On a GPU it is wall time. On the CPU it is the process's user time, which other work on the machine disturbs least;
    the kernel's time for page faults, which large tensors cause again and again without a caching allocator, is
    left out.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            try:
                seconds[name].append(_seconds(work, device))
            except torch.cuda.OutOfMemoryError:
                gc.collect()
                torch.cuda.empty_cache()
    return seconds


def _seconds(work: Work, device: torch.device) -> float:
    gc.collect()
    if device.type != "cuda":
        start = getrusage(RUSAGE_SELF).ru_utime
        work()
        return getrusage(RUSAGE_SELF).ru_utime - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def cuda_peak_mib(work: Work, device: torch.device) -> float | None:
    """Peak memory of tensors during `work` beyond what they took before; None if the GPU has too little."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        work()
    except torch.cuda.OutOfMemoryError:
        return None
    return (torch.cuda.max_memory_allocated(device) - before) / MEBIBYTE


def resident_peak_mib(work: Work) -> float:
    """The same for this process's resident memory (Linux); call it with `in_fresh_process`."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is resident now
    before = _status_kib("VmRSS")
    work()
    return (_status_kib("VmHWM") - before) / 1024


def in_fresh_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a module's function in a new process whose allocator returns freed memory at once.

    The processes are forks of one that has done the heavy imports and allocated nothing else.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(HEAVY_IMPORTS)
    # The C library reads these when the server starts, which is at the first call.
    with _environment(EXACT_MALLOC), ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large square matrix product: what arithmetic can reach here."""
    side = 8192 if device.type == "cuda" else 1536
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    work = {"product": lambda: left @ right}
    interleaved_seconds(work, 2, device)
    return 2 * side**3 / min(interleaved_seconds(work, 10, device)["product"])


def machine(device: torch.device) -> str:
    """Processor, cores, threads and the accelerator if it is used."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    text = f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name(device)}; {text}" if device.type == "cuda" else text
