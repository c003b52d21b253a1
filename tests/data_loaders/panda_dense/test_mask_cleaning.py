import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_loaders.panda_dense.mask_cleaning import CleaningSettings, check_cleaning, clean_masks
from data_loaders.schema import DataError

# Sizes are given for 480x720: a quarter of its height and width makes areas a sixteenth.
HEIGHT, WIDTH = 120, 180
SIZES = CleaningSettings(speck_area=16 * 16, hole_area=16 * 64, gap_width=4 * 4)


def clean(ids):
    cleaned = clean_masks(ids[None], settings=SIZES)
    assert cleaned.shape == (1, *ids.shape) and cleaned.dtype == np.uint16
    return cleaned[0]


def blank(value=0):
    return np.full((HEIGHT, WIDTH), value, np.uint16)


def test_a_hole_of_one_entity_is_filled():
    ids = blank(7)
    ids[40:47, 50:59] = 0  # 63 < 64 pixels
    assert (clean(ids) == 7).all()


def test_a_large_hole_stays_in_its_shape():
    ids = blank(7)
    ids[40:50, 50:62] = 0
    assert np.array_equal(clean(ids), ids)


def test_a_hole_that_is_another_entity_stays():
    ids = blank(7)
    ids[40:44, 50:54] = 300  # 16 pixels: just no speck
    assert np.array_equal(clean(ids), ids)


def test_a_speck_is_taken_over_by_what_is_around_it():
    ids = blank(7)
    ids[40:43, 50:55] = 300  # 15 < 16 pixels
    assert (clean(ids) == 7).all()


def test_specks_are_dropped_piece_by_piece():
    ids = blank()
    ids[20:60, 20:60] = 4
    ids[90:93, 100:105] = 4
    cleaned = clean(ids)
    assert np.array_equal(cleaned == 4, (ids == 4) & (np.arange(HEIGHT) < 80)[:, None])
    assert not cleaned[90:93, 100:105].any()


def test_diagonal_neighbours_are_one_piece():
    ids = blank()
    steps = np.arange(20)
    ids[30 + steps, 40 + steps] = 4
    assert np.array_equal(clean(ids), ids)


def test_a_thin_gap_between_two_entities_is_closed_in_the_middle():
    ids = blank(1)
    ids[:, 90:] = 2
    ids[:, 88:92] = 0  # 4 = the width
    expected = np.where(np.arange(WIDTH) < 90, 1, 2)
    assert (clean(ids) == expected).all()


def test_a_wide_gap_stays_as_wide():
    ids = blank(1)
    ids[:, 90:] = 2
    ids[:, 88:93] = 0
    assert np.array_equal(clean(ids), ids)


def test_a_strip_along_the_border_is_a_gap_too():
    ids = blank(5)
    ids[:, :4] = 0
    assert (clean(ids) == 5).all()
    ids[:, :5] = 0
    assert np.array_equal(clean(ids), ids)


def test_a_thin_arm_of_a_large_gap_is_closed():
    ids = blank(5)
    ids[30:60, 40:80] = 0
    ids[44:46, 80:150] = 0
    cleaned = clean(ids)
    assert (cleaned[44:46, 80:150] == 5).all() and not cleaned[30:60, 40:80].any()


def test_what_is_tidy_or_empty_stays():
    assert not clean(blank()).any()
    assert (clean(blank(65535)) == 65535).all()
    ids = blank(1)
    ids[60:] = 2
    assert np.array_equal(clean(ids), ids)


def test_a_frame_of_specks_ends_unlabelled():
    ids = blank()
    ids[50:52, 60:62] = 3
    assert not clean(ids).any()


def test_zero_sizes_change_nothing():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 5, (2, 20, 30)).astype(np.uint16)
    off = CleaningSettings(speck_area=0, hole_area=0, gap_width=0)
    assert np.array_equal(clean_masks(ids, settings=off), ids)


def test_frames_are_cleaned_apart_and_ids_kept():
    ids = np.stack([blank(9), blank(9), blank()])
    ids[1, 40:42, 50:52] = 400
    ids[2, :60] = 400
    cleaned = clean_masks(ids, settings=SIZES)
    assert np.unique(cleaned).tolist() == [0, 9, 400]
    assert np.mean(cleaned > 0, axis=(1, 2)).tolist() == [1.0, 1.0, 0.5]


def test_sizes_grow_with_the_picture():
    ids = np.full((1, 480, 720), 7, np.uint16)
    ids[0, 100:115, 200:217] = 0  # 255 < 256 pixels
    ids[0, 300:308, 100:108] = 8  # 64 pixels: just no speck
    cleaned = clean_masks(ids)[0]
    assert (cleaned[:200] == 7).all() and (cleaned[300:308, 100:108] == 8).all()
    half = np.full((1, 240, 360), 7, np.uint16)
    half[0, 100:107, 50:59] = 0  # 63 < 64 pixels
    half[0, 30:50, 50:55] = 0  # 100 pixels, 5 wide, of 4 at this size
    assert np.sum(clean_masks(half) == 0) == 100


@st.composite
def messy_pictures(draw):
    """Blocks, dots and noise, as small as the sizes that are cleaned and larger."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    ids = np.zeros((60, 90), np.uint16)
    for _ in range(draw(st.integers(0, 25))):
        top, left = rng.integers(0, 60), rng.integers(0, 90)
        high, wide = rng.integers(1, 30, 2)
        ids[top : top + high, left : left + wide] = rng.integers(0, 6)
    noisy = rng.random(ids.shape) < draw(st.sampled_from([0, 0.02, 0.3]))
    ids[noisy] = rng.integers(0, 6, int(noisy.sum()))
    return ids


@settings(max_examples=200, deadline=None)
@given(messy_pictures())
def test_cleaning_twice_is_cleaning_once(ids):
    sizes = CleaningSettings(speck_area=64 * 8, hole_area=64 * 16, gap_width=8 * 3)
    once = clean_masks(ids[None], settings=sizes)
    assert np.array_equal(clean_masks(once, settings=sizes), once)
    assert set(np.unique(once)) <= set(np.unique(ids)) | {0}


@pytest.mark.parametrize("name", ["speck_area", "hole_area", "gap_width"])
def test_settings_are_checked(name):
    settings = CleaningSettings(**{name: -1})
    with pytest.raises(DataError, match=rf"cleaning\.{name}: expected >= 0 pixels, got -1"):
        check_cleaning(settings, section="cleaning")
    check_cleaning(CleaningSettings(), section="cleaning")
