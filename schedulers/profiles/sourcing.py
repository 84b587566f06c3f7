"""The source files of the shipped profiles as values: published times, and what is assumed.

Reads only `schedulers/profiles/sources`; what becomes of the figures is decided in
`schedulers.profiles.build`. Published shapes are height x width x frames, ours width first.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import msgspec

from engine.types import Modality, Shape, StageKind
from schedulers.profiles.schema import Provenance

SOURCES = Path(__file__).parent / "sources"


class PerPixel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes of an activation: a fixed part and one per pixel of a device's share."""

    fixed_bytes: int
    bytes_per_pixel: float
    from_degree: int = 1


class PerRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes of an activation: a fixed part and one per request of a batch."""

    fixed_bytes: int
    bytes_per_request: int


class DecodeLaw(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds of a decode: `fixed_s + reference_s * pixels / reference_pixels`."""

    fixed_s: float
    reference_s: float
    reference_pixels: int

    def at(self, shape: Shape) -> float:
        """Return the seconds for one output."""
        return self.fixed_s + self.reference_s * shape.pixels / self.reference_pixels


class AssumedModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What nobody published of a model; None and 0 where somebody did."""

    notes: tuple[str, ...]
    modality: Modality
    default_steps: int
    default_steps_provenance: Provenance
    weight_bytes: Mapping[StageKind, int]
    encode_s: float | None
    decode: DecodeLaw | None
    encode_activation: PerRequest
    diffuse_activation: tuple[PerPixel, ...]
    decode_activation: PerPixel
    condition_bytes: int
    latent_bytes_per_pixel: float


class AssumedNode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A machine; see `schema.NodeProfile`."""

    gpus: int
    memory_bytes: int
    reserve_bytes: int
    host_to_device_bytes_per_s: float
    peer_bytes_per_s: float
    network_bytes_per_s: float
    change_s: float


class Assumed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What nobody published of a device and its models."""

    device: str
    description: str
    node: AssumedNode
    published_node_figures: tuple[str, ...]
    handoff_s: float
    models: Mapping[str, AssumedModel]


class Step(msgspec.Struct, frozen=True):
    """Seconds of one denoise step."""

    shape: Shape
    degree: int
    step_s: float
    provenance: Provenance = Provenance.PUBLISHED


class L20Steps(msgspec.Struct, frozen=True):
    """`l20_steps.json`."""

    citation: str
    degrees: tuple[int, ...]
    step_s: Mapping[str, Mapping[str, tuple[float, ...]]]
    corrected: Mapping[str, tuple[Mapping[str, str | int], ...]]
    min_degree: L20Floors

    def steps(self, model: str) -> tuple[Step, ...]:
        """Return every published step of a model; corrected ones are marked assumed."""
        corrected = {(c["shape"], c["degree"]) for c in self.corrected.get(model, ())}
        return tuple(
            Step(
                published_shape(shape),
                degree,
                step_s,
                Provenance.ASSUMED if (shape, degree) in corrected else Provenance.PUBLISHED,
            )
            for shape, row in self.step_s[model].items()
            for degree, step_s in zip(self.degrees, row, strict=True)
        )


class L20Floors(msgspec.Struct, frozen=True):
    """Pixels from which (images), or above which (videos), memory forces a degree."""

    rule: str
    image_at_least_pixels: tuple[tuple[int, int], ...]
    video_above_pixels: tuple[tuple[int, int], ...]


class EndToEnd(msgspec.Struct, frozen=True):
    """One published run: seconds end to end by degree."""

    model: str
    shape: str
    steps: int
    total_s: Mapping[int, float]


class H100Runs(msgspec.Struct, frozen=True):
    """`h100_end_to_end.json`."""

    citation: str
    runs: tuple[EndToEnd, ...]


class StageTimes(msgspec.Struct, frozen=True):
    """One scenario of `h100_stages.csv`, in seconds; the denoise time is of all steps."""

    steps: int
    encode_s: float
    denoise_s: float
    decode_s: float


def published_shape(text: str) -> Shape:
    """Read a published shape: height x width x frames."""
    height, width, frames = map(int, text.split("x"))
    return Shape(width, height, frames)


def assumptions() -> Mapping[str, Assumed]:
    """Return what is assumed, by profile."""
    return msgspec.json.decode(_read("assumed.json"), type=dict[str, Assumed])


def l20_steps() -> L20Steps:
    """Return the published step times of the L20."""
    return msgspec.json.decode(_read("l20_steps.json"), type=L20Steps)


def h100_runs() -> H100Runs:
    """Return the published end-to-end times of the H100."""
    return msgspec.json.decode(_read("h100_end_to_end.json"), type=H100Runs)


def h100_stages() -> dict[str, StageTimes]:
    """Return the published stage times of the H100, by scenario."""
    scenarios: dict[str, dict[str, float]] = {}
    for row in csv.DictReader(_read("h100_stages.csv").decode().splitlines()):
        scenario = scenarios.setdefault(row["scenario"], {"steps": int(row["steps"])})
        scenario[row["stage"]] = float(row["stage_ms"]) / 1000
    return {
        name: StageTimes(
            steps=int(found["steps"]),
            encode_s=found["TextEncoding"],
            denoise_s=found["Denoising"],
            decode_s=found["Decoding"],
        )
        for name, found in scenarios.items()
    }


def _read(name: str) -> bytes:
    return (SOURCES / name).read_bytes()
