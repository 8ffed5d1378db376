"""Bounds on a song's rate, channels, length and memory, checked against its headers before it is decoded.

They limit the memory of one song. A worker that scans (`decode`, `quality`, `fingerprint`) takes at most

    0.7 GB + decoded samples (at most `max_mb`; twice those that hold NaN or infinity) + 0.2 MB for each second

Measured in a process without Ray on 30 minutes of stereo, the longest that `limit_s` allows: 1.62 GB at 48 kHz, 2.29 GB
at 96 kHz, 3.37 GB at 96 kHz with NaN in it (0.69, 1.38 and 1.38 GB decoded). FFmpeg itself may allocate at most
256 MiB at once (`stages.decoding.ffmpeg_memory`).
"""

import av
import numpy as np
from pydantic import Field

from stages import base

MIB = 1 << 20
USUAL_BYTES_PER_S = 2 * 96_000 * 4  # stereo at 96 kHz, float32

_STEEPEST = 32  # a file may be the concatenation of songs at 8 kHz and at 192 kHz


class AbsurdHeader(base.TrackError):
    """Implausible headers: a rate, a channel count or a length out of bounds, or more bytes than headers need."""


class TooLarge(base.TrackError):
    """Its decoded samples would take more memory than `max_mb`."""


class NoMixdown(base.TrackError):
    """A channel layout that FFmpeg does not know, so that no mix to stereo is defined."""


class Bounds(base.Params):
    """Which songs are accepted.

    The bounds only decide which songs are refused: whatever passes gives the same columns under any of them. They are
    therefore not part of the fingerprint, and datasets made before they existed are not recomputed.

    Attributes:
        min_rate_hz: the filters of `quality` need at least 4 kHz.
        max_rate_hz: highest sampling rate.
        max_channels: 24 is what 22.2 surround has; libswresample mixes at most 64.
        max_claimed_s: a header that claims more is wrong, whereas a song over `limit_s` is merely long.
        max_header_mb: MiB of headers, cover art included.
        max_comments: comments of FLAC and Ogg files; see `stages.decoding.comments`.
        max_mb: MiB of decoded samples, float32 at the song's own rate; by default what `limit_s` of stereo at 96 kHz
            takes.
    """

    min_rate_hz: int = Field(default=4_000, ge=4_000, exclude=True)
    max_rate_hz: int = Field(default=768_000, ge=4_000, exclude=True)
    max_channels: int = Field(default=24, ge=1, le=64, exclude=True)
    max_claimed_s: float = Field(default=604_800.0, gt=0, exclude=True)
    max_header_mb: float = Field(default=64.0, gt=0, exclude=True)
    max_comments: int = Field(default=10_000, ge=0, exclude=True)
    max_mb: float | None = Field(default=None, gt=0, exclude=True)

    def require_header(self, uri: str, rate_hz: int, layout: av.AudioLayout, claimed_s: float) -> None:
        """Check what the headers say; a claimed length of 0 means unknown.

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
        """Whether a later frame may be converted to the rate of the first: one sample must not become millions."""
        in_bounds = self.min_rate_hz <= frame.sample_rate <= self.max_rate_hz
        return in_bounds and frame.layout.nb_channels <= self.max_channels and rate_hz <= _STEEPEST * frame.sample_rate


def _mixes_down(layout: av.AudioLayout) -> bool:
    """Whether libswresample can mix the layout to stereo: it needs to know the position of each speaker."""
    frame = av.AudioFrame.from_ndarray(np.zeros((1, layout.nb_channels), np.float32), "flt", layout)
    frame.sample_rate = 48_000
    try:
        av.AudioResampler("flt", "stereo").resample(frame)
    except av.FFmpegError:
        return False
    return True
