"""Audio files of the sampler: reads sources, with the decoder that curation uses, and writes clips."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from schemas.files import written_whole
from stages import pcm
from stages.base import TrackError
from stages.decode import DecodeParams, decode_file
from training.sampling.errors import SamplingError

MAX_SOURCE_S = 1800.0

_FULL_SCALE = 1 << 23  # 24 bits
_BLOCK = 1 << 16  # samples encoded at a time
_TAG_LENGTH = 2000  # characters; longer tags do not belong in a WAV header


@dataclass(frozen=True)
class _Format:
    container: str
    codec: str
    sample_format: str
    bit_rate: int | None = None


# Opus goes into .ogg: FFmpeg's own Vorbis encoder, the only one that PyAV ships, counts as experimental.
FORMATS = {
    ".wav": _Format("wav", "pcm_s24le", "s32"),
    ".flac": _Format("flac", "flac", "s32"),
    ".ogg": _Format("ogg", "libopus", "flt", bit_rate=192_000),
}


def read_audio(path: Path) -> tuple[Tensor, int]:
    """Read an audio file: float32 [2, samples] in -1..1, and its sample rate, which is always 44.1 kHz.

    Raises:
        SamplingError: the file has no audio, is damaged, or is longer than 30 minutes; the message names it.
    """
    try:
        decoded = decode_file(str(path), {"pcm"}, DecodeParams(limit_s=MAX_SOURCE_S))
    except TrackError as error:
        raise SamplingError(str(error)) from error
    if decoded.pcm is None:
        raise SamplingError(f"{path}: {decoded.duration_s:.0f} s of audio, at most {MAX_SOURCE_S:.0f} s can be read")
    return torch.from_numpy(pcm.stereo(decoded.pcm).copy()), pcm.RATE_HZ


def write_audio(path: Path, waveform: Tensor, rate_hz: int = 48_000, tags: Mapping[str, str] | None = None) -> float:
    """Write a clip atomically, in the format of the file's extension; an existing file is replaced.

    `.wav` and `.flac` hold 24-bit samples, `.ogg` Opus at 192 kbit/s. A clip that exceeds full scale is turned down
    as a whole until its peak fits. The same clip gives the same bytes.

    Args:
        path: file to write; its folder is created if needed.
        waveform: float [2, samples] in -1..1.
        rate_hz: sample rate; Opus accepts 48000, 24000, 16000, 12000 and 8000.
        tags: metadata such as title and comment; long values are cut.

    Returns:
        The gain applied: 1.0, or less if the clip was too loud.

    Raises:
        SamplingError: unknown extension, wrong shape, no samples, non-finite values, or a path that cannot be written.
    """
    form = audio_format(path)
    samples = _checked(waveform)
    gain = min(1.0, 1.0 / max(float(np.abs(samples).max()), 1e-9))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as draft:
            _encode(draft, samples, gain, rate_hz, form, tags or {})
    except OSError as error:  # FFmpeg's errors among them
        raise SamplingError(f"{path} cannot be written: {error.strerror or error}") from error
    return gain


def audio_format(path: Path) -> _Format:
    """The format for a file name.

    Raises:
        SamplingError: its extension is not one of `FORMATS`.
    """
    try:
        return FORMATS[path.suffix.lower()]
    except KeyError:
        raise SamplingError(
            f"{path}: cannot write {path.suffix or 'a file without extension'}; use {_known()}"
        ) from None


def _known() -> str:
    return ", ".join(FORMATS)


def _checked(waveform: Tensor) -> np.ndarray:
    samples = waveform.detach().to("cpu", torch.float32).numpy()
    if samples.ndim != 2 or samples.shape[0] != pcm.CHANNELS or samples.shape[1] == 0:
        raise SamplingError(f"a clip must be stereo, [2, samples], not {list(samples.shape)}")
    if not np.isfinite(samples).all():
        raise SamplingError("the clip holds NaN or infinity: check the weights, or sample in float32")
    return samples


def _encode(path: Path, samples: np.ndarray, gain: float, rate_hz: int, form: _Format, tags: Mapping[str, str]) -> None:
    # Without "bitexact" FFmpeg writes its version and, into Ogg, a random serial number. It gets an open file, because
    # it would take the "a" of "a:b.wav" for a protocol.
    bitexact = {"fflags": "+bitexact"}
    with path.open("wb") as file, av.open(file, "w", format=form.container, options=bitexact) as container:
        container.metadata.update({name: " ".join(value.split())[:_TAG_LENGTH] for name, value in tags.items()})
        stream = container.add_stream(form.codec, rate=rate_hz, layout="stereo", options={"flags": "+bitexact"})
        assert isinstance(stream, av.AudioStream)
        stream.format = form.sample_format
        if form.bit_rate:
            stream.bit_rate = form.bit_rate
        for start in range(0, samples.shape[1], _BLOCK):
            block = samples[:, start : start + _BLOCK].astype(np.float64) * gain
            container.mux(stream.encode(_frame(block, start, rate_hz, form)))
        container.mux(stream.encode(None))


def _frame(block: np.ndarray, start: int, rate_hz: int, form: _Format) -> av.AudioFrame:
    interleaved = block.T.reshape(1, -1)
    converted = _quantised(interleaved) if form.sample_format == "s32" else interleaved.astype(np.float32)
    frame = av.AudioFrame.from_ndarray(converted, format=form.sample_format, layout="stereo")
    frame.sample_rate, frame.pts = rate_hz, start
    return frame


def _quantised(samples: np.ndarray) -> np.ndarray:
    """Samples rounded to 24 bits, in the upper bits of int32, as FFmpeg's 24-bit encoders expect them."""
    steps = np.rint(samples * _FULL_SCALE)
    return np.clip(steps, -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int32) << 8
