"""What a song may be: bounds on its rate, channels, length and memory, judged by its headers before it is decoded.

The memory of one song follows from them. A worker that scans (`decode`, `quality`, `fingerprint`) takes at most

    0.5 GB + decoded samples (at most `max_mb`; twice those that hold NaN or infinity) + 0.2 MB for each second

Measured on six minutes of stereo at 48 kHz, 138 MB decoded: a peak of 357 MB after decode, 439 after quality, 500 after
fingerprint, of which 166 MB were there before. FFmpeg itself is held to 256 MiB at once
(`stages.decoding.ffmpeg_memory`).
"""

import av
import numpy as np
from pydantic import Field

from stages import base

MIB = 1 << 20
USUAL_BYTES_PER_S = 2 * 96_000 * 4  # stereo at 96 kHz, float32

_STEEPEST = 32  # songs of 8 kHz and of 192 kHz may be glued together


class AbsurdHeader(base.TrackError):
    """Headers that no song has: a rate, channels or a length out of bounds, or more bytes than headers need."""


class TooLarge(base.TrackError):
    """Its decoded samples would take more memory than `max_mb`."""


class NoMixdown(base.TrackError):
    """Channels whose places nobody knows, so that no mix to stereo is defined."""


class Bounds(base.Params):
    """What a song may be.

    They only decide which songs are refused: whatever passes gives the same columns under any of them. So they are no
    part of the fingerprint, and datasets that were made before they existed are not made anew.
    """

    min_rate_hz: int = Field(default=4_000, ge=4_000, exclude=True)  # the filters of `quality` need so much
    max_rate_hz: int = Field(default=768_000, ge=4_000, exclude=True)
    max_channels: int = Field(default=24, ge=1, le=64, exclude=True)  # 22.2 has so many; libswresample mixes at most 64
    max_claimed_s: float = Field(default=604_800.0, gt=0, exclude=True)  # longer than `limit_s` is long, this a lie
    max_header_mb: float = Field(default=64.0, gt=0, exclude=True)  # cover art and all
    max_comments: int = Field(default=10_000, ge=0, exclude=True)  # of FLAC and Ogg; see `stages.decoding.comments`
    # MiB of decoded samples, float32 at the song's own rate; by default what `limit_s` of stereo at 96 kHz takes.
    max_mb: float | None = Field(default=None, gt=0, exclude=True)

    def require_header(self, uri: str, rate_hz: int, layout: av.AudioLayout, claimed_s: float) -> None:
        """Judge what the headers say, of whose length 0 says nothing.

        Raises:
            AbsurdHeader, NoMixdown: the message names the file and the bounds.
        """
        channels = layout.nb_channels
        if not self.min_rate_hz <= rate_hz <= self.max_rate_hz:
            raise AbsurdHeader(
                f"{uri}: its header says {rate_hz} Hz; {self.min_rate_hz:,} to {self.max_rate_hz:,} Hz are decoded"
            )
        if not 1 <= channels <= self.max_channels:
            raise AbsurdHeader(f"{uri}: its header says {channels} channels; 1 to {self.max_channels} are decoded")
        if not 0 <= claimed_s <= self.max_claimed_s:
            raise AbsurdHeader(
                f"{uri}: its header says {claimed_s:,.0f} s; up to {self.max_claimed_s:,.0f} s are believed"
            )
        if channels > 2 and not _mixes_down(layout):
            raise NoMixdown(f"{uri}: {channels} channels ({layout.name}), for which FFmpeg knows no mix to stereo")

    def allows(self, frame: av.AudioFrame, rate_hz: int) -> bool:
        """Whether a frame further on may be converted to the rate of the first: one must not become millions."""
        in_bounds = self.min_rate_hz <= frame.sample_rate <= self.max_rate_hz
        return in_bounds and frame.layout.nb_channels <= self.max_channels and rate_hz <= _STEEPEST * frame.sample_rate


def _mixes_down(layout: av.AudioLayout) -> bool:
    """Whether libswresample knows how: it asks where each speaker stands."""
    frame = av.AudioFrame.from_ndarray(np.zeros((1, layout.nb_channels), np.float32), "flt", layout)
    frame.sample_rate = 48_000
    try:
        av.AudioResampler("flt", "stereo").resample(frame)
    except av.FFmpegError:
        return False
    return True
