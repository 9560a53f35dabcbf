import numpy as np
import pytest
import torch

from tamis.embeddings import on_device
from tamis.embeddings.grid import UNIT, cosine_scale, to_grid
from tamis.selectors import _greedy, kernels
from tamis.selectors.kernels import BlockKernel, DenseKernel
from tamis.selectors.selection import as_unit_rows
from tamis.selectors.torch_kernel import TorchKernel


def unit_rows(n, d=5, seed=0):
    """Rows of which many are alike, some copies and some opposite."""
    r = np.random.default_rng(seed)
    X = r.normal(size=(4, d))[r.integers(4, size=n)] + 0.6 * r.normal(size=(n, d))
    X[n // 2 :: 5] = X[0]
    X[n // 3 :: 7] = -X[0]
    return as_unit_rows(X)


def expected_kernel(unit):
    """The kernel by int64 products and the formula in float32."""
    grid = to_grid(unit).astype(np.int64)
    scale = cosine_scale(grid.astype(np.int16))
    products = (grid @ grid.T).astype(np.float32)
    cosines = products * (scale[:, None] * scale[None, :]) + np.float32(0.5)
    return np.clip(cosines, np.float32(0), np.float32(UNIT)).astype(np.uint16)


def clipped(K, rows, low, high):
    """sum_u clip(K[rows_u, j], low_u, high_u) - low_u of each column."""
    part, low, high = K[rows].astype(np.int64), low.astype(np.int64)[:, None], high.astype(np.int64)[:, None]
    return (np.clip(part, low, np.maximum(low, high)) - low).sum(axis=0)


def small_tiles(monkeypatch, tile):
    """Tiles so small that rows and columns are many times one, and the last is partly filled."""
    monkeypatch.setattr(kernels, "_TILE", tile)
    monkeypatch.setattr(kernels, "_COLUMNS", 3 * tile)
    monkeypatch.setattr(kernels, "_LIST_ROWS", max(1, tile // 2))
    monkeypatch.setattr(on_device, "_MOST_ELEMENTS", 150 * tile)


def all_kernels(unit):
    yield "given", DenseKernel(expected_kernel(unit))
    for threads in (1, 2, 3):
        yield f"dense {threads}", DenseKernel.of(unit, threads)
        yield f"block {threads}", BlockKernel(unit, threads)
    yield "torch", TorchKernel(unit, "cpu")


@pytest.mark.parametrize(("n", "tile"), [(1, 4), (2, 4), (37, 4), (40, 8), (130, 64), (131, 1024), (150, 37)])
def test_every_kernel_gives_the_same_numbers(monkeypatch, n, tile):
    small_tiles(monkeypatch, tile)
    unit = unit_rows(n, seed=n)
    K = expected_kernel(unit)
    r = np.random.default_rng(n)
    for name, kernel in all_kernels(unit):
        assert kernel.n == n
        for i in {0, n // 2, n - 1}:
            row = kernel.row(i)
            assert row.dtype == np.uint16, name
            np.testing.assert_array_equal(row, K[i], name)
        if len(kernel.matrix):
            np.testing.assert_array_equal(kernel.matrix, K, name)
        for _ in range(2):
            low, high = np.sort(r.integers(0, UNIT + 1, size=(2, n)), axis=0).astype(np.uint16)
            low[::3] = 0
            high[::4] = UNIT
            high[1::5] = low[1::5]
            gains = kernel.gains(low, high)
            assert gains.dtype == np.int64, name
            np.testing.assert_array_equal(gains, clipped(K, np.arange(n), low, high), name)
            # In `take` few rows go against all columns, and more than half of them by symmetry.
            for count in sorted({1, n // 4, n // 2, n // 2 + 1, n} - {0}):
                rows = np.sort(r.choice(n, count, replace=False))
                before = r.integers(0, 1 << 40, size=n)
                gain = before.copy()
                kernel.take(rows, low[rows], high[rows], gain)
                np.testing.assert_array_equal(before - gain, clipped(K, rows, low[rows], high[rows]), name)
                assert kernel.count(rows, low[rows]) == (K[rows] > low[rows, None]).sum(), name
            # A row whose floor is at its ceiling, or above it, has nothing to gain and lists nothing.
            other = r.permutation(high)
            assert_lists(kernel.lists(low, other), K, low, other, name)
            assert_lists(kernel.lists(low, np.full(n, UNIT, np.uint16)), K, low, np.full(n, UNIT), name)
        none = kernel.lists(np.full(n, UNIT, np.uint16), np.full(n, UNIT, np.uint16))
        assert none[0].tolist() == [0] * (n + 1)
        gain = np.arange(n)
        kernel.take(np.empty(0, np.int64), np.empty(0, np.uint16), np.empty(0, np.uint16), gain)
        np.testing.assert_array_equal(gain, np.arange(n))


def assert_lists(lists, K, low, high, name):
    start, column, value = lists
    assert (start.dtype, column.dtype, value.dtype) == (np.int64, np.int32, np.uint16), name
    above = (low[:, None] < K) & (low < high)[:, None]
    np.testing.assert_array_equal(np.diff(start), above.sum(axis=1), name)
    np.testing.assert_array_equal(column, np.nonzero(above)[1], name)
    np.testing.assert_array_equal(value, np.minimum(K, high[:, None])[above], name)


def test_a_kernel_of_several_tiles_of_the_usual_size():
    unit = unit_rows(2100, d=3)
    K = expected_kernel(unit)
    dense, block = DenseKernel.of(unit), BlockKernel(unit, 2)
    np.testing.assert_array_equal(dense.matrix, K)
    low, high = np.zeros(2100, np.uint16), np.full(2100, UNIT, np.uint16)
    gains = K.sum(axis=0, dtype=np.int64)
    for kernel in (dense, block):
        np.testing.assert_array_equal(kernel.gains(low, high), gains)
    for count in (100, 1500):
        gain = gains.copy()
        block.take(np.arange(count), low[:count], high[:count], gain)
        np.testing.assert_array_equal(gain, K[count:].sum(axis=0, dtype=np.int64))


def test_limits_are_not_modified_and_may_be_read_only():
    unit = unit_rows(60)
    low, high = np.full(60, 7, np.uint16), np.full(60, UNIT - 7, np.uint16)
    for array in (unit, low, high):
        array.setflags(write=False)
    expected = clipped(expected_kernel(unit), np.arange(60), low, high)
    for name, kernel in all_kernels(unit):
        np.testing.assert_array_equal(kernel.gains(low, high), expected, name)
        kernel.lists(low, high)
    assert (low == 7).all()
    assert (high == UNIT - 7).all()


@pytest.fixture
def tf32():
    """Sets the flags by which torch may take float32 products in TF32, and clears them again."""
    matmul = torch.backends.cuda.matmul

    def allow(flag):
        if flag == "fp32_precision":
            matmul.fp32_precision = "tf32"
        elif flag is not None:
            matmul.allow_tf32 = flag

    new = hasattr(matmul, "fp32_precision")
    yield allow
    matmul.allow_tf32 = False
    if new:
        matmul.fp32_precision = "none"


@pytest.mark.parametrize(
    ("flag", "dtype"),
    [
        (None, torch.float32),
        (False, torch.float32),
        (True, torch.float64),
        # The newer setting makes torch refuse to read the older one.
        pytest.param(
            "fp32_precision",
            torch.float64,
            marks=pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="older torch"),
        ),
    ],
)
def test_where_torch_may_use_tf32_products_are_taken_in_float64(monkeypatch, tf32, flag, dtype):
    unit = unit_rows(80, d=300)
    asked = []
    multiply = torch.Tensor.__matmul__

    def watched(a, b):
        asked.append(a.dtype)
        return multiply(a, b)

    tf32(flag)
    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    kernel = TorchKernel(unit, "cpu")
    np.testing.assert_array_equal(np.vstack([kernel.row(i) for i in range(80)]), expected_kernel(unit))
    assert set(asked) == {dtype}


@pytest.mark.parametrize("rows", [140_000, 65_536, 65_537, 5])
def test_accumulators_do_not_overflow(rows):
    # More rows are raised at once, each by 1, than a 32-bit accumulator holds: it must be emptied on the way.
    block = np.full((rows, 3), UNIT, np.uint16)
    low, high = np.zeros(rows, np.uint16), np.full(rows, UNIT, np.uint16)
    total = np.array([5, 0, -5])
    _greedy.add_clipped(block, np.arange(rows), low, high, 1, total)
    assert total.tolist() == [rows * UNIT + 5, rows * UNIT, rows * UNIT - 5]
    _greedy.add_clipped(block, np.arange(rows), low, high, -1, total)
    assert total.tolist() == [5, 0, -5]


def test_transposed_sums_do_not_overflow_at_their_largest_width():
    block = np.full((2, 65_535), UNIT, np.uint16)
    total = np.zeros(2, np.int64)
    _greedy.add_clipped_transposed(block, np.zeros(65_535, np.uint16), np.full(65_535, UNIT, np.uint16), total)
    assert total.tolist() == [65_535 * UNIT] * 2


def test_long_rows_are_counted():
    block = np.full((2, 140_000), 9, np.uint16)
    assert _greedy.count_above(block, np.array([8, 9], np.uint16)) == 140_000


def test_wide_blocks_are_added_in_chunks():
    r = np.random.default_rng(1)
    width = 2 * 8192 + 11
    block = r.integers(0, UNIT + 1, size=(9, width)).astype(np.uint16)
    rows = np.array([8, 1, 1, 4, 0, 7])
    low, high = np.sort(r.integers(0, UNIT + 1, size=(2, 6)), axis=0).astype(np.uint16)
    total = np.zeros(width, np.int64)
    _greedy.add_clipped(block, rows, low, high, 1, total)
    np.testing.assert_array_equal(total, clipped(block, rows, low, high))


@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (65, 130), (3, 200)])
def test_tiles_are_written_with_their_transpose(shape):
    a, b = shape
    unit = unit_rows(a + b)
    K = expected_kernel(unit)
    grid = to_grid(unit).astype(np.float32)
    kernel = np.full((a + b, a + b), 7, np.uint16)
    _greedy.quantise_symmetric(grid[:a] @ grid[a:].T, cosine_scale(to_grid(unit)), kernel, 0, a)
    np.testing.assert_array_equal(kernel[:a, a:], K[:a, a:])
    np.testing.assert_array_equal(kernel[a:, :a], K[a:, :a])
    assert (kernel[:a, :a] == 7).all()
    assert (kernel[a:, a:] == 7).all()


def test_lists_by_column_are_lists_by_row_transposed():
    r = np.random.default_rng(2)
    dense = np.where(r.random((30, 17)) < 0.3, r.integers(1, 100, size=(30, 17)), 0).astype(np.uint16)
    dense[:, 4] = 0
    row, column = np.nonzero(dense)
    start = np.searchsorted(row, np.arange(31))
    begin, rows, values = _greedy.transpose_lists(start, column.astype(np.int32), dense[row, column], 17)
    for j in range(17):
        mine = slice(begin[j], begin[j + 1])
        np.testing.assert_array_equal(rows[mine], np.flatnonzero(dense[:, j]))
        np.testing.assert_array_equal(values[mine], dense[rows[mine], j])
