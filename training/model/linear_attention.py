"""Linear attention over the frames in plain PyTorch, the reference for the Triton kernel."""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.model.rotary import Rotary, rotate

EPS = 1e-15


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """ReLU attention without softmax (Katharopoulos et al., arXiv 2006.16236; Sana, arXiv 2410.10629, section 2.2).

    All [B, heads, T, d]; returns [B, heads, T, d] in the dtype of `query`. Every sum is accumulated in float32, under
    autocast too. The keys meet the values in a state [d, d + 1] whose last column is the normaliser, so time is
    O(T d^2) and memory beyond the inputs O(T d). A key of 0 hides a frame; a query of 0 gives 0.
    """
    with torch.autocast(query.device.type, enabled=False):
        q, k, v = F.relu(query).float(), F.relu(key).float(), value.float()
        state = k.mT @ F.pad(v, (0, 1), value=1.0)
        weighted, total = (q @ state).split([v.shape[-1], 1], -1)
        return (weighted / (total + EPS)).to(query.dtype)


def attend_in_torch(query: Tensor, key: Tensor, value: Tensor, rotary: Rotary, frame_mask: Tensor | None) -> Tensor:
    """Linear attention with rotary embedding of queries and keys.

    Args:
        query: [B, T, heads, d], before rotary embedding.
        key: as `query`.
        value: as `query`.
        rotary: of the T frames, the same for all items.
        frame_mask: boolean [B, T]; padded frames neither attend nor are attended to. None for no padding.

    Returns:
        [B, T, heads, d], 0 on padded frames.
    """
    query, key = (rotate(x.transpose(1, 2), rotary) for x in (query, key))
    if frame_mask is not None:
        inside = frame_mask[:, None, :, None]
        query, key = query * inside, key * inside
    return linear_attention(query, key, value.transpose(1, 2)).transpose(1, 2)
