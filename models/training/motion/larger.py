"""Larger clips: `python -m models.training.motion.larger --motion models/motion --stills models/shapes-128`.

A clip of 128 x 128 has the same latents as one of 64 x 64, so nothing is trained: the folder, such as
models/motion-128, holds links to the autoencoder of the larger stills and to all else of the clips.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from models.training.links import link_parts


def main() -> None:
    """Write the folder beside that of the clips."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--motion", type=Path, default=Path("models/motion"))
    parser.add_argument("--stills", type=Path, default=Path("models/shapes-128"))
    options = parser.parse_args()
    suffix = options.stills.name.rpartition("-")[2]
    folder = options.motion.parent / f"{options.motion.name}-{suffix}"
    link_parts(folder, options.motion, ("unet", "text_encoder", "tokenizer", "scheduler"))
    link_parts(folder, options.stills, ("vae",))
    shutil.copyfile(options.motion / "model_index.json", folder / "model_index.json")


if __name__ == "__main__":
    main()
