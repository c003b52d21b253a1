"""The schema: what is refused, by which words, and that metadata survive their JSON."""

import copy
import json
from dataclasses import fields, replace

import numpy as np
import pytest

from data_loaders.schema import (
    SCHEMA_VERSION,
    DataError,
    Sample,
    SampleMeta,
    metadata_record,
    record_to_json,
    sample_from_metadata,
    validate_sample,
)


@pytest.fixture
def sample() -> Sample:
    rng = np.random.default_rng(0)
    shape = (3, 4, 5)
    return Sample(
        key="clip-0_A",
        rgb=rng.integers(0, 256, (*shape, 3), dtype=np.uint8),
        entity_ids=rng.integers(0, 4, shape, dtype=np.uint16),
        depth=rng.integers(0, 65536, shape, dtype=np.uint16),
        caption_short="a red disc moves left",
        caption_long="a large red disc moves left, over a brown floor and a white wall",
        fps=12.5,
        meta=SampleMeta(
            source="test",
            segmentation_backend="synthetic",
            depth_backend="synthetic",
            num_entities=3,
            extra={"seed": 1, "url": "x", "start_s": 0.5},
        ),
    )


def broken(sample: Sample, **changes: object) -> Sample:
    """Copy with wrong values, past the types that are checked at construction under test."""
    other = copy.copy(sample)
    for name, value in changes.items():
        object.__setattr__(other, name, value)
    return other


def broken_meta(sample: Sample, **changes: object) -> Sample:
    meta = copy.copy(sample.meta)
    for name, value in changes.items():
        object.__setattr__(meta, name, value)
    return broken(sample, meta=meta)


def test_a_whole_sample_is_valid(sample: Sample) -> None:
    validate_sample(sample)


@pytest.mark.parametrize("name", ["entity_ids", "depth"])
def test_labels_may_be_missing(sample: Sample, name: str) -> None:
    validate_sample(replace(sample, **{name: None}))


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_number_of_frames_is_free(sample: Sample, frames: int) -> None:
    shape = (frames, 4, 5)
    validate_sample(
        replace(
            sample,
            rgb=np.zeros((*shape, 3), np.uint8),
            entity_ids=np.zeros(shape, np.uint16),
            depth=np.zeros(shape, np.uint16),
        )
    )


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "a\\b", "a b", "\u00e9", "a\n"])
def test_key_that_webdataset_would_cut_is_refused(sample: Sample, key: str) -> None:
    with pytest.raises(DataError, match="key: expected letters"):
        validate_sample(broken(sample, key=key))


ZEROS = np.zeros((3, 4, 5), np.uint16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rgb": None}, "rgb: expected an array, came NoneType"),
        ({"rgb": np.zeros((3, 4, 5, 3), np.float32)}, "rgb dtype: expected uint8, came float32"),
        ({"rgb": np.zeros((3, 4, 5), np.uint8)}, r"rgb shape: .*came \(3, 4, 5\)"),
        ({"rgb": np.zeros((3, 4, 5, 4), np.uint8)}, r"rgb shape: .*came \(3, 4, 5, 4\)"),
        ({"rgb": np.zeros((0, 4, 5, 3), np.uint8)}, r"rgb shape: .*came \(0, 4, 5, 3\)"),
        ({"entity_ids": [1, 2]}, "entity_ids: expected an array, came list"),
        ({"entity_ids": ZEROS.astype(np.uint8)}, "entity_ids dtype: expected uint16, came uint8"),
        ({"entity_ids": ZEROS[:2]}, r"entity_ids shape: expected \(3, 4, 5\), came \(2, 4, 5\)"),
        ({"depth": 1.0}, "depth: expected an array, came float"),
        ({"depth": ZEROS.astype(np.float32)}, "depth dtype: expected uint16, came float32"),
        ({"depth": ZEROS[:, :1]}, r"depth shape: expected \(3, 4, 5\), came \(3, 1, 5\)"),
        ({"caption_short": ""}, "caption_short: expected a sentence, came ''"),
        ({"caption_short": None}, "caption_short: expected a sentence, came None"),
        ({"caption_long": " \n"}, "caption_long: expected a sentence"),
        ({"fps": 0.0}, "fps: expected a finite number > 0, came 0.0"),
        ({"fps": float("nan")}, "fps: expected a finite number > 0, came nan"),
        ({"fps": float("inf")}, "fps: expected a finite number > 0, came inf"),
        ({"fps": "8"}, "fps: expected a finite number > 0, came 8"),
    ],
)
def test_wrong_field_is_named(sample: Sample, changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=f"sample 'clip-0_A': {message}"):
        validate_sample(broken(sample, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": ""}, "meta.source: expected a name, came ''"),
        ({"depth_polarity": "far_is_one"}, "meta.depth_polarity: expected near_is_one, came far"),
        ({"colormap": "viridis"}, "meta.colormap: expected Spectral_r, came viridis"),
        ({"num_entities": -1}, "meta.num_entities: expected an integer >= 0, came -1"),
        ({"num_entities": 1.5}, "meta.num_entities: expected an integer >= 0, came 1.5"),
    ],
)
def test_wrong_meta_is_named(sample: Sample, changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=f"sample 'clip-0_A': {message}"):
        validate_sample(broken_meta(sample, **changes))


@pytest.mark.parametrize("as_bytes", [False, True])
def test_metadata_survive_json(sample: Sample, as_bytes: bool) -> None:
    text = record_to_json(metadata_record(sample))
    back = sample_from_metadata(
        text.encode() if as_bytes else text,
        rgb=sample.rgb,
        entity_ids=sample.entity_ids,
        depth=sample.depth,
    )
    for field in fields(Sample):
        assert getattr(back, field.name) is getattr(sample, field.name) or getattr(
            back, field.name
        ) == getattr(sample, field.name)


def test_record_says_size_and_which_labels_there_are(sample: Sample) -> None:
    record = metadata_record(replace(sample, depth=None))
    assert record["schema_version"] == SCHEMA_VERSION
    assert (record["frames"], record["height"], record["width"]) == (3, 4, 5)
    assert record["has_entity_ids"] is True
    assert record["has_depth"] is False
    assert record["meta"]["extra"] == {"seed": 1, "url": "x", "start_s": 0.5}


def test_equal_metadata_are_equal_ascii_bytes(sample: Sample) -> None:
    other = replace(
        sample, meta=replace(sample.meta, extra=dict(reversed(sample.meta.extra.items())))
    )
    assert record_to_json(metadata_record(other)) == record_to_json(metadata_record(sample))
    assert record_to_json(metadata_record(replace(sample, caption_short="caf\u00e9"))).isascii()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON, came '{'"),
        ("[]", "expected an object, came list"),
        ('{"key": "k"}', "sample 'k': schema_version: expected 2, came None"),
        ('{"key": "k", "schema_version": 1}', "sample 'k': schema_version: expected 2, came 1"),
    ],
)
def test_foreign_record_is_refused(sample: Sample, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        sample_from_metadata(text, rgb=sample.rgb)


def test_record_without_a_field_is_refused(sample: Sample) -> None:
    record = metadata_record(sample)
    for name in ("caption_short", "caption_long", "fps", "frames", "meta"):
        partial = {k: v for k, v in record.items() if k != name}
        with pytest.raises(DataError, match=name):
            sample_from_metadata(partial, rgb=sample.rgb)


def test_record_with_an_unknown_meta_field_is_refused(sample: Sample) -> None:
    record = json.loads(record_to_json(metadata_record(sample)))
    record["meta"]["colour"] = "red"
    with pytest.raises(DataError, match="colour"):
        sample_from_metadata(record, rgb=sample.rgb)


def test_arrays_of_another_size_than_the_record_are_refused(sample: Sample) -> None:
    with pytest.raises(DataError, match=r"rgb size: expected \(3, 4, 5\), came \(2, 4, 5\)"):
        sample_from_metadata(metadata_record(sample), rgb=sample.rgb[:2])
