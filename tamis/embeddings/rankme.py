"""RankMe: how many dimensions a set of embeddings really uses (Garrido et al., 2023, arXiv 2210.02885)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_EPSILON = 1e-7  # the paper's


def rankme(X: npt.ArrayLike) -> float:
    """The effective rank of embeddings: exp of the entropy of the normalised singular values.

    p_k = sigma_k / sum sigma + 1e-7, RankMe = exp(-sum p_k log p_k) (section 3.1, equation 1). The singular values are
    the roots of the eigenvalues of the smaller of X^T X and X X^T, in float64.

    Args:
        X: Float [n, d], n >= 1, finite; neither centred nor normalised here. It grows with n where n is not far above
            d, so that sets of different sizes are compared with random ones of those sizes.

    Returns:
        From 1 (all rows on a line through 0; also where all are 0) to min(n, d).

    >>> round(rankme(np.eye(8)), 3), round(rankme(np.ones((8, 8))), 3)
    (8.0, 1.0)
    """
    rows = np.asarray(X, np.float64)
    gram = rows.T @ rows if rows.shape[0] > rows.shape[1] else rows @ rows.T
    sigma = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))
    if not sigma.any():
        return 1.0
    p = sigma / sigma.sum() + _EPSILON
    return float(min(max(np.exp(-(p * np.log(p)).sum()), 1.0), len(p)))
