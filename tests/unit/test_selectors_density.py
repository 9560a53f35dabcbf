import numpy as np
import pytest

from tamis.errors import DataError, RecipeError
from tamis.selectors import density
from tamis.selectors.density import concept_complexity, density_prune, density_quotas, inter_distance


def rng(seed=0):
    return np.random.default_rng(seed)


def bisected(target, lower, upper, total):
    """The projection by its dual: clip(target + shift), the shift found by halving an interval."""
    low, high = -1e6, 1e6
    for _ in range(200):
        shift = (low + high) / 2
        if np.clip(target + shift, lower, upper).sum() < total:
            low = shift
        else:
            high = shift
    return np.clip(target + (low + high) / 2, lower, upper)


def test_complexity_is_the_product():
    np.testing.assert_array_equal(concept_complexity([0.5, 0.2, -1e-9], [0.4, 1.0, 1.0]), [0.2, 0.2, 0.0])
    with pytest.raises(DataError):
        concept_complexity([0.5], [0.4, 1.0])


@pytest.mark.parametrize(("k", "neighbours"), [(2, 20), (5, 1), (30, 4), (30, 29), (30, 100)])
@pytest.mark.parametrize("side", [1, 7, 512])
def test_inter_distance_is_the_formula(monkeypatch, k, neighbours, side):
    monkeypatch.setattr(density, "_SIDE", side)
    centroids = rng(k).normal(size=(k, 6))
    unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    expected = []
    for j in range(k):
        others = sorted(1 - unit[j] @ unit[m] for m in range(k) if m != j)
        expected.append(np.mean(others[:neighbours]))
    np.testing.assert_allclose(inter_distance(centroids, neighbours), expected, atol=1e-6)


def test_inter_distance_does_not_depend_on_the_tiles(monkeypatch):
    # Groups of near-equal centroids: float32 orders them by its rounding, which is another one in each tile.
    centroids = rng().normal(size=(40, 33)).repeat(15, axis=0) + rng(1).normal(scale=1e-4, size=(600, 33))
    expected = inter_distance(centroids, 20)
    for side in (1, 33, 100, 599):
        monkeypatch.setattr(density, "_SIDE", side)
        np.testing.assert_array_equal(inter_distance(centroids, 20), expected)


def test_inter_distance_of_more_than_one_tile():
    centroids = rng(2).normal(size=(1500, 17))
    unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    distances = np.sort(1 - unit @ unit.T, axis=1)[:, 1:21]
    np.testing.assert_allclose(inter_distance(centroids), distances.mean(axis=1), atol=1e-6)


def test_inter_distance_edges():
    assert inter_distance(np.array([[0.0, 2.0]])).tolist() == [1.0]
    np.testing.assert_allclose(inter_distance(np.ones((3, 2))), 0.0, atol=1e-6)
    np.testing.assert_allclose(inter_distance(np.array([[1.0, 0.0], [-1.0, 0.0]])), 2.0)
    for neighbours in (0, -1, True, 2.0):
        with pytest.raises(RecipeError, match="neighbours"):
            inter_distance(np.eye(3), neighbours)


def problem(seed):
    generator = rng(seed)
    k = int(generator.integers(1, 40))
    sizes = generator.integers(0, 60, size=k)
    sizes[0] += 1
    complexity = generator.random(k)
    used = np.count_nonzero(sizes)
    keep = int(generator.integers(used, sizes.sum() + 1))
    return (
        complexity,
        sizes,
        keep,
        float(10 ** generator.uniform(-2, 1)),
        float(generator.choice([0.0, 0.3, 1.0])),
    )


@pytest.mark.parametrize("seed", range(60))
def test_quotas_are_the_rounded_projection(seed):
    complexity, sizes, keep, temperature, balance = problem(seed)
    used = sizes > 0
    lower = np.minimum(sizes, max(1, int(balance * keep / used.sum())))
    quotas = density_quotas(complexity, sizes, keep, temperature, balance)
    assert quotas.sum() == keep
    assert (quotas >= lower).all()
    assert (quotas <= sizes).all()
    e = np.where(used, np.exp((complexity - complexity[used].max()) / temperature), 0.0)
    x = bisected(keep * e / e.sum(), lower, sizes, keep)
    assert (np.abs(quotas - x) < 1 + 1e-6).all()
    # Largest remainder: whoever was rounded up had at least the fraction of whoever was rounded down.
    fraction = x - np.floor(x + 1e-9)
    up, down = quotas > np.floor(x + 1e-9), (quotas <= np.floor(x + 1e-9)) & (quotas < sizes)
    if up.any() and down.any():
        assert fraction[up].min() >= fraction[down].max() - 1e-6


@pytest.mark.parametrize("seed", range(40))
def test_the_projection_satisfies_its_optimality_conditions(seed):
    generator = rng(seed)
    k = int(generator.integers(1, 30))
    lower = generator.integers(0, 5, size=k)
    upper = lower + generator.integers(0, 20, size=k)
    total = int(generator.integers(lower.sum(), upper.sum() + 1))
    target = generator.normal(scale=15, size=k)
    x = density._project(target, lower, upper, total)
    assert x.sum() == pytest.approx(total, abs=1e-9)
    assert (x >= lower).all()
    assert (x <= upper).all()
    # With multiplier s of the sum: x - target = s inside, >= s at the lower bound, <= s at the upper one.
    slack = x - target
    inside = (x > lower) & (x < upper)
    at_lower, at_upper = (x == lower) & (x < upper), (x == upper) & (x > lower)
    highest = min([*slack[inside], *slack[at_lower]], default=np.inf)
    lowest = max([*slack[inside], *slack[at_upper]], default=-np.inf)
    assert lowest <= highest + 1e-9
    np.testing.assert_allclose(x, bisected(target, lower, upper, total), atol=1e-7)


def test_quotas_by_hand():
    assert density_quotas(np.zeros(3), np.array([10, 10, 10]), 9).tolist() == [3, 3, 3]
    assert density_quotas(np.zeros(3), np.array([10, 10, 10]), 10).tolist() == [4, 3, 3]
    assert density_quotas(np.zeros(3), np.array([1, 10, 10]), 9).tolist() == [1, 4, 4]
    assert density_quotas(np.array([9.0, 0.0]), np.array([5, 5]), 6).tolist() == [5, 1]
    assert density_quotas(np.array([9.0, 0.0]), np.array([50, 50]), 20).tolist() == [19, 1]
    assert density_quotas(np.array([9.0, 0.0]), np.array([50, 50]), 20, balance=0.5).tolist() == [15, 5]


def test_quotas_with_empty_clusters():
    quotas = density_quotas(np.array([0.5, np.nan, 0.5]), np.array([4, 0, 4]), 6)
    assert quotas.tolist() == [3, 0, 3]
    assert density_quotas(np.empty(0), np.empty(0, np.int64), 0).tolist() == []


def test_higher_complexity_keeps_more():
    quotas = density_quotas(np.array([0.1, 0.2, 0.3]), np.full(3, 1000), 300, temperature=0.1)
    assert quotas[0] < quotas[1] < quotas[2]


def test_quotas_of_many_clusters_sum_exactly():
    generator = rng(1)
    sizes = generator.integers(1, 2000, size=100_000)
    quotas = density_quotas(generator.random(100_000), sizes, int(sizes.sum()) // 3, 0.2)
    assert quotas.sum() == sizes.sum() // 3
    assert ((quotas >= 1) & (quotas <= sizes)).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ([0.1, 0.1], [5, 5], 1),
            RecipeError,
            r"cannot keep 1 samples: 2 clusters must keep 1 or more, 2 in all",
        ),
        (([0.1, 0.1], [5, 5], 11), RecipeError, r"cannot keep 11 of 10 samples in 2 clusters"),
        (([0.1], [5], 1, 0.0), RecipeError, "temperature"),
        (([0.1], [5], 1, np.nan), RecipeError, "temperature"),
        (([0.1], [5], 1, 0.1, 1.5), RecipeError, "balance"),
        (([np.nan], [5], 1), DataError, "cluster 0"),
        (([0.1, 0.1], [5], 1), DataError, "alike"),
        (([0.1], [-5], 1), DataError, "negative"),
    ],
)
def test_quota_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        density_quotas(*map(np.asarray, arguments[:2]), *arguments[2:])


LABELS = np.array([0, 1, 0, 1, 0, 2])
DISTANCES = np.array([0.3, 0.1, 0.5, 0.1, 0.4, 0.2], np.float32)


def test_prune_keeps_the_farthest_or_the_nearest_with_ties_to_the_lowest_index():
    quotas = np.array([2, 1, 1])
    assert density_prune(LABELS, DISTANCES, quotas, "hard", rng()).tolist() == [1, 2, 4, 5]
    assert density_prune(LABELS, DISTANCES, quotas, "easy", rng()).tolist() == [0, 1, 4, 5]


def test_prune_at_random_is_uniform_and_seeded():
    quotas = np.array([1, 1, 0])
    np.testing.assert_array_equal(
        density_prune(LABELS, DISTANCES, quotas, "random", rng(4)),
        density_prune(LABELS, DISTANCES, quotas, "random", rng(4)),
    )
    generator = rng(5)
    kept = np.concatenate([density_prune(LABELS, DISTANCES, quotas, "random", generator) for _ in range(3000)])
    counts = np.bincount(kept, minlength=6)
    np.testing.assert_allclose(counts[[0, 2, 4]], 1000, atol=120)
    np.testing.assert_allclose(counts[[1, 3]], 1500, atol=130)
    assert counts[5] == 0


def test_prune_edges():
    empty = np.empty(0, np.int64)
    assert density_prune(empty, np.empty(0), np.zeros(2, int), "hard", rng()).tolist() == []
    kept = density_prune(LABELS, DISTANCES, np.array([3, 2, 1, 0]), "hard", rng())
    assert kept.tolist() == [0, 1, 2, 3, 4, 5]
    assert kept.dtype == np.int64


@pytest.mark.parametrize(
    ("labels", "distances", "quotas", "which", "error"),
    [
        (LABELS, DISTANCES, [4, 0, 0], "hard", RecipeError),
        (LABELS, DISTANCES, [-1, 0, 0], "hard", RecipeError),
        (LABELS, DISTANCES, [1, 1, 1], "far", RecipeError),
        (LABELS, DISTANCES, [1, 1], "hard", DataError),
        (LABELS - 1, DISTANCES, [1, 1, 1], "hard", DataError),
        (LABELS, DISTANCES[:-1], [1, 1, 1], "hard", DataError),
        (LABELS.astype(float), DISTANCES, [1, 1, 1], "hard", DataError),
        (LABELS, np.full(6, np.nan), [1, 1, 1], "hard", DataError),
    ],
)
def test_prune_refusals(labels, distances, quotas, which, error):
    with pytest.raises(error):
        density_prune(labels, distances, np.array(quotas), which, rng())
