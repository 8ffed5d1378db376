"""How well a score, such as the cosine of two embeddings, separates pairs of one singer from pairs of two."""

import numpy as np
from scipy.stats import rankdata


def equal_error_rate(scores: np.ndarray, same: np.ndarray) -> float:
    """The error rate at the threshold where false rejections and false acceptances are equally frequent.

    Both rates are interpolated linearly between thresholds.

    Args:
        scores: [N], of pairs; higher is more alike.
        same: bool [N], whether a pair is the same singer; both values must occur.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=np.inf) != 0)  # ties are accepted together
    accepted = np.cumsum(same[order])[last], np.cumsum(~same[order])[last]
    false_rejects = 1 - np.concatenate([[0.0], accepted[0] / same.sum()])
    false_accepts = np.concatenate([[0.0], accepted[1] / (~same).sum()])
    after = int(np.argmax(false_accepts >= false_rejects))
    gap_before, gap_after = (false_rejects - false_accepts)[[after - 1, after]]
    share = gap_before / (gap_before - gap_after)
    return float(false_accepts[after - 1] + share * (false_accepts[after] - false_accepts[after - 1]))


def area_under_curve(scores: np.ndarray, same: np.ndarray) -> float:
    """The probability that a same pair scores higher than a different one, ties counting half (Mann and Whitney 1947).

    Args:
        scores: of pairs [N].
        same: bool [N], whether a pair is the same singer; both values must occur.
    """
    count, others = int(same.sum()), int((~same).sum())
    return float((rankdata(scores)[same].sum() - count * (count + 1) / 2) / (count * others))
