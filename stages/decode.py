"""Any audio file to samples: PyAV decodes, soxr resamples. Nothing else in the pipeline opens a song."""

import itertools
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import av
import fsspec
import numpy as np
import pyarrow as pa
import soxr
from av.container import InputContainer
from pydantic import Field

from schemas import columns
from stages import base, pcm
from stages.truncation import HEADERLESS, ogg_is_complete, promised_s

NATIVE = pa.struct([("rate_hz", pa.int32()), ("channels", pa.int32()), ("samples", pa.large_binary())])
WORKING = {"native": NATIVE, "pcm": pcm.PCM}

_MP4_MAGIC = b"ftyp"  # at byte 4
_MAGICS = (b"RIFF", b"FORM", b"fLaC", b"OggS", b"ID3")


class EmptyFile(base.TrackError):
    """No bytes, or headers without a single sample."""


class NotAudio(base.TrackError):
    """No format FFmpeg knows, or one without an audio stream."""


class Unreadable(base.TrackError):
    """Missing, a folder, forbidden, or the storage failed."""


class TruncatedAudio(base.TrackError):
    """Ends earlier than its headers say."""


class DecodeError(base.TrackError):
    """Too damaged: headers nobody can read, or too many lost packets."""


@dataclass(frozen=True)
class Decoded:
    """A decoded file.

    Attributes:
        duration_s: decoded frames over the rate; of audio over the limit, the length its container claims.
        sample_rate_hz: the file's own rate.
        channels: the file's own number of channels.
        codec: FFmpeg's name for it, such as "mp3", "flac" or "pcm_s16le".
        lost_packets: how many packets could not be decoded; silence stands in their place.
        native: float32 samples at the file's own rate, interleaved; None when unwanted or over the limit.
        pcm: canonical PCM (see `stages.pcm`); None when unwanted or over the limit.
    """

    duration_s: float
    sample_rate_hz: int
    channels: int
    codec: str
    lost_packets: int
    native: bytearray | None
    pcm: bytearray | None


class DecodeParams(base.Params):
    """How much is decoded, and how much damage is put up with."""

    limit_s: float = Field(default=1800.0, gt=0)  # guards the memory: of longer audio only the facts are told
    missing_s: float = Field(default=1.0, ge=0)  # what may be missing of the promised length
    lost_ratio: float = Field(default=0.02, ge=0, le=1)  # share of packets that may be lost; one always may


class Decode(base.Stage):
    """Facts about the file, its samples as they are (`native`), and its canonical PCM (`pcm`)."""

    name = "decode"
    column = "audio"
    type = columns.AUDIO
    reads = {"uri": pa.string()}
    working = WORKING
    Params = DecodeParams

    def process(self, track: base.Track) -> dict[str, Any]:
        """Decode the file behind `uri`; see `decode_file` for the errors."""
        decoded = decode_file(track["uri"], self.wanted, self.params)
        facts = self.own(
            duration_s=decoded.duration_s,
            sample_rate_hz=decoded.sample_rate_hz,
            channels=decoded.channels,
            codec=decoded.codec,
        )
        native = decoded.native and {
            "rate_hz": decoded.sample_rate_hz,
            "channels": decoded.channels,
            "samples": decoded.native,
        }
        return {**facts, "native": native, "pcm": decoded.pcm}


def decode_file(uri: str, wanted: Collection[str] = frozenset(WORKING), params: DecodeParams | None = None) -> Decoded:
    """Decode a local path or any fsspec URI; its content, never its name, tells the format.

    Sample 0 is the start of the song: FFmpeg removes the encoder's delay where the file tells it (LAME tag, Opus
    pre-skip, MP4 edit list). Padding at the end goes as well, save for AAC's, which is shorter than a packet.
    Rates are converted by libsoxr (HQ); more than two channels are mixed down by libswresample (ITU-R BS.775
    coefficients, scaled so that nothing clips); mono is put on both channels.

    Raises:
        EmptyFile, NotAudio, Unreadable, TruncatedAudio, DecodeError: the message names the file.
    """
    params = params or DecodeParams()
    with opened(uri) as file, _container(uri, file) as container:
        samples = _Samples(uri, container)
        sinks = _sinks(wanted, samples)
        claimed_s = _claimed_s(file, container, samples.stream)
        within_limit = claimed_s <= params.limit_s and _fill(sinks, samples, params.limit_s)
        if within_limit:
            _require_whole(samples, file, params)
        made = {name: sink.close() for name, sink in sinks.items()} if within_limit else {}
        return Decoded(
            duration_s=samples.duration_s if within_limit else max(claimed_s, samples.duration_s),
            sample_rate_hz=samples.rate_hz,
            channels=samples.layout.nb_channels,
            codec=samples.stream.codec.canonical_name,
            lost_packets=samples.lost,
            native=made.get("native"),
            pcm=made.get("pcm"),
        )


class _Samples:
    """The decoded audio of a container: iterates over float32 blocks [frames, channels] and keeps the count.

    The first frame settles rate and layout, since headers may be wrong (HE-AAC) and files glued together may change
    them on the way: later frames are converted.
    """

    def __init__(self, uri: str, container: InputContainer) -> None:
        stream = container.streams.best("audio")
        if not isinstance(stream, av.AudioStream) or stream.codec_context is None:
            raise NotAudio(f"{uri}: {container.format.long_name} without an audio stream that FFmpeg can decode")
        stream.codec_context.thread_count = 1
        self.uri = uri
        self.container = container
        self.stream = stream
        self.rate_hz = stream.rate
        self.layout = stream.layout
        self.frames = 0
        self.packets = 0
        self.lost = 0
        self._source: tuple[str, str, int] | None = None
        self._blocks = self._decode()
        self._first = next(self._blocks, None)

    @property
    def duration_s(self) -> float:
        return self.frames / self.rate_hz

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in itertools.chain(() if self._first is None else (self._first,), self._blocks):
            self.frames += len(block)
            yield block

    def _decode(self) -> Iterator[np.ndarray]:
        for packet in self._demux():
            self.packets += packet.size > 0  # an empty one flushes the decoder
            try:
                frames = packet.decode()
            except av.FFmpegError:
                self.lost += 1
                yield self._silence(packet)
                continue
            for frame in frames:
                yield from self._convert(frame)

    def _demux(self) -> Iterator["av.Packet[av.AudioStream]"]:
        try:
            yield from self.container.demux(self.stream)
        except av.FFmpegError:  # nothing readable follows; the length tells whether that matters
            self.lost += 1

    def _convert(self, frame: av.AudioFrame) -> Iterator[np.ndarray]:
        source = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._source is None:
            self.rate_hz, self.layout = frame.sample_rate, frame.layout
        if source != self._source:
            self._converter = av.AudioResampler("flt", self.layout, self.rate_hz)
            self._source = source
        for converted in self._converter.resample(frame):
            yield converted.to_ndarray().reshape(-1, self.layout.nb_channels)

    def _silence(self, packet: "av.Packet[av.AudioStream]") -> np.ndarray:
        seconds = float((packet.duration or 0) * (packet.time_base or 0))
        return np.zeros((round(seconds * self.rate_hz), self.layout.nb_channels), dtype=np.float32)


class _Native:
    """Keeps float32 blocks as they are."""

    def __init__(self) -> None:
        self._samples = bytearray()

    def write(self, block: np.ndarray) -> None:
        self._samples += block.data.cast("B")

    def close(self) -> bytearray:
        return self._samples  # not a view of it: Arrow, which copies either, never lets go of a memoryview


class _Canonical:
    """Turns float32 blocks into canonical PCM as they come; only the int16 result is kept."""

    def __init__(self, rate_hz: int, layout: av.AudioLayout) -> None:
        self._rate_hz = rate_hz
        self._layout = layout
        self._mixer = av.AudioResampler("flt", "stereo", rate_hz, options={"rematrix_maxval": "1.0"})
        self._resampler = soxr.ResampleStream(rate_hz, pcm.RATE_HZ, pcm.CHANNELS) if rate_hz != pcm.RATE_HZ else None
        self._pcm = bytearray()

    def write(self, block: np.ndarray) -> None:
        self._append(self._stereo(block))

    def close(self) -> bytearray:
        self._append(np.zeros((0, pcm.CHANNELS), dtype=np.float32), last=True)
        return self._pcm

    def _append(self, stereo: np.ndarray, last: bool = False) -> None:
        if self._resampler:
            stereo = self._resampler.resample_chunk(stereo, last)
        self._pcm += pcm.encode(stereo.T)

    def _stereo(self, block: np.ndarray) -> np.ndarray:
        channels = block.shape[1]
        if channels == pcm.CHANNELS:
            return block
        if channels == 1:
            return np.repeat(block, pcm.CHANNELS, axis=1)
        frame = av.AudioFrame.from_ndarray(block.reshape(1, -1), "flt", self._layout)
        frame.sample_rate = self._rate_hz
        mixed = [part.to_ndarray() for part in self._mixer.resample(frame)]
        return np.concatenate(mixed, axis=1).reshape(-1, pcm.CHANNELS)


def _sinks(wanted: Collection[str], samples: _Samples) -> dict[str, _Native | _Canonical]:
    sinks: dict[str, _Native | _Canonical] = {}
    if "native" in wanted:
        sinks["native"] = _Native()
    if "pcm" in wanted:
        sinks["pcm"] = _Canonical(samples.rate_hz, samples.layout)
    return sinks


def _fill(sinks: dict[str, _Native | _Canonical], samples: _Samples, limit_s: float) -> bool:
    """Decode everything into the sinks; False as soon as it gets longer than the limit."""
    for block in _joined(samples):
        if samples.duration_s > limit_s:
            return False
        for sink in sinks.values():
            sink.write(block)
    return True


def _joined(samples: _Samples) -> Iterator[np.ndarray]:
    """Blocks of half a second, for there are a hundred packets a second and each call has its price."""
    waiting: list[np.ndarray] = []
    for block in samples:
        waiting.append(block)
        if 2 * sum(map(len, waiting)) >= samples.rate_hz:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _require_whole(samples: _Samples, file: BinaryIO, params: DecodeParams) -> None:
    promised = promised_s(file, samples.container, samples.stream)
    if samples.lost == samples.packets and (samples.lost or promised):
        raise DecodeError(f"{samples.uri}: nothing of its {samples.packets} packets can be decoded")
    if samples.frames == 0:
        raise EmptyFile(f"{samples.uri}: headers without samples")
    if samples.lost > max(1.0, params.lost_ratio * samples.packets):
        raise DecodeError(f"{samples.uri}: {samples.lost} of {samples.packets} packets cannot be decoded")
    if promised is not None and promised - samples.duration_s > params.missing_s:
        raise TruncatedAudio(f"{samples.uri}: {samples.duration_s:.1f} s of the {promised:.1f} s its headers promise")
    if samples.container.format.name == "ogg" and not ogg_is_complete(file):
        raise TruncatedAudio(f"{samples.uri}: the last page of its Ogg stream is missing")


def _claimed_s(file: BinaryIO, container: InputContainer, stream: av.AudioStream) -> float:
    """The length to judge a file by before it is decoded; 0 where FFmpeg only guesses it.

    It does so from the bit rate of the first packets: a stream that opens with silence would seem to last for hours.
    """
    position = file.tell()  # the demuxer goes on from here
    guessed = container.format.name in HEADERLESS or (
        container.format.name == "mp3" and promised_s(file, container, stream) is None
    )
    file.seek(position)
    return 0.0 if guessed else (container.duration or 0) / av.time_base


@contextmanager
def opened(uri: str) -> Iterator[BinaryIO]:
    """The file behind a path or URI. A local path may hold anything, even "::", which fsspec would take for a chain.

    Raises:
        Unreadable: whatever its storage raises while it is open.
    """
    try:
        with fsspec.open(uri, "rb") if "://" in uri else Path(uri).open("rb") as file:
            yield file
    except OSError as error:
        raise Unreadable(f"{uri}: {error.strerror or error}") from error


@contextmanager
def _container(uri: str, file: BinaryIO) -> Iterator[InputContainer]:
    head = file.read(12)
    if not head:
        raise EmptyFile(f"{uri}: no bytes")
    file.seek(0)
    nameless = SimpleNamespace(read=file.read, seek=file.seek, tell=file.tell)  # or FFmpeg goes by the suffix
    # The whitelist keeps a playlist that poses as a song from opening other files or hosts.
    options = {"protocol_whitelist": "none"}
    try:
        container = av.open(nameless, "r", container_options=options, metadata_errors="replace")
    except av.FFmpegError as error:
        if isinstance(error, av.error.EOFError) or head[4:8] == _MP4_MAGIC:  # MP4 keeps its index at the end
            raise TruncatedAudio(f"{uri}: ends before its headers do") from error
        if head.startswith(_MAGICS):
            raise DecodeError(f"{uri}: begins as {head[:4]!r}, but its headers are damaged") from error
        raise NotAudio(f"{uri}: no format FFmpeg knows") from error
    with container:
        yield container
