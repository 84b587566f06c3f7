"""Files that stages write: the exact size, frames and rate, even where H.264 likes even numbers."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from engine.stages.media import write_video


@pytest.mark.parametrize(("width", "height"), [(64, 48), (65, 63), (64, 63), (1, 1)])
def test_a_video_has_exactly_the_size_that_was_asked_for(width: int, height: int) -> None:
    frames = np.full((3, height, width, 3), 0.5)
    with av.open(io.BytesIO(write_video(frames, fps=8))) as container:
        stream = container.streams.video[0]
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert stream.average_rate == 8
    assert [picture.shape for picture in decoded] == [(height, width, 3)] * 3
    assert abs(float(decoded[1].mean()) - 127.5) < 4


def test_a_video_can_be_played_before_it_is_there_whole() -> None:
    content = write_video(np.zeros((2, 16, 16, 3)), fps=8)
    assert content.index(b"moov") < content.index(b"mdat")
