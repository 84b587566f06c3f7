"""Profiles by name or path, and model specs made of them.

`l20` and `h100` ship with the package; everything else is a path. The nouns live in
`schedulers.profiles.schema`, the file format in docs/profiles.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from engine.cards import Limits
from engine.pipelines import DEFAULT_FPS, PipelineSpec
from engine.types import ModelId
from schedulers.errors import ProfileError
from schedulers.profiles.checks import decode_profile
from schedulers.profiles.schema import (
    SCHEMA,
    DegreeFloor,
    EdgeProfile,
    Entry,
    Measurement,
    ModelProfile,
    NodeProfile,
    Profile,
    Provenance,
    Source,
    StageProfile,
)

__all__ = [
    "BUNDLED",
    "SCHEMA",
    "DegreeFloor",
    "EdgeProfile",
    "Entry",
    "Measurement",
    "ModelProfile",
    "NodeProfile",
    "Profile",
    "ProfileError",
    "Provenance",
    "Source",
    "StageProfile",
    "load_profile",
    "specs_of",
    "usable",
]

BUNDLED = ("l20", "h100")

# A profile does not say what a model can draw: nothing is refused for its size or its steps.
_ANY_SIDE_PX = 1 << 20
_ANYTHING = Limits(max_pixels=_ANY_SIDE_PX**2, max_frames=1 << 20, max_steps=1 << 20)


def load_profile(name_or_path: str) -> Profile:
    """Return a bundled profile by its name, or the one in a file.

    Raises:
        ProfileError: there is no such profile, or it is malformed.
    """
    if name_or_path in BUNDLED:
        resource = files("schedulers.profiles") / f"{name_or_path}.json"
        return decode_profile(resource.read_bytes(), f"profile {name_or_path}")
    try:
        content = Path(name_or_path).read_bytes()
    except OSError as error:
        message = (
            f"{name_or_path}: cannot be read as a profile ({error.strerror}); give a file, or one "
            f"of the profiles that ship: {', '.join(BUNDLED)}."
        )
        raise ProfileError(message) from error
    return decode_profile(content, name_or_path)


def usable(profile: Profile, fingerprints: Mapping[str, str]) -> Profile:
    """Return the profile, if it is not of another version of a model that is served.

    Args:
        profile: as it was read.
        fingerprints: of the served models' folders, by name.

    Raises:
        ProfileError: a model has changed since it was measured.
    """
    for name, model in profile.models.items():
        served = fingerprints.get(name)
        if served is not None and model.fingerprint not in (None, served):
            message = (
                f"Profile {profile.name} was measured on another version of model {name} "
                f"({model.fingerprint}, served is {served}): measure again with `trident profile`."
            )
            raise ProfileError(message)
    return profile


def specs_of(profile: Profile, models: Sequence[str] | None = None) -> tuple[PipelineSpec, ...]:
    """Return specs with which an engine can run profiled models that have no folder.

    Args:
        profile: where the models are described.
        models: which of them, in this order; all if None.

    Raises:
        ProfileError: the profile has no such model.
    """
    return tuple(_spec(profile, name) for name in (profile.models if models is None else models))


def _spec(profile: Profile, name: str) -> PipelineSpec:
    if name not in profile.models:
        known = ", ".join(profile.models)
        message = f"Profile {profile.name} has no model {name!r}; it has {known}."
        raise ProfileError(message)
    model = profile.models[name]
    return PipelineSpec(
        id=ModelId(name),
        folder=f"profile:{profile.name}",
        family="profile",
        modality=model.modality,
        weight_bytes={kind: stage.weight_bytes for kind, stage in model.stages.items()},
        size_multiple_px=1,
        max_side_px=_ANY_SIDE_PX,
        default_shape=model.shapes[0],
        default_fps=DEFAULT_FPS,
        default_steps=model.default_steps,
        default_guidance=1.0,
        uses_negative_prompt=True,
        limits=_ANYTHING,
        created_s=0,
        degrees=model.degrees,
        description=f"{name} as profiled on {profile.device}",
    )
