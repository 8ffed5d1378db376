"""What storing SSL targets at the latent rate changes: the loss, its gradient, and the bytes per minute.

`python -m benchmarks.ssl_targets` on the demo songs. The native loss stretches the projection to the encoder's rate, as
the public trainer does; the stored one compares it with the mean unit state under each latent frame.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import av
import numpy as np
import torch
import typer
from torch import Tensor

from pipeline.models.store import ModelStore
from schemas import ssl_codec
from stages import pcm
from stages.decode import decode_file
from stages.nets.codec.codec import LATENT_HZ
from stages.nets.whisper_encoder import WhisperStates
from training.dit.objective import pooled_alignment_loss
from training.model.repa import alignment_loss

# How far a projection is from its target: noise of this norm for each unit of the target's.
_DISTANCES = {"far (random)": None, "on the way (noise 1.0)": 1.0, "near (noise 0.3)": 0.3, "at it (noise 0.05)": 0.05}


def main(songs: Annotated[int, typer.Option(help="How many demo songs.")] = 3) -> None:
    """Measure and print one JSON object."""
    store = ModelStore()
    encoder = WhisperStates.load(store.pull("whisper-base-encoder").path)
    measured = [_measure(path, encoder) for path in _songs(store, songs)]
    names = measured[0]
    typer.echo(json.dumps({name: float(np.mean([song[name] for song in measured])) for name in names}, indent=2))


def _songs(store: ModelStore, count: int) -> Iterator[Path]:
    files = sorted(path for path in store.pull("demo-songs").path.rglob("*") if path.suffix in (".mp3", ".opus"))
    yield from files[:count]


def _measure(path: Path, encoder: WhisperStates) -> dict[str, float]:
    decoded = decode_file(str(path), {"pcm"})
    states = encoder(pcm.mono(decoded.pcm, encoder.input_rate_hz))
    frames = int(decoded.duration_s * LATENT_HZ)
    scales, data = ssl_codec.encode(ssl_codec.pool(states, encoder.rate_hz, frames, LATENT_HZ))
    stored = torch.from_numpy(ssl_codec.decode(scales, data, states.shape[1]))
    native = torch.from_numpy(ssl_codec.normalize(states))

    figures: dict[str, float] = {}
    generator = torch.Generator().manual_seed(0)
    for name, noise in _DISTANCES.items():
        projection = torch.randn(stored.shape, generator=generator)
        if noise is not None:
            unit = torch.nn.functional.normalize(stored, dim=-1)
            projection = unit + noise * projection / stored.shape[1] ** 0.5
        for kind, value in _compare(projection, native, stored).items():
            figures[f"{name}: {kind}"] = value
    minutes = decoded.duration_s / 60
    figures["bytes a minute: stored"] = (len(scales) + len(data)) / minutes
    figures["bytes a minute: native float16"] = states.size * 2 / minutes
    figures["bytes a minute: FLAC"] = _flac_bytes(pcm.stereo(decoded.pcm)) / minutes
    return figures


def _compare(projection: Tensor, native: Tensor, stored: Tensor) -> dict[str, float]:
    whole = torch.ones(1, len(projection), dtype=torch.bool)
    losses, gradients = [], []
    for targets in (native, stored):
        leaf = projection[None].clone().requires_grad_()
        loss = (
            alignment_loss(leaf, [targets], None)
            if targets is native
            else pooled_alignment_loss(leaf, [targets], whole)
        )
        loss.backward()
        assert leaf.grad is not None
        losses.append(loss.item())
        gradients.append(leaf.grad.flatten())
    cosine = torch.nn.functional.cosine_similarity(*gradients, dim=0).item()
    return {"native loss": losses[0], "stored loss": losses[1], "gradient cosine": cosine}


def _flac_bytes(samples: np.ndarray) -> int:
    """Size as FLAC, of 16-bit stereo at 44.1 kHz."""
    sixteen = np.ascontiguousarray((samples.T * 32767).astype(np.int16).reshape(1, -1))
    codec = av.CodecContext.create("flac", "w")
    codec.sample_rate, codec.layout, codec.format = pcm.RATE_HZ, "stereo", "s16"
    codec.open()
    total = 0
    for start in range(0, sixteen.shape[1], 2 * 4096):
        block = sixteen[:, start : start + 2 * 4096]
        frame = av.AudioFrame.from_ndarray(block, format="s16", layout="stereo")
        frame.sample_rate, frame.pts = pcm.RATE_HZ, start // 2
        total += sum(packet.size for packet in codec.encode(frame))
    return total + sum(packet.size for packet in codec.encode(None))


if __name__ == "__main__":
    typer.run(main)
