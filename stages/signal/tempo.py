"""Tempo from beat times: one precise figure, and its octave, the metrical level at which the music moves."""

from dataclasses import dataclass

import numpy as np

MIN_BEATS = 4
PLAUSIBLE_BPM = (70.0, 180.0)
_OCTAVE_SPREAD = 0.2  # octaves outside `PLAUSIBLE_BPM` at which the prior has fallen to exp(-1/2)
_BETWEEN = 0.5  # how much strength between the beats counts against a level: eighth notes are normal
_TRUST = 1.75  # by what factor another level must be better than the tracker's own
_STEADY = 0.12  # beats: greatest mean distance from a constant tempo for a song to count as steady
_WINDOW = 24  # beats
_MAX_FITTED = 1500  # beats; the fit looks at every pair of them


@dataclass(frozen=True)
class Octave:
    """The chosen metrical level: "as_is", "halved" or "doubled", its share 0..1 of the evidence, and its beats."""

    decision: str
    confidence: float
    beats_s: np.ndarray


def fit_bpm(beats_s: np.ndarray) -> float | None:
    """Tempo in BPM of a list of beat times, None for fewer than four beats.

    For a steady song, beat time over beat number is a line whose slope is the period. The Theil-Sen estimate (Sen 1968)
    of that slope ignores misplaced beats, and averages out the tracker's time grid, which distorts single intervals by
    up to two per cent. Beats are numbered by rounding each interval to whole periods, so that a missed beat leaves a
    gap and an extra one is dropped. Where no line fits, because the tempo changes or the tracker slips by half a beat,
    the same fit is made in windows of 24 beats and their median is the tempo.
    """
    from scipy.stats import theilslopes  # here because it takes long to import and planning does not need it

    if len(beats_s) < MIN_BEATS:
        return None
    period = float(np.median(np.diff(beats_s)))
    numbers, kept_s = _number(beats_s, period)
    numbers, kept_s = numbers[:_MAX_FITTED], kept_s[:_MAX_FITTED]
    slope, intercept, _, _ = theilslopes(kept_s, numbers)
    misfit = np.mean(np.abs(kept_s - (intercept + slope * numbers))) / period
    if misfit > _STEADY:
        starts = range(0, max(1, len(kept_s) - _WINDOW + 1), _WINDOW // 3)
        slope = np.median([theilslopes(kept_s[i : i + _WINDOW], numbers[i : i + _WINDOW])[0] for i in starts])
    return float(60.0 / slope)


def choose_octave(beats_s: np.ndarray, bpm: float, strength: np.ndarray, rate_hz: float) -> Octave:
    """Keep, halve or double the beats, given the onset (or beat) strength [frames] at `rate_hz`.

    A level is good if its beats stand out from the points half-way between them: tracked at twice the tempo, every
    other beat is weak; at half the tempo, the off-beats are as strong as the beats. Its score is this contrast times a
    prior that is flat between 70 and 180 BPM and falls off as a Gaussian in octaves beyond; the tracker's own level
    counts 1.75-fold, because the tracker had more evidence than this. The confidence is the winner's share of all
    scores.
    """
    off_beats_s = (beats_s[:-1] + beats_s[1:]) / 2
    doubled_s = np.sort(np.concatenate([beats_s, off_beats_s]))
    halved_s = max(beats_s[::2], beats_s[1::2], key=lambda times_s: _level(times_s, strength, rate_hz))
    levels = {"as_is": (beats_s, bpm), "halved": (halved_s, bpm / 2), "doubled": (doubled_s, bpm * 2)}
    scores = {
        decision: _contrast(times_s, strength, rate_hz) * _prior(tempo) for decision, (times_s, tempo) in levels.items()
    }
    scores["as_is"] *= _TRUST
    total = sum(scores.values())
    decision = max(scores, key=lambda name: scores[name])  # the first one, "as_is", wins a tie
    confidence = scores[decision] / total if total > 0 else 0.0
    return Octave(decision, confidence, levels[decision][0])


def _number(beats_s: np.ndarray, period: float) -> tuple[np.ndarray, np.ndarray]:
    """Integer beat numbers, and the times of the beats that got a number of their own."""
    numbers, kept_s = [0], [float(beats_s[0])]
    for time_s in beats_s[1:]:
        step = round((time_s - kept_s[-1]) / period)
        if step > 0:
            numbers.append(numbers[-1] + step)
            kept_s.append(float(time_s))
    return np.array(numbers), np.array(kept_s)


def _prior(bpm: float) -> float:
    low, high = PLAUSIBLE_BPM
    octaves_off = max(0.0, np.log2(low / bpm), np.log2(bpm / high))
    return float(np.exp(-0.5 * (octaves_off / _OCTAVE_SPREAD) ** 2))


def _level(times_s: np.ndarray, strength: np.ndarray, rate_hz: float) -> float:
    """Mean strength at these times, within two frames: the tracker's grid and the strength's may differ."""
    if not len(times_s):
        return 0.0
    frames = np.clip(np.round(times_s * rate_hz).astype(int), 0, len(strength) - 1)
    neighbours = np.clip(frames[:, None] + np.arange(-2, 3), 0, len(strength) - 1)
    return float(strength[neighbours].max(axis=1).mean())


def _contrast(times_s: np.ndarray, strength: np.ndarray, rate_hz: float) -> float:
    between_s = (times_s[:-1] + times_s[1:]) / 2
    return max(0.0, _level(times_s, strength, rate_hz) - _BETWEEN * _level(between_s, strength, rate_hz))
