import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from tamis.embeddings.grid import UNIT, cosine_scale, shrink, to_grid
from tamis.selectors.kernels import BlockKernel, DenseKernel
from tamis.selectors.selection import as_unit_rows

DIMS = [1, 2, 3, 4, 7, 16, 61, 64, 256, 384, 1024, 4096, 5000]


def rng(seed=0):
    return np.random.default_rng(seed)


def rows_of_all_kinds(d, seed=0):
    """Unit rows: dense, one-hot, constant, of few components, duplicates, negated, and from float16 and float64."""
    r = rng(seed)
    dense = r.normal(size=(12, d))
    one_hot = np.zeros((6, d))
    one_hot[np.arange(6), r.integers(d, size=6)] = r.choice([-3.0, 1.0], size=6)
    constant = np.ones((2, d)) * [[1.0], [-0.1]]
    signs = r.choice([-1.0, 1.0], size=(4, d))  # as long after rounding as rows can be
    few = np.where(r.random((8, d)) < 4 / d, r.normal(size=(8, d)), 0.0)
    few[:, 0] += 0.5
    skewed = r.normal(size=(4, d)) ** 5 + 1e-3
    first = np.vstack([dense, one_hot, constant, signs, few, skewed])
    half, single = as_unit_rows((0.1 * dense[:5]).astype(np.float16)), as_unit_rows(first.astype(np.float32))
    return np.vstack([as_unit_rows(first), single, half, as_unit_rows(first)[::3], -single[:4]])


@pytest.mark.parametrize("d", DIMS)
def test_products_are_exact_for_any_blocks_and_threads(d):
    grid = to_grid(rows_of_all_kinds(d))
    whole = grid.astype(np.int64) @ grid.astype(np.int64).T
    rows = grid.astype(np.float32)
    reversed_columns = rows[:, ::-1]
    for threads in (1, 2):
        with threadpool_limits(limits=threads, user_api="blas"):
            products = [
                rows @ rows.T,
                np.asfortranarray(rows) @ rows.T,
                np.vstack([rows[i : i + 7] @ rows.T for i in range(0, len(rows), 7)]),
                np.hstack([rows @ rows[j : j + 1].T for j in range(len(rows))]),
                reversed_columns @ reversed_columns.T,
                np.einsum("id,jd->ij", rows, rows),
            ]
        for product in products:
            assert product.dtype == np.float32
            np.testing.assert_array_equal(product.astype(np.int64), whole)


@pytest.mark.parametrize("d", [3, 384, 5000])
def test_every_partial_sum_is_exact_in_any_order(d):
    grid = to_grid(rows_of_all_kinds(d)).astype(np.int64)
    for seed in range(3):
        order = rng(seed).permutation(d)
        for other in (grid, np.roll(grid, 1, axis=0)):
            terms = (grid * other)[:, order]
            exact = terms.cumsum(axis=1)
            assert np.abs(exact).max() <= 1 << 24
            np.testing.assert_array_equal(terms.astype(np.float32).cumsum(axis=1, dtype=np.float32), exact)


@pytest.mark.parametrize("d", DIMS)
def test_rows_stay_within_length_one_and_keep_their_direction(d):
    unit = rows_of_all_kinds(d)
    grid = to_grid(unit)
    assert grid.dtype == np.int16
    lengths = np.sqrt((grid.astype(np.int64) ** 2).sum(axis=1))
    assert lengths.max() <= 1 << 12
    assert lengths.min() > (1 << 12) * (1.0 - np.sqrt(d) / 2**12) - 1  # it is not shrunk more than it needs to be
    assert np.abs(grid - unit * np.float64(4096 * shrink(d))).max() <= 0.5 + 1e-3


def test_the_longest_rows_there_can_be():
    # The roundings of all components add up along the row: (2^12 - sqrt(d) / 2) / sqrt(d) is m + 1/2, and m odd.
    for d in (1, 4, 16, 64, 256, 1024):
        grid = to_grid(np.full((1, d), 1 / np.sqrt(d), np.float32))
        assert (grid.astype(np.int64) ** 2).sum() == 1 << 24


def test_shrinking_leaves_room_for_rounding():
    assert shrink(1) == 1 - 1 / 8192
    assert shrink(384) == pytest.approx(1 - np.sqrt(384) / 2 / 4096, rel=1e-15)


@pytest.mark.parametrize("d", DIMS)
def test_a_row_is_at_cosine_one_to_itself_and_to_an_equal_row(d):
    unit = rows_of_all_kinds(d)
    for kernel in (DenseKernel.of(unit).matrix, np.vstack([BlockKernel(unit).row(i) for i in range(len(unit))])):
        np.testing.assert_array_equal(np.diag(kernel), UNIT)
        equal = (unit[:, None, :] == unit[None, :, :]).all(axis=2)
        assert equal.sum() > len(unit)
        assert (kernel[equal] == UNIT).all()
        assert (kernel[(-unit[:, None, :] == unit[None, :, :]).all(axis=2)] == 0).all()
        assert kernel.max() == UNIT


def test_scale_is_the_formula():
    grid = to_grid(rows_of_all_kinds(61))
    long = np.tile(grid, (40, 1))  # more than a block of rows
    expected = np.sqrt(2.0**15) / np.linalg.norm(long.astype(np.float64), axis=1)
    assert cosine_scale(long).dtype == np.float32
    np.testing.assert_allclose(cosine_scale(long), expected, rtol=1e-6)
    np.testing.assert_array_equal(to_grid(np.tile(rows_of_all_kinds(61), (40, 1))), long)


@pytest.mark.parametrize("d", [8, 384, 2000])
def test_cosines_are_close_to_those_of_float64_and_not_biased(d):
    r = rng(d)
    centres = r.normal(size=(12, d))
    unit = as_unit_rows(centres[r.integers(12, size=700)] + 0.7 * r.normal(size=(700, d)))
    exact = unit.astype(np.float64) @ unit.T.astype(np.float64)
    pairs = np.triu(exact > 1e-3, 1)  # below 0 there is nothing to err
    assert pairs.sum() > 100_000
    error = DenseKernel.of(unit).matrix[pairs] / UNIT - exact[pairs]
    assert np.abs(error).max() < 6e-4
    assert error.std() < 1.3e-4
    # Without a bias the mean of so many errors, 700 rows' worth of independent ones, is far below their spread.
    assert abs(error.mean()) < 5 * error.std() / np.sqrt(700)


def test_the_input_is_not_modified():
    unit = rows_of_all_kinds(16)
    unit.setflags(write=False)
    before = unit.copy()
    grid = to_grid(unit)
    grid.setflags(write=False)
    cosine_scale(grid)
    np.testing.assert_array_equal(unit, before)
