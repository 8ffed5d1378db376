"""Small stages that behave in ways no real one should; workers import them as `tests.support.toy_stages:Class`."""

import ctypes
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray

from schemas import columns, ssl_codec
from schemas.columns import stage_struct
from stages import pcm
from stages.base import Params, Resources, Stage, Track, TrackError, Weights
from stages.lyric_tokens import LyricTokens, encode
from stages.text.bpe import START_ID


class Unlucky(TrackError):
    """Raised for the title that the parameter names."""


class LengthParams(Params):
    """Parameters of `Length`."""

    fails_on: str = ""
    seconds: float = 0.0


class Length(Stage):
    """Length of the PCM; may dawdle, and fails on one title."""

    name = "length"
    type = stage_struct(pa.field("seconds", pa.float64()))
    reads = {"pcm": pcm.PCM, "title": pa.string()}
    Params = LengthParams

    def process(self, track: Track) -> dict[str, Any]:
        time.sleep(self.params.seconds)
        if self.params.fails_on and track["title"] == self.params.fails_on:
            raise Unlucky(f"{track['uri']}: as configured")
        return self.own(seconds=pcm.duration_s(track["pcm"]))


class Placed(Stage):
    """Where it runs: the device it was told, the GPUs that Ray shows it, its process."""

    name = "placed"
    type = stage_struct(pa.field("device", pa.string()), pa.field("visible", pa.string()), pa.field("pid", pa.int64()))
    reads = {"pcm": pcm.PCM}

    def process(self, track: Track) -> dict[str, Any]:
        return self.own(device=self.device, visible=os.environ.get("CUDA_VISIBLE_DEVICES"), pid=os.getpid())


class PlacedToo(Placed):
    """Another one."""

    name = "placed_too"


class Asked(Placed):
    """One that waits for others, so that it has an operator of its own, and those around it are two."""

    name = "asked"

    @property
    def concurrency(self) -> int:
        return 2


class PreviewParams(LengthParams):
    """Parameters of `Preview`."""

    text: str = "heard"


class Preview(Stage):
    """A feature that says how much was heard; may dawdle, and fails on one title."""

    name = "preview"
    type = stage_struct(pa.field("heard", pa.string()))
    reads = {"pcm": pcm.PCM, "title": pa.string()}
    Params = PreviewParams

    def process(self, track: Track) -> dict[str, Any]:
        time.sleep(self.params.seconds)
        if self.params.fails_on and track["title"] == self.params.fails_on:
            raise Unlucky(f"{track['uri']}: as configured")
        return self.own(heard=f"{self.params.text} {pcm.duration_s(track['pcm']):.1f} s of {track['title']}")


class KillerParams(Params):
    """Parameters of `Killer`: the titles it dies on (all that have one of these words in them), and how."""

    always: tuple[str, ...] = ()
    once: str = ""
    memory: Path = Path("unset")
    by: Literal["SIGKILL", "SIGSEGV", "SIGABRT", "exit"] = "SIGKILL"


class Killer(Stage):
    """Kills its own process: on some titles always, on another the first time, which it notes in a file."""

    name = "killer"
    type = stage_struct(pa.field("survived", pa.bool_()))
    reads = {"title": pa.string()}
    Params = KillerParams

    def process(self, track: Track) -> dict[str, Any]:
        kills = any(word in track["title"] for word in self.params.always)
        if track["title"] == self.params.once and not self.params.memory.exists():
            self.params.memory.touch()
            kills = True
        if kills:
            self._die()
        return self.own(survived=True)

    def _die(self) -> None:
        if self.params.by == "exit":
            os._exit(7)
        if self.params.by == "SIGSEGV":
            ctypes.string_at(0)
        os.kill(os.getpid(), signal.Signals[self.params.by])


class KillerOfMany(Killer):
    """Another one, which takes several songs at once in an operator of its own."""

    resources = Resources(batch_rows=5)

    @property
    def concurrency(self) -> int:
        return 1


class Broken(Stage):
    """Cannot load what it needs."""

    name = "broken"
    type = stage_struct(pa.field("x", pa.int32()))
    reads = {"title": pa.string()}

    def setup(self, weights: Mapping[str, Weights]) -> None:
        raise RuntimeError("no such library")

    def process(self, track: Track) -> dict[str, Any]:
        return self.own(x=1)


class Needy(Stage):
    """Reads a column that nobody writes."""

    name = "needy"
    type = stage_struct(pa.field("x", pa.int32()))
    reads = {"unobtainium": pa.int32()}

    def process(self, track: Track) -> dict[str, Any]:
        return self.own(x=track["unobtainium"])


class Mistyped(Stage):
    """Reads a field of `audio` as another type than it has."""

    name = "mistyped"
    type = stage_struct(pa.field("x", pa.int32()))
    reads = {"audio": pa.struct([pa.field("codec", pa.int64())])}

    def process(self, track: Track) -> dict[str, Any]:
        return self.own(x=1)


class Usurper(Stage):
    """Owns a column that `decode` owns."""

    name = "usurper"
    column = "audio"
    type = stage_struct(pa.field("x", pa.int32()))

    def process(self, track: Track) -> dict[str, Any]:
        return self.own(x=1)


class Ping(Stage):
    """Waits for `Pong`."""

    name = "ping"
    type = pa.int32()
    reads = {"pong": pa.int32()}

    def process(self, track: Track) -> dict[str, Any]:
        return {"ping": 1}


class Pong(Stage):
    """Waits for `Ping`."""

    name = "pong"
    type = pa.int32()
    reads = {"ping": pa.int32()}

    def process(self, track: Track) -> dict[str, Any]:
        return {"pong": 1}


class Words(LyricTokens):
    """Titles as lyrics, for those who need some and cannot wait for a transcript."""

    reads = {"title": pa.string()}
    reads_if_present = {}

    def process(self, track: Track) -> dict[str, Any]:
        ids = encode(track["title"], "en", self._vocabulary)
        return self.own(ids=[START_ID, *ids], text=track["title"], vocabulary=self._vocabulary_name)


class Voice(Stage):
    """A speaker embedding that no speaker was needed for: the loudness of sixteen parts of the song."""

    name = "speaker"
    type = columns.SPEAKER
    reads = {"pcm": pcm.PCM}

    def process(self, track: Track) -> dict[str, Any]:
        parts = np.array_split(pcm.mono(track["pcm"]), 16)
        loudness = np.array([np.sqrt(np.square(part).mean()) for part in parts])
        return self.own(embedding=(loudness / np.linalg.norm(loudness)).tolist())


class Loudness(Stage):
    """SSL states that no encoder was needed for: the loudness of eight parts of each latent frame."""

    name = "ssl"
    type = columns.ssl_struct("loudness")
    reads = {"pcm": pcm.PCM}

    def process(self, track: Track) -> dict[str, Any]:
        audio = pcm.mono(track["pcm"])
        parts = audio[: len(audio) // 4096 * 4096].reshape(-1, 8, 512)
        scales, data = ssl_codec.encode(np.sqrt(np.square(parts).mean(axis=-1)) + 1e-3)
        rate_hz = pcm.RATE_HZ / 4096
        states = {"frames": len(parts), "dim": 8, "rate_hz": rate_hz, "scales": scales, "data": data}
        return self.own(loudness=states)


class FlakyParams(Params):
    """Parameters of `Flaky`."""

    while_there: str = "unset"
    fails_on: str = ""


class Flaky(Stage):
    """Fails on some titles as long as a file is there, like a server that is down."""

    name = "flaky"
    type = stage_struct(pa.field("seconds", pa.float64()))
    reads = {"pcm": pcm.PCM, "title": pa.string()}
    Params = FlakyParams

    def process(self, track: Track) -> dict[str, Any]:
        if Path(self.params.while_there).exists() and self.params.fails_on in track["title"]:
            raise Unlucky("the server is down")
        return self.own(seconds=pcm.duration_s(track["pcm"]))


class LettersParams(Params):
    """Parameters of `Letters`: the letter that it fails on."""

    fails_on: str = "!"


class Letters(Stage):
    """Counts the letters of titles, eight titles at a time, and hands them on backwards; fails on one letter."""

    name = "letters"
    type = stage_struct(pa.field("count", pa.int32()), pa.field("vowels", pa.float32()))
    reads = {"title": pa.string()}
    working = {"backwards": pa.string()}
    resources = Resources(batch_rows=8)
    Params = LettersParams

    def process(self, track: Track) -> dict[str, Any]:
        title = track["title"]
        if self.params.fails_on in title:
            raise Unlucky(f"{title}: as configured")
        vowels = sum(letter in "aeiou" for letter in title) / len(title) if title else None
        return self.own(count=len(title), vowels=vowels) | {"backwards": title[::-1]}


class Echo(Stage):
    """What `Letters` handed on; fails in a way that nobody foresaw where it begins with a question mark."""

    name = "echo"
    type = stage_struct(pa.field("text", pa.string()), pa.field("count", pa.int32()))
    reads = {"backwards": pa.string(), "letters": pa.struct([pa.field("count", pa.int32())])}
    resources = Resources(batch_rows=8)

    def process(self, track: Track) -> dict[str, Any]:
        if track["backwards"].startswith("?"):
            raise ValueError("no echo")
        if track["backwards"].startswith("^"):
            raise SystemExit(track["backwards"])
        return self.own(text=track["backwards"], count=track["letters"]["count"])


class SoundParams(Params):
    """Parameters of `Sound`."""

    megabytes: int = 1


class Sound(Stage):
    """As much of a working column as is asked for."""

    name = "sound"
    type = stage_struct(pa.field("megabytes", pa.int64()))
    reads = {"title": pa.string()}
    working = {"noise": pa.large_binary()}
    Params = SoundParams

    def process(self, track: Track) -> dict[str, Any]:
        size = self.params.megabytes
        return {**self.own(megabytes=size), "noise": os.urandom(1024) * (size * 1024)}


class SleeperParams(Params):
    """Parameters of `Sleeper`: how long it sleeps, and a file in which it notes when it did so where."""

    seconds: float = 1.0
    log: Path = Path("unset")


class Sleeper(Stage):
    """Sleeps over every song."""

    name = "sleeper"
    type = stage_struct(pa.field("node", pa.string()))
    reads = {"title": pa.string()}
    reads_if_present = {"noise": pa.large_binary()}
    Params = SleeperParams

    def process(self, track: Track) -> dict[str, Any]:
        node = ray.get_runtime_context().get_node_id()
        self._note("begin", track["title"], node)
        time.sleep(self.params.seconds)
        self._note("end", track["title"], node)
        return self.own(node=node)

    def _note(self, what: str, title: str, node: str) -> None:
        with self.params.log.open("a") as log:
            log.write(f"{what} {title} {node} {os.getpid()}\n")
