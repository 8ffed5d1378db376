"""Mix-FFN: a gated feed-forward with a short convolution, which gives linear attention the locality it lacks."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn


class MixFFN(nn.Module):
    """Expand, look one frame to each side, gate, contract (Sana, arXiv 2410.10629, section 2.2)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.inverted_conv = nn.Sequential(OrderedDict(conv=nn.Conv1d(dim, 2 * hidden, 1), act=nn.SiLU()))
        self.depth_conv = nn.Sequential(
            OrderedDict(conv=nn.Conv1d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden))
        )
        self.point_conv = nn.Sequential(OrderedDict(conv=nn.Conv1d(hidden, dim, 1, bias=False)))

    def forward(self, x: Tensor, frame_mask: Tensor | None) -> Tensor:
        """Frames [B, T, D] to [B, T, D].

        With a mask, boolean [B, T], the convolution reads zeros for padded frames, as it does beyond the end of an
        unpadded item. Without one, it reads whatever padded frames hold.
        """
        x = self.inverted_conv(x.mT)
        if frame_mask is not None:
            x = x * frame_mask[:, None, :]
        x, gate = self.depth_conv(x).chunk(2, 1)
        return self.point_conv(x * F.silu(gate)).mT
