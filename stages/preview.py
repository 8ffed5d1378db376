"""An excerpt of every song to listen to, small enough to keep beside the shard."""

import io
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import av
import numpy as np
import soxr
from pydantic import Field

from schemas import columns
from stages import base, pcm

CODEC = "opus"
MEDIA_TYPE = "audio/ogg"
_RATE_HZ = 48_000  # Opus has no 44.1 kHz
_HOP = pcm.RATE_HZ // 2  # the loudest part is looked for in steps of half a second
# Without it the muxer picks a random stream number, and the same song would not give the same bytes.
_REPRODUCIBLE = {"fflags": "+bitexact"}


class NothingToHear(base.TrackError):
    """Not a single sample."""


class PreviewParams(base.Params):
    """Length and quality.

    Attributes:
        seconds: length of the excerpt; a shorter song is kept whole.
        kbps: average bit rate of the stereo stream.
    """

    seconds: float = Field(default=30.0, ge=1, le=600)
    kbps: int = Field(default=32, ge=16, le=256)


class Preview(base.Stage):
    """The loudest part of the mix as Ogg Opus in stereo, which tends to be a chorus rather than an intro.

    The same samples give the same bytes.
    """

    name = "preview"
    type = columns.PREVIEW
    reads = {"pcm": pcm.PCM}
    Params = PreviewParams

    def process(self, track: Mapping[str, Any]) -> dict[str, Any]:
        """Find the part and encode it.

        Raises:
            NothingToHear: the song has no samples.
        """
        sound = np.frombuffer(track["pcm"], dtype="<i2").reshape(-1, pcm.CHANNELS)
        if not len(sound):
            raise NothingToHear("no samples")
        length = min(round(self.params.seconds * pcm.RATE_HZ), len(sound))
        start = _loudest(sound, length)
        part = pcm.stereo(sound[start : start + length])
        return self.own(
            codec=CODEC,
            start_s=start / pcm.RATE_HZ,
            duration_s=length / pcm.RATE_HZ,
            data=_encode(part, self.params.kbps),
        )


def shortened(data: bytes, seconds: float) -> bytes:
    """The first seconds of a preview, an Ogg Opus file; its packets are copied, not encoded again."""
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(data), "r") as whole,
        av.open(file, "w", format="ogg", container_options=_REPRODUCIBLE) as beginning,
    ):
        source = whole.streams.audio[0]
        stream = beginning.add_stream_from_template(source)
        for packet in whole.demux(source):
            if packet.pts is None or packet.time_base is None:  # the last one, which only flushes
                break
            if (packet.pts + (packet.duration or 0)) * packet.time_base > seconds:
                break
            packet.stream = stream
            beginning.mux(packet)
    return file.getvalue()


def _loudest(sound: np.ndarray, length: int) -> int:
    """First frame of the loudest `length` frames of int16 [frames, channels]; the earliest if several, 0 in silence."""
    energies = [np.square(sound[i : i + _HOP], dtype=np.float32).sum() for i in range(0, len(sound), _HOP)]
    sums = np.convolve(energies, np.ones(max(length // _HOP, 1)), "valid")
    return min(int(sums.argmax()) * _HOP, len(sound) - length)


def _encode(stereo: np.ndarray, kbps: int) -> bytes:
    """Float32 [2, frames] at 44.1 kHz as an Ogg Opus file."""
    samples = soxr.resample(stereo.T, pcm.RATE_HZ, _RATE_HZ)
    file = io.BytesIO()
    with av.open(file, "w", format="ogg", container_options=_REPRODUCIBLE) as container:
        stream = container.add_stream("libopus", rate=_RATE_HZ, layout="stereo")
        stream.bit_rate = kbps * 1000
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.reshape(1, -1)), format="flt", layout="stereo")
        frame.sample_rate = _RATE_HZ
        frame.time_base, frame.pts = Fraction(1, _RATE_HZ), 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()
