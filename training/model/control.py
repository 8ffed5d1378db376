"""The control input of ControlNet-style training (Zhang et al., arXiv 2302.05543)."""

from torch import Tensor

_EPS = 1e-12


def add_control(x: Tensor, control: Tensor, scale: float, frame_mask: Tensor | None) -> Tensor:
    """Hidden states [B, T, D] plus `scale` times `control` [B, T, D], normalised to their mean and deviation per item.

    Mean and deviation are taken over all channels and the frames of `frame_mask`, boolean [B, T]; None is all frames.
    """
    mean, deviation = _moments(x, frame_mask)
    control_mean, control_deviation = _moments(control, frame_mask)
    return x + ((control - control_mean) / control_deviation * deviation + mean) * scale


def _moments(x: Tensor, frame_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and unbiased deviation over frames and channels, each [B, 1, 1]."""
    if frame_mask is None:
        return x.mean((1, 2), keepdim=True), x.std((1, 2), keepdim=True) + _EPS
    inside = frame_mask[..., None]
    count = (frame_mask.sum(-1) * x.shape[-1]).clamp(min=2)[:, None, None]
    mean = (x.float() * inside).sum((1, 2), keepdim=True) / count
    variance = ((x.float() - mean) * inside).square().sum((1, 2), keepdim=True) / (count - 1)
    return mean.to(x.dtype), (variance.sqrt() + _EPS).to(x.dtype)
