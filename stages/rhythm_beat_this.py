"""Tempo, beats and downbeats by the transformer Beat This."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import numpy as np
import torch

from schemas import columns
from stages import pcm
from stages.base import Stage, Track, Weights
from stages.libraries import Library
from stages.signal.meter import meter_from_downbeats
from stages.signal.spectrum import mel_filters
from stages.signal.tempo import MIN_BEATS, choose_octave, fit_bpm

MODEL = "beat-this-final0"
_RATE_HZ = 22_050
_FRAME_HZ = 50
_N_FFT = 1024
_MELS = 128
_CHUNK = 1500  # frames the model was trained on
_BORDER = 6  # frames at a chunk's edges whose predictions are not used
_PEAK = 7  # frames within which only the highest prediction counts


class RhythmBeatThis(Stage):
    """Beats and downbeats by Beat This with its minimal post-processing: peaks above one half, no tempo model.

    `confidence` is the mean probability of the beats found. BPM and octave are decided in `stages.signal.tempo`, with
    the network's beat probability as the pulse. The library's own preprocessing needs torchaudio, so the log-mel is
    computed here with the same parameters.

    Source: Foscarin, Schlüter and Widmer, "Beat this! Accurate beat tracking without DBN postprocessing", ISMIR 2024.
    """

    name = "rhythm"
    type = columns.RHYTHM
    reads = {"pcm": pcm.PCM}
    libraries = (Library("Beat This", module="beat_this", package="beat-this", extra="beats"),)

    @property
    def models(self) -> tuple[str, ...]:
        """The released checkpoint "final0"."""
        return (MODEL,)

    def setup(self, weights: Mapping[str, Weights]) -> None:
        """Load the checkpoint."""
        super().setup(weights)
        from beat_this.model.beat_tracker import BeatThis

        checkpoint = torch.load(weights[MODEL].path / "final0.ckpt", map_location="cpu", weights_only=True)
        options = checkpoint["hyper_parameters"]
        self._network = BeatThis(**{name: options[name] for name in signature(BeatThis).parameters if name in options})
        self._network.load_state_dict(
            {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
        )
        self._network.eval().to(self.device)

    def process(self, track: Track) -> dict[str, Any]:
        """Measure tempo, beats, downbeats and meter of the `pcm` column."""
        beat, downbeat = self.probabilities(log_mel(pcm.mono(track["pcm"], _RATE_HZ)))
        beats_s = peaks_s(beat)
        downbeats_s = _snap(peaks_s(downbeat), beats_s)
        bpm = fit_bpm(beats_s) if len(beats_s) >= 2 * MIN_BEATS else None  # half of the beats must still give a tempo
        if bpm is None:
            return self.own(bpm=None, confidence=0.0, beats_s=[], downbeats_s=[], octave_confidence=0.0)
        octave = choose_octave(beats_s, bpm, beat, _FRAME_HZ)
        downbeats_s = downbeats_s if octave.decision == "as_is" else _snap(downbeats_s, octave.beats_s)
        return self.own(
            bpm=fit_bpm(octave.beats_s),
            confidence=float(beat[np.round(beats_s * _FRAME_HZ).astype(int)].mean()),
            beats_s=octave.beats_s.tolist(),
            downbeats_s=downbeats_s.tolist(),
            time_signature=meter_from_downbeats(octave.beats_s, downbeats_s),
            octave=octave.decision,
            octave_confidence=octave.confidence,
        )

    def probabilities(self, mel: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Log-mel [frames, 128] to beat and downbeat probability [frames] each, chunk by chunk."""
        frames = len(mel)
        padded = torch.nn.functional.pad(mel, (0, 0, _BORDER, _BORDER))
        logits = torch.full((2, frames), -torch.inf)
        step = _CHUNK - 2 * _BORDER
        for start in range(0, frames, step):
            start = max(0, min(start, frames - step))  # the last chunk is a full one too
            with torch.inference_mode():
                chunk = self._network(padded[None, start : start + _CHUNK].to(self.device))
            for row, head in enumerate(("beat", "downbeat")):
                inner = chunk[head][0, _BORDER:-_BORDER].cpu()
                logits[row, start : start + len(inner)] = inner
        beat, downbeat = torch.sigmoid(logits).numpy()
        return beat, downbeat


def log_mel(audio: np.ndarray) -> torch.Tensor:
    """Mono audio at 22.05 kHz to log(1 + 1000 mel) [frames, 128] at 50 Hz, 30 Hz to 11 kHz, Slaney scale.

    The magnitude spectrum is divided by the root of the window length; the mel filters are not area-normalised.
    """
    if len(audio) <= _N_FFT // 2:
        audio = np.pad(audio, (0, _N_FFT // 2 + 1 - len(audio)))  # reflection at the edges needs half a window
    spectrum = torch.stft(
        torch.from_numpy(np.ascontiguousarray(audio, dtype=np.float32)),
        _N_FFT,
        hop_length=_RATE_HZ // _FRAME_HZ,
        window=torch.hann_window(_N_FFT),
        return_complex=True,
    )
    filters = mel_filters(_RATE_HZ, _N_FFT, _MELS, 30, 11_000, area=False)
    mel = torch.from_numpy(filters) @ (spectrum.abs() / _N_FFT**0.5)
    return torch.log1p(1000 * mel).T


def peaks_s(probability: np.ndarray) -> np.ndarray:
    """Times of the local maxima (within 70 ms) above one half; neighbouring equal frames count once, in the middle."""
    curve = torch.from_numpy(probability)
    highest = torch.nn.functional.max_pool1d(curve[None], _PEAK, 1, _PEAK // 2)[0]
    frames = torch.nonzero((curve == highest) & (curve > 0.5))[:, 0].numpy()
    groups = np.split(frames, np.flatnonzero(np.diff(frames) > 1) + 1)
    return np.array([group.mean() for group in groups if len(group)]) / _FRAME_HZ


def _snap(times_s: np.ndarray, beats_s: np.ndarray) -> np.ndarray:
    """Each time moved to the nearest beat, without duplicates."""
    if not len(beats_s):
        return beats_s
    return np.unique([beats_s[np.abs(beats_s - time_s).argmin()] for time_s in times_s])
