"""Band-limited resampling by a windowed sinc, differentiable and on the tensor's own device.

Julius O. Smith, "Digital Audio Resampling Home Page" (2002-2020), with the Hann window, six zero crossings and roll-off
of 0.99 that the released codec was trained with. The polyphase filter bank is one strided convolution.
"""

from functools import lru_cache
from math import ceil, gcd

import torch
import torch.nn.functional as F
from torch import Tensor

_CROSSINGS = 6
_ROLLOFF = 0.99
_MOST_COEFFICIENTS = 2**24  # 64 MiB


@lru_cache(maxsize=8)
def _filters(source: int, target: int) -> tuple[Tensor, int]:
    """One filter per output phase, float32 [target, 1, taps], and the number of samples that it looks back."""
    cutoff = min(source, target) * _ROLLOFF
    reach = ceil(_CROSSINGS * source / cutoff)
    taps = torch.arange(-reach, reach + source, dtype=torch.float64) / source
    phases = torch.arange(target, dtype=torch.float64) / target
    time = ((taps - phases[:, None]) * cutoff).clamp(-_CROSSINGS, _CROSSINGS)
    window = torch.cos(time * torch.pi / (2 * _CROSSINGS)).square()
    return (torch.sinc(time) * window * (cutoff / source)).float()[:, None], reach


def resample(waveform: Tensor, source_hz: int, target_hz: int) -> Tensor:
    """Waveform [..., samples] at `source_hz` to float32 [..., ceil(samples * target_hz / source_hz)].

    Raises:
        ValueError: the rates have so small a common divisor that the filter bank, one filter per phase, is too large.
    """
    waveform = waveform.float()
    if source_hz == target_hz:
        return waveform
    divisor = gcd(source_hz, target_hz)
    source, target = source_hz // divisor, target_hz // divisor
    if source * target > _MOST_COEFFICIENTS:
        raise ValueError(f"{source_hz} Hz to {target_hz} Hz: their ratio is too odd, resample to a common rate first")
    filters, reach = _filters(source, target)
    samples = waveform.shape[-1]
    padded = F.pad(waveform.reshape(-1, 1, samples), (reach, reach + source))
    phases = F.conv1d(padded, filters.to(waveform.device), stride=source)
    length = -(-samples * target // source)
    return phases.transpose(1, 2).reshape(*waveform.shape[:-1], -1)[..., :length]
