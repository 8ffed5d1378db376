"""Sampling from ACE-Step models: text2music, retake, repaint, extend, edit and audio2audio."""

from training.sampling.errors import SamplingError
from training.sampling.job import Step
from training.sampling.options import SamplingOptions
from training.sampling.sampler import Clip, Sampler

__all__ = ["Clip", "Sampler", "SamplingError", "SamplingOptions", "Step"]
