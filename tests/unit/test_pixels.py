"""The pixels encoder: principal components from exact sums, in any pieces; nothing is a zero vector."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from tamis.embeddings.encoders import MAX_VALUES, Pixels, as_unit, lonely_vector
from tamis.errors import DataError


def images(n, channels=1, side=6, seed=0):
    """A few patterns in varying strength, and noise."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 60, (5, channels, side, side))
    made = np.einsum("nk,kchw->nchw", rng.random((n, 5)), patterns) + rng.integers(0, 4, (n, channels, side, side))
    return made.astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("n", "dim"), [(300, 8), (300, 36), (20, 10)])
def test_it_is_pca(n, dim, channels):
    pixels = images(n, channels)
    flat = pixels.reshape(n, -1).astype(np.float64)
    model = Pixels.fit([pixels], dim)
    reference = PCA(dim, svd_solver="full").fit(flat)
    assert model.shape == (channels, 6, 6)
    assert np.allclose(model.mean, reference.mean_, rtol=1e-14)
    assert model.components.shape == (36 * channels, dim)
    assert (model.components.dtype, model.mean.dtype) == (np.float32, np.float64)
    # Components are defined up to their sign.
    assert np.allclose(np.abs(model.components.T), np.abs(reference.components_), atol=2e-5)
    assert np.allclose(np.abs(model.encode(pixels)), np.abs(reference.transform(flat)), atol=2e-2)


def test_signs_are_fixed():
    components = Pixels.fit([images(100)], 12).components
    assert (components[np.abs(components).argmax(axis=0), np.arange(12)] > 0).all()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 120), max_size=5), st.integers(0, 3))
def test_pieces_and_order_change_no_bit(cuts, seed):
    pixels = images(120, 3, 4, seed)
    whole = Pixels.fit([pixels], 10)
    pieces = Pixels.fit(np.split(np.random.default_rng(seed).permutation(pixels), sorted(cuts)), 10)
    assert np.array_equal(whole.mean, pieces.mean)
    assert np.array_equal(whole.components, pieces.components)


def test_many_images_are_encoded_in_pieces():
    pixels = images(2500)
    model = Pixels.fit([pixels], 5)
    assert model.encode(pixels).shape == (2500, 5)
    assert np.allclose(model.encode(pixels)[2000:2010], model.encode(pixels[2000:2010]), atol=1e-3)
    assert model.encode(pixels[:0]).shape == (0, 5)


def test_fewer_dimensions_where_images_do_not_span_them():
    assert Pixels.fit([images(4)], 30).components.shape == (36, 3)
    assert Pixels.fit([images(50, side=2)], 30).components.shape == (4, 4)
    black, white = np.zeros((1, 1, 3, 3), np.uint8), np.full((1, 1, 3, 3), 255, np.uint8)
    model = Pixels.fit([black, white], 9)
    assert np.allclose(model.components, 1 / 3)
    assert np.array_equal(np.sign(model.encode(np.concatenate([black, white]))), [[-1], [1]])


@pytest.mark.parametrize("value", [0, 7, 255])
@pytest.mark.parametrize("n", [1, 3, 49])
def test_images_that_are_all_one(value, n):
    """Their mean is exact, so that they are nothing but it: no direction is made of rounding."""
    pixels = np.full((n, 3, 5, 5), value, np.uint8)
    model = Pixels.fit([pixels], 4)
    assert model.components.shape == (75, 4)
    assert not model.encode(pixels).any()


def test_the_mean_image_gives_zeros():
    pixels = np.array([0, 100, 200, 50, 150], np.uint8).repeat(16).reshape(5, 1, 4, 4)
    pixels[3:, :, :2] = np.array([150, 50], np.uint8)[:, None, None, None]
    model = Pixels.fit([pixels], 4)
    assert np.array_equal(model.encode(pixels).any(axis=1), [True, False, True, True, True])


def test_what_no_component_sees_gives_zeros():
    pixels = images(40)
    pixels[:, 0, 0, 0] = 9  # never varies
    model = Pixels.fit([pixels], 36)
    stranger = np.round(model.mean).astype(np.uint8).reshape(1, 1, 6, 6)
    flat = Pixels(model.shape, stranger.reshape(-1).astype(np.float64), model.components)
    stranger[0, 0, 0, 0] = 200
    assert not flat.encode(stranger).any()


def test_no_images():
    for pieces in ([], [images(0)]):
        with pytest.raises(DataError, match="no row is left to fit the pixels encoder on"):
            Pixels.fit(pieces, 4)


@pytest.mark.parametrize(("channels", "side", "largest"), [(1, 65, 64), (3, 37, 36), (3, 64, 36)])
def test_images_too_large_to_analyse(channels, side, largest):
    assert channels * largest**2 <= MAX_VALUES < channels * (largest + 1) ** 2
    with pytest.raises(DataError, match=f"{side} x {side} pixels with {channels} channels.*image_size of {largest} or"):
        Pixels.fit([np.zeros((1, channels, side, side), np.uint8)], 4)


def test_lonely_vectors_take_bytes_as_they_take_texts():
    assert np.array_equal(lonely_vector("abc", 8), lonely_vector(b"abc", 8))
    unit, bad = as_unit(lonely_vector(b"", 8)[None])
    assert not bad
    assert np.allclose(np.linalg.norm(unit), 1)
