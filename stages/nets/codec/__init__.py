"""The music codec of ACE-Step v1 (technical report, arXiv 2506.00045): 48 kHz stereo to latents and back."""

from stages.nets.codec.codec import MusicDCAE
from stages.nets.codec.griffin_lim import GriffinLim
from stages.nets.codec.vocoder import ADaMoSHiFiGANV1

__all__ = ["ADaMoSHiFiGANV1", "GriffinLim", "MusicDCAE"]
