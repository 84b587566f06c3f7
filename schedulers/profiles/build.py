"""Build the profiles that ship: `python -m schedulers.profiles.build [--check]`.

Joins published times with what is assumed, marks every figure, checks the result like any other
profile and writes it beside this file. docs/profiles.md gives the formulas and their reasons.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.types import Modality, Shape, StageKind
from schedulers.profiles.checks import decode_profile
from schedulers.profiles.schema import (
    DegreeFloor,
    EdgeProfile,
    Entry,
    ModelProfile,
    NodeProfile,
    Profile,
    Provenance,
    Source,
    StageProfile,
)
from schedulers.profiles.sourcing import (
    Assumed,
    AssumedModel,
    L20Steps,
    PerPixel,
    StageTimes,
    Step,
    assumptions,
    h100_runs,
    h100_stages,
    l20_steps,
    published_shape,
)

HERE = Path(__file__).parent
_BATCHES = (1, 2, 4, 8)
_BATCHED_SHARE = 0.5  # of an encode: T(b) = t * (0.5 + 0.5 b), so a batch of 8 costs 4.5, not 8
_LINE = 240  # shorter values are written on one line

# Scenarios of SGLang's baselines by model and degree; its images are 1024x1024, its videos are of
# sizes that the baselines do not say.
_SCENARIOS: Mapping[str, Mapping[int, str]] = {
    "flux2": {1: "flux_2_image_t2i", 2: "flux_2_image_t2i_2_gpus"},
    "flux2-klein-4b": {1: "flux_2_klein_image_t2i"},
    "flux2-klein-base-4b": {1: "flux_2_klein_base_image_t2i"},
    "qwen-image": {1: "qwen_image_t2i", 2: "qwen_image_t2i_2_gpus"},
    "z-image-turbo": {1: "zimage_image_t2i", 2: "zimage_image_t2i_2_gpus"},
}
_ENDS = {"flux1": "flux_image_t2i"}  # encode and decode of a model whose steps are from xDiT
_SGLANG_SHAPE = Shape(1024, 1024)
_SGLANG = Source(
    "Performance baselines of SGLang 0.5.23 (sgl-project/sglang, Apache-2.0), "
    "multimodal_gen/test/server/perf_baselines/h100.json: one H100 80 GB, images 1024x1024",
    "encode and decode of all images, steps of all images but flux1; FastHunyuan's encode, assumed "
    "to be hunyuanvideo's",
)


def build_l20() -> Profile:
    """Return the L20 profile: published steps, everything else assumed."""
    assumed, published = assumptions()["l20"], l20_steps()

    def model(name: str, given: AssumedModel) -> ModelProfile:
        steps = published.steps(name)
        return _model(assumed, given, steps=steps, floors=_floors(published, given.modality))

    gives = "steps of all models, degrees forced by memory; 6, 20 and 28 steps of Cog, SD3, Flux"
    return _profile("l20", assumed, model, [Source(published.citation, gives)])


def build_h100() -> Profile:
    """Return the H100 profile: published stages of images and end-to-end times of two models."""
    assumed, stages, ends = assumptions()["h100"], h100_stages(), h100_runs()
    runs = {run.model: run for run in ends.runs}

    def model(name: str, given: AssumedModel) -> ModelProfile:
        if name == "hunyuanvideo":
            encoder = stages["fast_hunyuan_video"]
            given = msgspec.structs.replace(given, encode_s=encoder.encode_s)
        if run := runs.get(name):
            shape = published_shape(run.shape)
            steps = [Step(shape, k, total / run.steps) for k, total in run.total_s.items()]
            given = msgspec.structs.replace(given, default_steps=run.steps)
            return _model(assumed, given, steps=steps, stages=stages.get(_ENDS.get(name, "")))
        single = stages[_SCENARIOS[name][1]]
        given = msgspec.structs.replace(given, default_steps=single.steps)
        return _model(assumed, given, steps=_sglang_steps(name, stages), stages=single)

    gives = "steps of flux1 and hunyuanvideo: seconds end to end divided by steps"
    return _profile("h100", assumed, model, [_SGLANG, Source(ends.citation, gives)])


def _sglang_steps(name: str, stages: Mapping[str, StageTimes]) -> list[Step]:
    return [
        Step(_SGLANG_SHAPE, degree, stages[scenario].denoise_s / stages[scenario].steps)
        for degree, scenario in _SCENARIOS[name].items()
    ]


def _profile(
    name: str,
    assumed: Assumed,
    model: Callable[[str, AssumedModel], ModelProfile],
    sources: Sequence[Source],
) -> Profile:
    figures = msgspec.structs.asdict(assumed.node)
    return Profile(
        name=name,
        device=assumed.device,
        description=assumed.description,
        sources=tuple(sources),
        node=NodeProfile(
            **figures, provenance=_marks(figures, published=assumed.published_node_figures)
        ),
        models={key: model(key, given) for key, given in assumed.models.items()},
    )


def _model(
    assumed: Assumed,
    given: AssumedModel,
    *,
    steps: Iterable[Step],
    stages: StageTimes | None = None,
    floors: tuple[DegreeFloor, ...] = (),
) -> ModelProfile:
    """Join a model's published steps, published stages if any, and what is assumed."""
    steps = tuple(steps)
    shapes = dict.fromkeys(step.shape for step in steps)
    entries = {
        StageKind.ENCODE: _encodes(given, stages),
        StageKind.DIFFUSE: tuple(_diffuse(given, step) for step in steps),
        StageKind.DECODE: tuple(_decode(given, shape, stages) for shape in shapes),
    }
    return ModelProfile(
        modality=given.modality,
        default_steps=given.default_steps,
        stages={kind: _stage(assumed, given.weight_bytes[kind], entries[kind]) for kind in entries},
        edges={
            StageKind.DIFFUSE: _edge(assumed, given.condition_bytes, 0.0),
            StageKind.DECODE: _edge(assumed, 0, given.latent_bytes_per_pixel),
        },
        provenance={
            "default_steps": given.default_steps_provenance,
            "min_degrees": Provenance.PUBLISHED if floors else Provenance.ASSUMED,
        },
        min_degrees=floors,
    )


def _encodes(given: AssumedModel, stages: StageTimes | None) -> tuple[Entry, ...]:
    seconds = stages.encode_s if stages else given.encode_s
    assert seconds is not None, "somebody must say how long an encode takes"
    published = Provenance.PUBLISHED if stages else Provenance.ASSUMED
    return tuple(
        Entry(
            batch=batch,
            duration_s=round(seconds * (1 - _BATCHED_SHARE + _BATCHED_SHARE * batch), 9),
            peak_activation_bytes=given.encode_activation.fixed_bytes
            + batch * given.encode_activation.bytes_per_request,
            provenance=published if batch == 1 else Provenance.ASSUMED,
            memory_provenance=Provenance.ASSUMED,
        )
        for batch in _BATCHES
    )


def _diffuse(given: AssumedModel, step: Step) -> Entry:
    laws = [law for law in given.diffuse_activation if law.from_degree <= step.degree]
    law = max(laws, key=lambda law: law.from_degree)
    return Entry(
        shape=step.shape,
        degree=step.degree,
        duration_s=round(step.step_s, 6),
        peak_activation_bytes=_bytes(law, step.shape.pixels / step.degree),
        provenance=step.provenance,
        memory_provenance=Provenance.ASSUMED,
    )


def _decode(given: AssumedModel, shape: Shape, stages: StageTimes | None) -> Entry:
    published = stages if stages and shape == _SGLANG_SHAPE else None
    assert published or given.decode, "somebody must say how long a decode takes"
    seconds = published.decode_s if published else given.decode.at(shape) if given.decode else 0.0
    return Entry(
        shape=shape,
        duration_s=round(seconds, 9),
        peak_activation_bytes=_bytes(given.decode_activation, shape.pixels),
        provenance=Provenance.PUBLISHED if published else Provenance.ASSUMED,
        memory_provenance=Provenance.ASSUMED,
    )


def _bytes(law: PerPixel, pixels: float) -> int:
    return round(law.fixed_bytes + law.bytes_per_pixel * pixels)


def _stage(assumed: Assumed, weights: int, entries: tuple[Entry, ...]) -> StageProfile:
    figures = {
        "load_host_s": weights / assumed.node.host_to_device_bytes_per_s,
        "load_peer_s": weights / assumed.node.peer_bytes_per_s,
    }
    return StageProfile(
        weight_bytes=weights,
        **figures,
        provenance=_marks(["weight_bytes", *figures]),
        entries=entries,
    )


def _edge(assumed: Assumed, fixed_bytes: int, bytes_per_pixel: float) -> EdgeProfile:
    seconds = {"within_node_s": assumed.handoff_s, "across_node_s": assumed.handoff_s}
    return EdgeProfile(
        fixed_bytes=fixed_bytes,
        bytes_per_pixel=bytes_per_pixel,
        **seconds,
        provenance=_marks(["fixed_bytes", "bytes_per_pixel", *seconds]),
    )


def _floors(published: L20Steps, modality: Modality) -> tuple[DegreeFloor, ...]:
    """Return the published rule; a video must lie above its thresholds, an image may reach them."""
    rule = published.min_degree
    if modality is Modality.IMAGE:
        return tuple(
            DegreeFloor(from_pixels=pixels, degree=degree)
            for pixels, degree in rule.image_at_least_pixels
        )
    return tuple(
        DegreeFloor(from_pixels=pixels + 1, degree=degree)
        for pixels, degree in rule.video_above_pixels
    )


def _marks(names: Iterable[str], published: Sequence[str] = ()) -> dict[str, Provenance]:
    return {
        name: Provenance.PUBLISHED if name in published else Provenance.ASSUMED for name in names
    }


def render(profile: Profile) -> str:
    """Return the file: JSON with short values on one line each."""
    content = msgspec.to_builtins(profile)
    for holder, field in [
        (content, "measurement"),
        (content["node"], "slowdown"),
        (content["node"], "launch_s"),
        *((m, "fingerprint") for m in content["models"].values()),
    ]:
        if not holder[field]:  # said only of what was measured
            del holder[field]
    return _render(content, 0) + "\n"


def _render(value: Any, depth: int) -> str:
    flat = json.dumps(value)
    if len(flat) + depth <= _LINE or not isinstance(value, dict | list | tuple):
        return flat
    pad = " " * (depth + 1)
    if not isinstance(value, dict):
        lines = [pad + _render(item, depth + 1) for item in value]
    else:
        lines = [f"{pad}{json.dumps(key)}: {_render(v, depth + 1)}" for key, v in value.items()]
    first, last = "{}" if isinstance(value, dict) else "[]"
    return first + "\n" + ",\n".join(lines) + "\n" + " " * depth + last


BUILDERS: Mapping[str, Callable[[], Profile]] = {"l20": build_l20, "h100": build_h100}


def built(name: str) -> str:
    """Return the file of a profile, checked as any other."""
    content = render(BUILDERS[name]())
    decode_profile(content.encode(), f"{name} as built")
    return content


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the profiles, or with --check say whether they are up to date."""
    parser = argparse.ArgumentParser(description="Build the profiles that ship.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if outdated")
    check = parser.parse_args(arguments).check
    outdated = 0
    for name in BUILDERS:
        path, content = HERE / f"{name}.json", built(name)
        if check:
            same = path.exists() and path.read_text() == content
            outdated += not same
            sys.stdout.write(f"{path.name} is {'up to date' if same else 'outdated'}\n")
        else:
            path.write_text(content)
            sys.stdout.write(f"wrote {path.name}: {len(content)} bytes\n")
    return min(1, outdated)


if __name__ == "__main__":
    sys.exit(main())
