"""Decoding noisy, blurred segmentation clips: the floors of quality, per entities and noise.

The full table is printed by tests/benchmarks/bench_colormap_noise.py.
"""

import numpy as np
import pytest
from scipy import ndimage

from sat_udpdiff.colormaps import pixelplanes


def noisy_clip(noisy, *, num_entities, sigma, min_distance=0.0, seed=0, shape=(13, 120, 180)):
    rng = np.random.default_rng(seed)
    ids = noisy.make_ids(num_entities=num_entities, shape=shape, rng=rng)
    colors = pixelplanes.draw_colors(num_entities, generator=rng, min_distance=min_distance)
    rgb = noisy.degrade(pixelplanes.encode(ids, colors=colors), sigma=sigma, rng=rng)
    return ids, colors, rgb


# (entities, sigma): floors of ARI and mean IoU with random colours, then with colours 40 apart.
FLOORS = {
    (10, 5): (0.98, 0.893, 0.98, 0.893),
    (10, 20): (0.97, 0.86, 0.97, 0.86),
    (20, 10): (0.96, 0.81, 0.96, 0.81),
    (20, 20): (0.91, 0.67, 0.94, 0.77),
    (40, 10): (0.93, 0.65, 0.936, 0.68),
}


@pytest.mark.parametrize(("num_entities", "sigma"), FLOORS)
def test_entities_are_found_under_noise(noisy, num_entities, sigma):
    floors = FLOORS[num_entities, sigma]
    for distance, ari, miou in ((0.0, *floors[:2]), (40.0, *floors[2:])):
        scores = []
        for seed in range(3):
            ids, _, rgb = noisy_clip(
                noisy, num_entities=num_entities, sigma=sigma, min_distance=distance, seed=seed
            )
            scores.append(noisy.score(pixelplanes.decode(rgb), true=ids))
        assert np.mean([s.ari for s in scores]) >= ari
        assert np.mean([s.miou for s in scores]) >= miou


def test_a_known_palette_keeps_its_ids(noisy):
    ids, colors, rgb = noisy_clip(noisy, num_entities=10, sigma=10)
    found = pixelplanes.decode(rgb, palette=colors)
    assert np.mean(found == ids) > 0.97


def test_tiny_clips_keep_small_entities(noisy):
    """9x64x96, entities of 6 pixels and more, noise and blur of a small codec."""
    scores = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        ids = noisy.make_ids(num_entities=5, shape=(9, 64, 96), rng=rng, radius=(0.08, 0.25))
        colors = pixelplanes.draw_colors(5, generator=rng, min_distance=40.0)
        rgb = noisy.degrade(pixelplanes.encode(ids, colors=colors), sigma=5, rng=rng)
        scores.append(noisy.score(pixelplanes.decode(rgb), true=ids))
    assert np.mean([s.ari for s in scores]) > 0.93
    assert np.mean([s.miou for s in scores]) > 0.75


def test_same_clip_same_answer(noisy):
    _, _, rgb = noisy_clip(noisy, num_entities=10, sigma=10, shape=(5, 64, 96))
    first, second = pixelplanes.decode_with_palette(rgb), pixelplanes.decode_with_palette(rgb)
    assert np.array_equal(first.entity_ids, second.entity_ids)
    assert np.array_equal(first.colors, second.colors)


def test_min_area_absorbs_specks(noisy):
    _, colors, rgb = noisy_clip(noisy, num_entities=6, sigma=5, shape=(5, 64, 96))
    small = pixelplanes.decode(rgb, palette=colors, min_area=1)
    large = pixelplanes.decode(rgb, palette=colors, min_area=60)
    assert len(np.unique(large)) < len(np.unique(small))


def test_overshoot_beside_edges_is_no_entity(noisy):
    """A codec paints shades of a colour along its borders; the colour's entity keeps them."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        ids = noisy.make_ids(num_entities=4, shape=(5, 64, 96), rng=rng, radius=(0.1, 0.3))
        colors = pixelplanes.draw_colors(4, generator=rng, min_distance=60.0)
        clean = pixelplanes.encode(ids, colors=colors).astype(np.float32)
        soft = ndimage.gaussian_filter(clean, (0, 0.7, 0.7, 0))
        sharp = soft + 0.3 * (soft - ndimage.gaussian_filter(soft, (0, 2, 2, 0)))
        decoded = pixelplanes.decode(sharp.clip(0, 255).round().astype(np.uint8))
        assert len(np.unique(decoded)) == len(np.unique(ids))
        assert noisy.score(decoded, true=ids).ari > 0.95
