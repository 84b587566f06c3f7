"""What this machine must have before workers start: packages, GPUs. Each lack is said in words."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from typing import Final

from gateway.refusal import RefusalError

_INSTALL_HINT: Final = "pip install 'tridentserve[engine]'"


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
