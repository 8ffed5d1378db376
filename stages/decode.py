"""Any audio file to samples: PyAV decodes, soxr resamples. Nothing else in the pipeline opens an audio file."""

import itertools
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import av
import fsspec
import numpy as np
import pyarrow as pa
import soxr
from av.container import InputContainer
from fsspec.implementations.local import LocalFileSystem
from pydantic import Field

from schemas import columns
from schemas.storage.input_files import file_system
from schemas.storage.options import scheme
from stages import base, pcm
from stages.decoding.bounds import MIB, USUAL_BYTES_PER_S, AbsurdHeader, Bounds, TooLarge
from stages.decoding.comments import claimed_comments
from stages.decoding.ffmpeg_memory import limit_allocations
from stages.decoding.limited_reader import LimitedReader
from stages.decoding.truncation import HEADERLESS, ogg_is_complete, promised_s

NATIVE = pa.struct([("rate_hz", pa.int32()), ("channels", pa.int32()), ("samples", pa.large_binary())])
WORKING = {"native": NATIVE, "pcm": pcm.PCM}

_FLOAT_BYTES = 4
_LOUDEST = np.float32(1000.0)  # +60 dBFS; a float file may hold anything
_MAX_STREAMS = 100  # films have dozens; each takes memory before anything is decoded
_MP4_MAGIC = b"ftyp"  # at byte 4
_MAGICS = (b"RIFF", b"FORM", b"fLaC", b"OggS", b"ID3")


class EmptyFile(base.TrackError):
    """No bytes, or headers without a single sample."""


class NotAudio(base.TrackError):
    """No format FFmpeg knows, or one without an audio stream."""


class Unreadable(base.TrackError):
    """Missing, a folder, a pipe or a device, forbidden, or the storage failed."""


class TruncatedAudio(base.TrackError):
    """Ends earlier than its headers say."""


class DecodeError(base.TrackError):
    """Too damaged: headers nobody can read, or too many lost packets."""


@dataclass(frozen=True)
class Decoded:
    """A decoded file.

    Attributes:
        duration_s: decoded frames over the rate; for audio over the limit, the length its container claims.
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


class DecodeParams(Bounds):
    """How much is decoded, how much damage is accepted, and what is refused at once (see `stages.decoding.bounds`).

    Attributes:
        limit_s: guards the memory: of longer audio only the facts are reported, not the samples.
        missing_s: seconds of the promised length that may be missing.
        lost_ratio: share of packets that may be lost; a single one always may.
    """

    limit_s: float = Field(default=1800.0, gt=0)
    missing_s: float = Field(default=1.0, ge=0)
    lost_ratio: float = Field(default=0.02, ge=0, le=1)

    @property
    def max_bytes(self) -> float:
        """The most that the decoded samples of a song may take, as float32 at its own rate."""
        return self.limit_s * USUAL_BYTES_PER_S if self.max_mb is None else self.max_mb * MIB


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

    def run(self, batch: pa.Table) -> dict[str, Sequence[Any]]:
        """As the default, but the samples go to Arrow without a copy: they are most of the memory a song takes."""
        made = super().run(batch)
        if "native" in made:
            made["native"] = _native_array(made["native"])
        if "pcm" in made:
            made["pcm"] = _binary_array(made["pcm"])
        return made


def decode_file(uri: str, wanted: Collection[str] = frozenset(WORKING), params: DecodeParams | None = None) -> Decoded:
    """Decode a local path or any fsspec URI; its content, never its name, tells the format.

    Sample 0 is the start of the song: FFmpeg removes the encoder's delay where the file states it (LAME tag, Opus
    pre-skip, MP4 edit list). Padding at the end is removed too, except AAC's, which is shorter than a packet.
    Rates are converted by libsoxr (HQ); more than two channels are mixed down by libswresample (ITU-R BS.775
    coefficients, scaled so that nothing clips); mono is put on both channels.

    The memory it takes follows from the bounds in `params`; see `stages.decoding.bounds`.

    Raises:
        AbsurdHeader, NoMixdown, TooLarge: out of these bounds.
        EmptyFile, NotAudio, Unreadable, TruncatedAudio, DecodeError: the message names the file.
    """
    params = params or DecodeParams()
    with opened(uri) as file, _container(uri, file, params) as container:
        stream = _audio_stream(uri, container)
        claimed_s = _claimed_s(file, container, stream)
        samples = _Samples(uri, container, stream, claimed_s, params)
        made = _made(wanted, samples, claimed_s, params)
        if made is not None:
            _require_whole(samples, file, params)
        return Decoded(
            duration_s=samples.duration_s if made is not None else max(claimed_s, samples.duration_s),
            sample_rate_hz=samples.rate_hz,
            channels=samples.layout.nb_channels,
            codec=samples.stream.codec.canonical_name,
            lost_packets=samples.lost,
            native=made.get("native") if made else None,
            pcm=made.get("pcm") if made else None,
        )


class _Samples:
    """The decoded audio of a container: iterates over float32 blocks [frames, channels] and counts what it yields.

    The first frame settles rate and layout, since headers may be wrong (HE-AAC) and concatenated files may change them
    midway: later frames are converted. Frames out of bounds count as lost packets. Nothing is decoded unless the header
    is within bounds, and the first frame has to pass the same checks.
    """

    def __init__(
        self, uri: str, container: InputContainer, stream: av.AudioStream, claimed_s: float, params: DecodeParams
    ) -> None:
        if stream.rate and stream.layout.nb_channels:  # else only the first frame will tell
            params.require_header(uri, stream.rate, stream.layout, claimed_s)
        stream.codec_context.thread_count = 1
        self.uri = uri
        self.container = container
        self.stream = stream
        self.rate_hz = stream.rate
        self.layout = stream.layout
        self.frames = 0
        self.packets = 0
        self.lost = 0
        self._params = params
        self._source: tuple[str, str, int] | None = None
        self._blocks = self._decode()
        self._first = next(self._blocks, None)
        params.require_header(uri, self.rate_hz, self.layout, claimed_s)

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
                for frame in packet.decode():
                    yield from self._convert(frame)
            except av.FFmpegError:
                self.lost += 1
                yield from self._silence(packet)

    def _demux(self) -> Iterator["av.Packet[av.AudioStream]"]:
        try:
            yield from self.container.demux(self.stream)
        except av.FFmpegError:  # nothing readable follows; the length tells whether that matters
            self.lost += 1

    def _convert(self, frame: av.AudioFrame) -> Iterator[np.ndarray]:
        source = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._source is None:
            self.rate_hz, self.layout = frame.sample_rate, frame.layout
        elif not self._params.allows(frame, self.rate_hz):
            self.lost += 1
            return
        if source != self._source:
            self._converter = av.AudioResampler("flt", self.layout, self.rate_hz)
            self._source = source
        for converted in self._converter.resample(frame):
            yield converted.to_ndarray().reshape(-1, self.layout.nb_channels)

    def _silence(self, packet: "av.Packet[av.AudioStream]") -> Iterator[np.ndarray]:
        """Silence in place of a packet, as long as it claims to be: a second at a time, because that may be a lie."""
        left = round(float((packet.duration or 0) * (packet.time_base or 0)) * self.rate_hz)
        while left > 0:
            frames = min(left, self.rate_hz)
            yield np.zeros((frames, self.layout.nb_channels), dtype=np.float32)
            left -= frames


class _Native:
    """Keeps float32 blocks as they are, up to `max_bytes`; refuses a song that claims to be longer right away."""

    def __init__(self, samples: _Samples, claimed_s: float, max_bytes: float) -> None:
        self._about = samples
        self._max_bytes = max_bytes
        self._samples = bytearray()
        self._require(claimed_s * samples.rate_hz * samples.layout.nb_channels * _FLOAT_BYTES, claimed_s)

    def write(self, block: np.ndarray) -> None:
        self._require(len(self._samples) + block.nbytes, self._about.duration_s)
        self._samples += block.data.cast("B")

    def close(self) -> bytearray:
        return self._samples

    def _require(self, size: float, seconds: float) -> None:
        if size > self._max_bytes:
            song = self._about
            raise TooLarge(
                f"{song.uri}: {seconds:,.0f} s of {song.layout.nb_channels} channels at {song.rate_hz:,} Hz take "
                f"{size / MIB:,.0f} MiB decoded; decode.max_mb allows {self._max_bytes / MIB:,.0f}"
            )


class _Canonical:
    """Turns float32 blocks into canonical PCM as they come; only the int16 result is kept."""

    def __init__(self, rate_hz: int, layout: av.AudioLayout) -> None:
        self._rate_hz = rate_hz
        self._layout = layout
        self._mixer = av.AudioResampler("flt", "stereo", rate_hz, options={"rematrix_maxval": "1.0"})
        self._resampler = soxr.ResampleStream(rate_hz, pcm.RATE_HZ, pcm.CHANNELS) if rate_hz != pcm.RATE_HZ else None
        self._pcm = bytearray()

    def write(self, block: np.ndarray) -> None:
        if not np.abs(block).max(initial=0.0) <= _LOUDEST:  # NaN or infinity would spread through the resampler's state
            block = np.nan_to_num(block, posinf=1.0, neginf=-1.0).clip(-_LOUDEST, _LOUDEST)
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


def _made(
    wanted: Collection[str], samples: _Samples, claimed_s: float, params: DecodeParams
) -> dict[str, bytearray] | None:
    """The wanted columns of the decoded samples; None as soon as the song proves to be longer than the limit."""
    if claimed_s > params.limit_s:
        return None
    sinks: dict[str, _Native | _Canonical] = {}
    if "native" in wanted:
        sinks["native"] = _Native(samples, claimed_s, params.max_bytes)
    if "pcm" in wanted:
        sinks["pcm"] = _Canonical(samples.rate_hz, samples.layout)
    for block in _joined(samples):
        if samples.duration_s > params.limit_s:
            return None
        for sink in sinks.values():
            sink.write(block)
    return {name: sink.close() for name, sink in sinks.items()}


def _joined(samples: _Samples) -> Iterator[np.ndarray]:
    """Blocks of half a second: packets come a hundred a second, and every call has its overhead."""
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
    """The length to judge a file by before it is decoded, in seconds; 0 where FFmpeg only guesses it.

    It guesses from the bit rate of the first packets: a stream that opens with silence would seem to last for hours.
    """
    position = file.tell()  # the demuxer continues from here
    guessed = container.format.name in HEADERLESS or (
        container.format.name == "mp3" and promised_s(file, container, stream) is None
    )
    file.seek(position)
    return 0.0 if guessed else (container.duration or 0) / av.time_base


@contextmanager
def opened(uri: str) -> Iterator[BinaryIO]:
    """The file behind a path or URI. A local path may hold anything, even "::", which fsspec would take for a chain.

    Raises:
        Unreadable: whatever its storage raises while it is open; also for a local pipe, socket or device, without
            waiting for it.
    """
    try:
        with _opened_locally(uri) if _is_local(uri) else _opened_remotely(uri) as file:
            yield file
    except OSError as error:
        raise Unreadable(f"{uri}: {error.strerror or error}") from error


def _is_local(uri: str) -> bool:
    return "://" not in uri or (uri.startswith(("file://", "local://")) and "::" not in uri)


def _opened_locally(uri: str) -> BinaryIO:
    """Opened without blocking: a pipe may have replaced the song since it was listed."""
    path = LocalFileSystem._strip_protocol(uri) if "://" in uri else uri
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise Unreadable(f"{uri}: no regular file, but a folder, pipe, socket or device")


def _opened_remotely(uri: str) -> AbstractContextManager[BinaryIO]:
    if scheme(uri):
        files, path = file_system(uri)
        return files.open(path, "rb")  # type: ignore[no-any-return]
    return fsspec.open(uri, "rb")  # type: ignore[no-any-return]


@contextmanager
def _container(uri: str, file: BinaryIO, params: DecodeParams) -> Iterator[InputContainer]:
    head = file.read(12)
    if not head:
        raise EmptyFile(f"{uri}: no bytes")
    if (comments := claimed_comments(file)) > params.max_comments:
        raise AbsurdHeader(f"{uri}: its header says {comments:,} comments; {params.max_comments:,} are read")
    flood = AbsurdHeader(
        f"{uri}: its headers take more than {params.max_header_mb:g} MiB (decode.max_header_mb) or two minutes"
    )
    nameless = LimitedReader(file, params.max_header_mb * MIB, flood)  # or FFmpeg goes by the suffix
    limit_allocations()
    # The whitelist keeps a playlist that poses as a song from opening other files or hosts.
    options = {"protocol_whitelist": "none", "max_streams": str(_MAX_STREAMS)}
    try:
        container = av.open(nameless, "r", container_options=options, metadata_errors="replace")
    except av.error.MemoryError as error:
        raise AbsurdHeader(f"{uri}: its headers ask for more memory than any song's") from error
    except av.FFmpegError as error:
        if isinstance(error, av.error.EOFError) or head[4:8] == _MP4_MAGIC:  # MP4 keeps its index at the end
            raise TruncatedAudio(f"{uri}: ends before its headers do") from error
        if head.startswith(_MAGICS):
            raise DecodeError(f"{uri}: begins as {head[:4]!r}, but its headers are damaged") from error
        raise NotAudio(f"{uri}: no format FFmpeg knows") from error
    with container:
        nameless.lift()
        yield container


def _audio_stream(uri: str, container: InputContainer) -> av.AudioStream:
    stream = container.streams.best("audio")
    if not isinstance(stream, av.AudioStream) or stream.codec_context is None:
        raise NotAudio(f"{uri}: {container.format.long_name} without an audio stream that FFmpeg can decode")
    return stream


def _native_array(songs: Sequence[dict[str, Any] | None]) -> pa.StructArray:
    samples = _binary_array([None if song is None else song["samples"] for song in songs])
    facts = [pa.array([song and song[name] for song in songs], pa.int32()) for name in ("rate_hz", "channels")]
    missing = pa.array([song is None for song in songs])
    return pa.StructArray.from_arrays([*facts, samples], fields=list(NATIVE), mask=missing)


def _binary_array(values: Sequence[bytearray | None]) -> pa.LargeBinaryArray:
    """One array over the values in place, without a copy: each is a whole song."""
    one_each = [pa.array([None], pa.large_binary()) if value is None else _over(value) for value in values]
    return one_each[0] if len(one_each) == 1 else pa.concat_arrays([pa.array([], pa.large_binary()), *one_each])


def _over(value: bytearray) -> pa.LargeBinaryArray:
    offsets = pa.py_buffer(np.array([0, len(value)], dtype=np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(value)])
