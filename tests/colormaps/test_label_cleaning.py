"""Edges, votes and components against slow definitions and hand-made pictures."""

import numpy as np
import pytest
from skimage.measure import label as connected

from sat_udpdiff.colormaps import label_cleaning as cleaning


@pytest.mark.parametrize("shape", [(7, 9), (1, 5), (5, 1), (30, 41)])
def test_components_equal_skimage(shape):
    labels = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint16)
    found = cleaning._components(labels)
    mine = found.of(np.arange(labels.size)).reshape(shape)
    other = connected(labels.astype(int) + 1, connectivity=1)
    pairs = np.unique(np.stack([mine.ravel(), other.ravel()], 1), axis=0)
    assert len(pairs) == len(found.sizes) == other.max()
    assert np.array_equal(np.bincount(mine.ravel()), found.sizes)


@pytest.mark.parametrize("shape", [(6, 8), (1, 4)])
def test_vote_equals_a_count_of_each_window(shape):
    around = np.random.default_rng(1).integers(0, 3, (3, *shape)).astype(np.uint16)
    padded = np.pad(around, ((0, 0), (1, 1), (1, 1)), mode="edge")
    got = cleaning.vote(around)
    for y, x in np.ndindex(*shape):
        counts = np.bincount(padded[:, y : y + 3, x : x + 3].ravel(), minlength=3)
        own = around[1, y, x]
        assert got[y, x] == (own if counts[own] == counts.max() else counts.argmax())


def test_vote_leaves_a_still_picture_alone():
    half = np.repeat(np.array([[1, 1, 2, 2]], np.uint16), 4, axis=0)
    assert np.array_equal(cleaning.vote(np.stack([half] * 3)), half)


def test_small_components_take_the_label_of_their_longest_border():
    labels = np.array([[1, 1, 1, 2], [1, 3, 1, 2], [1, 3, 2, 2], [1, 1, 2, 2]], np.uint16)
    expected = labels.copy()
    expected[labels == 3] = 1  # 5 of its 6 sides
    assert np.array_equal(cleaning.absorb_small(labels, min_area=3), expected)
    assert np.array_equal(cleaning.absorb_small(labels, min_area=2), labels)


def test_a_small_component_inside_a_small_one_is_absorbed_in_the_second_round():
    labels = np.ones((7, 7), np.uint16)
    labels[2:5, 2:5] = 2
    labels[3, 3] = 3
    assert (cleaning.absorb_small(labels, min_area=10) == 1).all()


def test_a_picture_of_small_components_only_stays():
    labels = np.arange(12, dtype=np.uint16).reshape(3, 4)
    assert np.array_equal(cleaning.absorb_small(labels, min_area=5), labels)


def test_edges_never_take_a_third_label():
    # Between red and blue the mixed colour is exactly that of label 2.
    palette = np.array([[200, 0, 0], [0, 0, 200], [100, 0, 100]], np.uint8)
    row = palette[[0, 0, 0, 2, 1, 1, 1]]
    colors = np.repeat(row[None], 5, axis=0)
    labels = np.array([[0, 0, 0, 2, 1, 1, 1]] * 5, np.uint16)
    edge = labels == 2
    got = cleaning.label_from_beside(
        labels, trusted=~edge, doubtful=edge, colors=colors, palette=palette
    )
    assert set(np.unique(got)) == {0, 1}
    assert np.array_equal(got[~edge], labels[~edge])


def test_each_direction_is_looked_at_and_the_closest_colour_wins():
    palette = np.array([[0, 0, 0], [250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 0]], np.uint8)
    labels = np.zeros((3, 3), np.uint16)
    labels[1, 0], labels[1, 2], labels[0, 1], labels[2, 1] = 1, 2, 3, 4
    trusted = labels > 0
    middle = np.zeros((3, 3), bool)
    middle[1, 1] = True
    for wanted in (1, 2, 3, 4):
        colors = np.zeros((3, 3, 3), np.uint8)
        colors[1, 1] = palette[wanted] * 0.7
        got = cleaning.label_from_beside(
            labels, trusted=trusted, doubtful=middle, colors=colors, palette=palette
        )
        assert got[1, 1] == wanted


def test_without_a_trusted_pixel_the_label_stays():
    labels = np.ones((3, 3), np.uint16)
    nothing = np.zeros((3, 3), bool)
    got = cleaning.label_from_beside(
        labels,
        trusted=nothing,
        doubtful=~nothing,
        colors=np.zeros((3, 3, 3), np.uint8),
        palette=np.zeros((2, 3), np.uint8),
    )
    assert np.array_equal(got, labels)


def test_margin_lets_a_clear_colour_keep_its_own_label():
    palette = np.array([[200, 0, 0], [0, 200, 0]], np.uint8)
    labels = np.array([[0, 1, 0]], np.uint16)
    trusted = labels == 0
    colors = palette[labels]
    for margin, expected in ((100.0, 1), (np.inf, 0)):
        got = cleaning.label_from_beside(
            labels,
            trusted=trusted,
            doubtful=~trusted,
            colors=colors,
            palette=palette,
            margin=margin,
        )
        assert got[0, 1] == expected


def _two_labels(*, width_of_change: int):
    """Left half label 1, right half 2; the colour changes within `width_of_change` pixels."""
    palette = np.array([[0, 0, 0], [100, 100, 100], [120, 110, 100]], np.uint8)
    labels = np.zeros((2, 16, 24), np.uint16)
    labels[..., :12], labels[..., 12:] = 1, 2
    share = ((np.arange(24) - 11.5) / width_of_change + 0.5).clip(0, 1)[:, None]
    row = palette[1] + share * (palette[2].astype(float) - palette[1])
    colors = np.broadcast_to(row.round().astype(np.uint8), (2, 16, 24, 3))
    return labels, colors, palette


def test_labels_that_meet_in_a_gradient_are_shades_of_one():
    labels, colors, palette = _two_labels(width_of_change=12)
    shades = cleaning.find_shades(labels, colors=colors, palette=palette)
    assert shades[0] == 0
    assert shades[1] == shades[2]


@pytest.mark.parametrize("blur", [1, 2, 3])
def test_labels_that_meet_at_an_edge_are_not(blur):
    labels, colors, palette = _two_labels(width_of_change=blur)
    shades = cleaning.find_shades(labels, colors=colors, palette=palette)
    assert shades.tolist() == [0, 1, 2]


def test_nothing_is_a_shade_of_the_background():
    labels, colors, palette = _two_labels(width_of_change=12)
    palette[0] = palette[1]
    labels[labels == 1] = 0
    shades = cleaning.find_shades(labels, colors=colors, palette=palette)
    assert shades.tolist() == [0, 1, 2]
