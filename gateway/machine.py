"""What must be there before workers start: packages, GPUs, memory. Each lack is said in words."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from gateway.refusal import RefusalError

if TYPE_CHECKING:
    from engine import PipelineSpec

_INSTALL_HINT: Final = f"{sys.executable} -m pip install 'tridentserve[engine]'"


def need_engine() -> None:
    """Refuse if workers could not import what they run."""
    if find_spec("torch") is None:
        message = f"The engine's packages are not installed here; run: {_INSTALL_HINT}"
        raise RefusalError(message)


def need_gpus(device: str, devices: int) -> None:
    """Ask torch in a process of its own, because this one must not import it."""
    if device != "cuda":
        return
    count = "import torch; print(torch.cuda.device_count())"
    asked = subprocess.run([sys.executable, "-P", "-c", count], capture_output=True, check=False)
    found = int(asked.stdout.decode().strip() or 0)
    if found < devices:
        message = (
            f"torch finds {found} GPUs here, but {devices} are asked for; use "
            "--devices, --device cpu, or a build of torch with CUDA."
        )
        raise RefusalError(message)


def need_memory(capacity_bytes: int | None, specs: Iterable[PipelineSpec]) -> None:
    """Refuse devices that could not even hold the weights of one stage.

    What a stage needs to work in depends on the request, which is refused if it is too much.
    """
    stages = [(size, spec, kind) for spec in specs for kind, size in spec.weight_bytes.items()]
    if capacity_bytes is None or not stages:
        return
    weights, spec, kind = max(stages, key=itemgetter(0))
    if weights > capacity_bytes:
        message = (
            f"Devices with {capacity_bytes >> 20} MiB for weights cannot serve model {spec.id}: those "
            f"of its stage {kind.value} alone take {-(-weights >> 20)} MiB. Raise --device-memory "
            "(TRIDENT_DEVICE_MEMORY), or serve a smaller model."
        )
        raise RefusalError(message)
