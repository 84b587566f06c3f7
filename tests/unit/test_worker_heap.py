"""What a worker's heap does with memory that a step has freed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from engine.executors.slot import environment

CHURN = """
import ctypes, resource
from engine.stages import heap

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]

def step():  # as a denoise step does: sixteen tensors of 4 MiB come, are written, and go
    tensors = [libc.malloc(4 << 20) for _ in range(16)]
    for tensor in tensors:
        ctypes.memset(tensor, 1, 4 << 20)
    for tensor in reversed(tensors):
        libc.free(tensor)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

step()
kept = faults()
heap.give_back()
print(kept, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc's allocator")
def test_a_worker_reuses_the_pages_of_a_step_until_it_gives_them_back() -> None:
    told = subprocess.run(
        [sys.executable, "-c", CHURN],
        env=environment(threads=1),
        capture_output=True,
        text=True,
        check=True,
    )
    kept, given_back = map(int, told.stdout.split())
    assert kept < 64
    assert given_back > 2 * kept + 16  # 16,384 pages of 4 KiB, or 32 of 2 MiB


def test_an_operators_own_allocator_settings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert environment(threads=1)["MALLOC_TRIM_THRESHOLD_"] == "131072"
