"""Laps of a worker's clock and the memory of its device, as reports tell them."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Laps of the monotonic clock; on CUDA each lap waits for the device's queued work."""

    def __init__(self, device: torch.device) -> None:
        """Start the first lap."""
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._base_bytes = torch.cuda.memory_allocated(device)
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last lap."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        lap_s, self._last = now - self._last, now
        return lap_s

    def peak_memory_bytes(self) -> int:
        """Return the most activation bytes allocated at once; 0 where it cannot be measured."""
        if self._device.type != "cuda":
            return 0
        return torch.cuda.max_memory_allocated(self._device) - self._base_bytes
