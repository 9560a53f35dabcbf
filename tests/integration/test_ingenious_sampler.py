"""The draws of INGENIOUS again, from a manifest."""

import numpy as np
import pytest

import tamis
from tamis.errors import DataError, RecipeError

EMBED = {"kind": "embed", "encoder": "lsa", "dim": 8}
INGENIOUS = {"kind": "select", "method": "ingenious", "budget": 60, "partition_rows": 80}


@pytest.fixture(scope="module")
def manifest(small_dataset, tmp_path_factory):
    def make(*stages):
        dataset = {"path": str(small_dataset), "id": "id", "text": "text", "label": "label"}
        out = tmp_path_factory.mktemp("run")
        tamis.run({"name": "t", "seed": 3, "dataset": dataset, "stages": list(stages)}, out, executor="sync")
        return tamis.open_manifest(out)

    return make


@pytest.fixture(scope="module")
def drawn(manifest):
    return manifest(EMBED, INGENIOUS)


def draws(sampler, epochs):
    found = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        found.append(sorted(sampler))
    return found


def test_the_first_draw_is_the_manifests_and_the_others_have_its_shares(drawn):
    partition = drawn.audit["partition"].to_numpy()
    own = drawn.select["row"].to_numpy()
    assert len(np.unique(partition)) > 4
    found = draws(tamis.IngeniousSampler(drawn, seed=1), 5)
    assert found[0] == sorted(own.tolist())
    for rows in found:
        assert len(set(rows)) == len(rows) == 60
        np.testing.assert_array_equal(np.bincount(partition[rows]), np.bincount(partition[own]))
    assert len({tuple(rows) for rows in found}) == 5
    assert draws(tamis.IngeniousSampler(drawn, seed=1), 5) == found
    assert draws(tamis.IngeniousSampler(drawn, seed=2), 5)[1:] != found[1:]


def test_a_draw_serves_several_epochs_of_any_size(drawn):
    found = draws(tamis.IngeniousSampler(drawn, seed=1, epochs_per_draw=2, epoch_size=150), 6)
    assert all(len(rows) == 150 for rows in found)
    sets = [set(rows) for rows in found]
    assert sets[0] == sets[1] != sets[2] == sets[3] != sets[4]
    assert len(sets[0]) == 60


def test_every_candidate_can_be_drawn_and_a_low_temperature_prefers_large_gains(drawn):
    warm = draws(tamis.IngeniousSampler(drawn, seed=1, temperature=100.0), 150)
    assert set().union(*warm) == set(range(700))
    cold = draws(tamis.IngeniousSampler(drawn, seed=1, temperature=1e-3), 9)[1:]
    overlap = np.mean([len(set(a) & set(b)) for a, b in zip(cold[1:], cold[:-1], strict=True)])
    assert overlap > 2 * np.mean([len(set(a) & set(b)) for a, b in zip(warm[2:9], warm[1:8], strict=True)])


def test_rows_that_other_stages_drop_are_never_drawn(manifest):
    found = manifest({"kind": "dedup", "eps": 0.0}, EMBED, {**INGENIOUS, "per": "label"})
    gone = np.flatnonzero(found.audit["partition"].is_null().to_numpy(zero_copy_only=False))
    assert len(gone)
    assert not set().union(*draws(tamis.IngeniousSampler(found, temperature=100.0), 40)) & set(gone.tolist())


def test_what_cannot_be_drawn_again_is_refused(manifest, drawn):
    with pytest.raises(DataError, match="not drawn by INGENIOUS"):
        tamis.IngeniousSampler(manifest({"kind": "select", "method": "random", "budget": 10}))
    with pytest.raises(RecipeError, match="epochs_per_draw"):
        tamis.IngeniousSampler(drawn, epochs_per_draw=0)
