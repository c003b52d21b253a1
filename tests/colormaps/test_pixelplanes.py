"""Drawing colours, painting, and reading clean maps back."""

import numpy as np
import pytest
import torch

from sat_udpdiff.colormaps import pixelplanes, tensors


def draw(count, seed=0, **options):
    return pixelplanes.draw_colors(count, generator=np.random.default_rng(seed), **options)


def regions(num_entities, *, shape, seed):
    """Voronoi cells that drift, id 0 in the first frame's corner."""
    rng = np.random.default_rng(seed)
    seeds = rng.random((num_entities, 2)) * shape[1:]
    drift = rng.normal(0, 1, (num_entities, 2))
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape[1:]], indexing="ij"), -1)
    ids = [
        ((grid[:, :, None] - (seeds + t * drift)) ** 2).sum(-1).argmin(-1) + 1
        for t in range(shape[0])
    ]
    ids = np.stack(ids).astype(np.uint16)
    ids[0, :6, :6] = 0
    return ids


def same_partition(found, ids):
    pairs = np.unique(np.stack([found.ravel(), ids.ravel()], 1), axis=0)
    return len(pairs) == len(np.unique(found)) == len(np.unique(ids))


def test_colours_are_unique_not_black_and_cover_the_range():
    colors = draw(5000)
    assert colors.dtype == np.uint8 and colors.shape == (5000, 3)
    assert len(np.unique(colors, axis=0)) == 5000
    assert colors.any(axis=1).all()
    assert colors.min() == 0 and colors.max() == 255


def test_black_and_taken_colours_are_drawn_again():
    class Scripted:
        def __init__(self, rows):
            self.rows = iter(rows)

        def integers(self, low, high, size):
            assert (low, high) == (0, 256)
            return np.array([next(self.rows) for _ in range(size[0])])

    rows = [[0, 0, 0], [1, 2, 3], *[[9, 9, 9]] * 6, [1, 2, 3], [4, 5, 6], *[[9, 9, 9]] * 6]
    # Typed checking would refuse the stand-in; the rule itself is what is tested.
    colors = pixelplanes.draw_colors.__wrapped__(2, generator=Scripted(rows))
    assert colors.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_min_distance_holds_to_black_too():
    colors = np.concatenate([np.zeros((1, 3), int), draw(30, min_distance=40.0).astype(int)])
    squares = ((colors[:, None] - colors) ** 2).sum(-1)
    np.fill_diagonal(squares, 10**9)
    assert squares.min() >= 40**2


def test_draw_depends_on_the_generator_alone():
    assert np.array_equal(draw(20, seed=7), draw(20, seed=7))
    assert not np.array_equal(draw(20, seed=7), draw(20, seed=8))
    assert draw(0).shape == (0, 3)


@pytest.mark.parametrize(
    ("count", "distance", "message"),
    [
        (50, 300.0, "50 colours at min_distance 300 were not found"),
        (-1, 0.0, "expected num_entities >= 0"),
        (1, -1.0, "min_distance >= 0"),
    ],
)
def test_impossible_draws(count, distance, message):
    with pytest.raises(ValueError, match=message):
        draw(count, min_distance=distance)


def test_encode_paints_each_id_in_its_colour():
    ids = np.array([[[0, 1], [2, 3]]], np.uint16)
    colors = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint8)
    expected = [[[[0, 0, 0], [1, 2, 3]], [[4, 5, 6], [7, 8, 9]]]]
    assert pixelplanes.encode(ids, colors=colors).tolist() == expected
    painted = tensors.encode_pixelplanes(
        torch.from_numpy(ids.astype(np.int32)), colors=torch.from_numpy(colors)
    )
    assert painted.shape == (1, 3, 2, 2) and painted.dtype == torch.float32
    as_numbers = (painted.permute(0, 2, 3, 1) + 1) * 127.5
    assert torch.allclose(as_numbers, torch.tensor(expected, dtype=torch.float32), atol=1e-4)


def test_ids_without_a_colour_are_refused():
    colors = draw(2)
    for ids in (np.full((1, 2, 2), 3, np.int32), np.full((1, 2, 2), -1, np.int32)):
        with pytest.raises(ValueError, match="entity_ids: expected ids"):
            pixelplanes.encode(ids, colors=colors)
        with pytest.raises(ValueError, match="entity_ids: expected ids"):
            tensors.encode_pixelplanes(torch.from_numpy(ids), colors=torch.from_numpy(colors))


@pytest.mark.parametrize("num_entities", [1, 2, 10, 40])
@pytest.mark.parametrize("shape", [(9, 64, 96), (3, 120, 180)])
def test_clean_maps_come_back_exactly(num_entities, shape):
    ids = regions(num_entities, shape=shape, seed=num_entities)
    colors = draw(num_entities, seed=num_entities)
    rgb = pixelplanes.encode(ids, colors=colors)
    decoded = pixelplanes.decode_with_palette(rgb)
    assert decoded.entity_ids.dtype == np.int32
    assert same_partition(decoded.entity_ids, ids)
    assert np.array_equal(decoded.entity_ids == 0, ids == 0)
    assert np.array_equal(pixelplanes.encode(decoded.entity_ids, colors=decoded.colors), rgb)
    sizes = np.bincount(decoded.entity_ids.ravel())[1:]
    assert (np.diff(sizes) <= 0).all()  # the largest first
    known = pixelplanes.decode(rgb, palette=colors)
    assert np.array_equal(known, ids)


def test_weak_noise_on_a_simple_picture_is_not_read_as_many_entities():
    ids = np.zeros((3, 64, 96), np.uint16)
    ids[:, 20:40, 30:60] = 1
    rgb = pixelplanes.encode(ids, colors=np.array([[200, 90, 40]], np.uint8)).astype(int)
    rgb += np.random.default_rng(0).integers(-1, 2, rgb.shape) * (ids > 0)[..., None]
    decoded = pixelplanes.decode(rgb.astype(np.uint8))
    assert set(np.unique(decoded)) == {0, 1}
    assert np.mean(decoded == ids) > 0.999  # the median rounds the corners


def test_black_clip_has_no_entities():
    decoded = pixelplanes.decode_with_palette(np.zeros((2, 16, 24, 3), np.uint8))
    assert not decoded.entity_ids.any() and decoded.colors.shape == (0, 3)


def test_decode_refuses_what_is_no_clip():
    with pytest.raises(ValueError, match=r"rgb: expected uint8 \(t, h, w, 3\)"):
        pixelplanes.decode(np.zeros((0, 4, 4, 3), np.uint8))


def test_decoding_on_tensors_is_decoding_of_their_pixels():
    ids = np.zeros((2, 3, 24, 36), np.int32)
    ids[0, :, 4:12, 6:20], ids[1, :, 10:22, 3:15] = 1, 2
    colors = torch.tensor([[250, 10, 10], [10, 10, 250]], dtype=torch.uint8)
    painted = tensors.encode_pixelplanes(torch.from_numpy(ids), colors=colors)
    decoded = tensors.decode_pixelplanes(painted, palette=colors.numpy())
    assert decoded.dtype == torch.int32
    np.testing.assert_array_equal(decoded.numpy(), ids)
    # Found colours are numbered by size: one entity in each clip.
    np.testing.assert_array_equal(tensors.decode_pixelplanes(painted).numpy(), ids > 0)
