"""RankMe against the paper's formula by singular values, and where it must end up."""

import numpy as np
import pytest

from tamis.embeddings.rankme import rankme


@pytest.mark.parametrize("shape", [(200, 12), (12, 200), (30, 30), (1, 5), (5, 1)])
def test_it_is_the_formula(shape):
    X = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    sigma = np.linalg.svd(X.astype(np.float64), compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    assert rankme(X) == pytest.approx(np.exp(-(p * np.log(p)).sum()), abs=1e-5)


def test_it_counts_the_dimensions_that_are_used():
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.standard_normal((40, 6)))[0]
    X = np.linalg.qr(rng.standard_normal((500, 6)))[0] @ basis.T
    assert rankme(X) == pytest.approx(6, abs=0.01)
    assert rankme(np.repeat(X[:1], 50, axis=0)) == pytest.approx(1, abs=0.01)
    assert rankme(np.zeros((4, 3))) == 1
