"""What one clip of a dataset is, and what makes it valid.

Every producer (the Panda-Dense pipeline, the synthetic world) makes a `Sample`; the shard writer
stores it, the loader gives it back. The arrays travel in their own files, everything else in one
JSON record, so that a shard can be read and listed without decoding a video.
"""

import json
import re
import sys
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8, UInt16

SCHEMA_VERSION = 2
"""Of the record of a clip and of the manifest of a folder of shards."""

# webdataset cuts a file name at its first dot and tar members at slashes: such a key would be read
# back as another one, without an error.
_KEY_PATTERN = re.compile(r"[A-Za-z0-9_\-]+")


class DataError(ValueError):
    """A clip or a shard is not what the schema says; the message names the key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleMeta:
    """Where a clip and its labels came from."""

    source: str
    """Dataset, or generator, the video came from."""
    segmentation_backend: str = ""
    """What made `entity_ids` ('synthetic', 'classical', a model's name); '' without them."""
    depth_backend: str = ""
    """What made `depth`; '' without it."""
    depth_polarity: Literal["near_is_one"] = "near_is_one"
    """Disparity: 0 is the farthest point of the clip, 1 the nearest."""
    colormap: Literal["Spectral_r"] = "Spectral_r"
    """matplotlib colormap the depth is painted with."""
    num_entities: int = 0
    """Different non-zero ids in the clip."""
    extra: dict[str, str | int | float] = field(default_factory=dict)
    """Free, flat facts of the source (seed, url, time stamps in seconds)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One clip with its labels."""

    key: str
    """Unique in the dataset; letters, digits, '_' and '-' only."""
    rgb: UInt8[np.ndarray, "t h w 3"]
    """Video, red first, 0..255."""
    entity_ids: UInt16[np.ndarray, "t h w"] | None
    """Entity of each pixel, the same id over the whole clip; 0 = unlabelled."""
    depth: UInt16[np.ndarray, "t h w"] | None
    """Disparity, min-max over the clip; 0 = far, 65535 = near."""
    caption_short: str
    """One sentence."""
    caption_long: str
    """Dense description; the same as the short one where there is nothing better."""
    fps: float
    """Frames per second, > 0."""
    meta: SampleMeta
    """Provenance."""


def _require(*, key: object, what: str, expected: object, came: object, ok: bool) -> None:
    if not ok:
        raise DataError(f"sample {key!r}: {what}: expected {expected}, came {came}")


def _check_labels(sample: Sample, *, name: str, labels: Any) -> None:
    if labels is None:
        return
    shape = sample.rgb.shape[:3]
    key = sample.key
    is_array = isinstance(labels, np.ndarray)
    _require(key=key, what=name, expected="an array", came=type(labels).__name__, ok=is_array)
    _require(
        key=key,
        what=f"{name} dtype",
        expected="uint16",
        came=labels.dtype,
        ok=labels.dtype == np.uint16,
    )
    _require(
        key=key, what=f"{name} shape", expected=shape, came=labels.shape, ok=labels.shape == shape
    )


def _check_rgb(sample: Sample) -> None:
    rgb, key = sample.rgb, sample.key
    is_array = isinstance(rgb, np.ndarray)
    _require(key=key, what="rgb", expected="an array", came=type(rgb).__name__, ok=is_array)
    _require(key=key, what="rgb dtype", expected="uint8", came=rgb.dtype, ok=rgb.dtype == np.uint8)
    _require(
        key=key,
        what="rgb shape",
        expected="(t, h, w, 3), none of them 0",
        came=rgb.shape,
        ok=rgb.ndim == 4 and rgb.shape[3] == 3 and rgb.size > 0,
    )


def _check_meta(meta: SampleMeta, *, key: object) -> None:
    fixed = {"depth_polarity": "near_is_one", "colormap": "Spectral_r"}
    for name, expected in fixed.items():
        came = getattr(meta, name)
        _require(key=key, what=f"meta.{name}", expected=expected, came=came, ok=came == expected)
    _require(
        key=key,
        what="meta.num_entities",
        expected="an integer >= 0",
        came=meta.num_entities,
        ok=isinstance(meta.num_entities, int) and meta.num_entities >= 0,
    )
    _require(
        key=key, what="meta.source", expected="a name", came=repr(meta.source), ok=bool(meta.source)
    )


def valid_key(key: object) -> bool:
    """Whether webdataset would read the key back as it is."""
    return isinstance(key, str) and _KEY_PATTERN.fullmatch(key) is not None


def validate_sample(sample: Sample) -> None:
    """Check everything the schema promises about one clip.

    The number of frames is free here: the loader cuts clips to the 4k + 1 of the video VAE.

    Args:
        sample: Clip to check.

    Raises:
        DataError: The first promise that does not hold, with the key, what was expected and what
            came.
    """
    key = sample.key
    _require(
        key=key,
        what="key",
        expected="letters, digits, '_' and '-' only",
        came=repr(key),
        ok=valid_key(key),
    )
    _check_rgb(sample)
    _check_labels(sample, name="entity_ids", labels=sample.entity_ids)
    _check_labels(sample, name="depth", labels=sample.depth)
    for name in ("caption_short", "caption_long"):
        text = getattr(sample, name)
        filled = isinstance(text, str) and bool(text.strip())
        _require(key=key, what=name, expected="a sentence", came=repr(text), ok=filled)
    _require(
        key=key,
        what="fps",
        expected="a finite number > 0",
        came=sample.fps,
        ok=isinstance(sample.fps, int | float) and 0 < sample.fps < np.inf,
    )
    _check_meta(sample.meta, key=key)


def metadata_record(sample: Sample) -> dict[str, Any]:
    """Everything of a clip but its arrays, as plain JSON types.

    Args:
        sample: Clip; validated by the caller.

    Returns:
        See `make_record`.
    """
    frames, height, width = sample.rgb.shape[:3]
    return make_record(
        key=sample.key,
        size=(frames, height, width),
        fps=sample.fps,
        captions=(sample.caption_short, sample.caption_long),
        has_entity_ids=sample.entity_ids is not None,
        has_depth=sample.depth is not None,
        meta=sample.meta,
    )


def make_record(  # noqa: PLR0913 - the fields of a record
    *,
    key: str,
    size: tuple[int, int, int],
    fps: float,
    captions: tuple[str, str],
    has_entity_ids: bool,
    has_depth: bool,
    meta: SampleMeta,
) -> dict[str, Any]:
    """The record of a clip whose arrays are encoded already; `check_record` checks it.

    Args:
        key: Of the clip.
        size: Frames, height, width.
        fps: Frames per second.
        captions: Short and long.
        has_entity_ids: Whether there is a file of ids.
        has_depth: Whether there is a file of depth.
        meta: Provenance.

    Returns:
        Schema version, key, size, captions, rate, which labels exist, provenance.
    """
    frames, height, width = size
    caption_short, caption_long = captions
    return {
        "schema_version": SCHEMA_VERSION,
        "key": key,
        "frames": frames,
        "height": height,
        "width": width,
        "fps": fps,
        "caption_short": caption_short,
        "caption_long": caption_long,
        "has_entity_ids": has_entity_ids,
        "has_depth": has_depth,
        "meta": asdict(meta),
    }


def record_to_json(record: dict[str, Any]) -> str:
    """A record as one line of ASCII JSON with sorted keys: equal clips, equal bytes."""
    return json.dumps(record, sort_keys=True, allow_nan=False)


def _parse_record(record: str | bytes | dict[str, Any]) -> dict[str, Any]:
    if not isinstance(record, dict):
        try:
            record = json.loads(record)
        except (ValueError, RecursionError) as error:
            raise DataError(f"metadata record: expected JSON, came {record!r:.80}") from error
    if not isinstance(record, dict):
        raise DataError(f"metadata record: expected an object, came {type(record).__name__}")
    version = record.get("schema_version")
    if version != SCHEMA_VERSION:
        raise DataError(
            f"sample {record.get('key')!r}: schema_version: expected {SCHEMA_VERSION}, "
            f"came {version}"
        )
    return record


_RECORD_TYPES: dict[str, tuple[type, ...]] = {
    "key": (str,),
    "frames": (int,),
    "height": (int,),
    "width": (int,),
    "fps": (int, float),
    "caption_short": (str,),
    "caption_long": (str,),
    "has_entity_ids": (bool,),
    "has_depth": (bool,),
    "meta": (dict,),
}


def _is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: JSON can hold half of a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_record(record: str | bytes | dict[str, Any]) -> dict[str, Any]:
    """Check a metadata record without its arrays.

    Args:
        record: What `make_record` or `record_to_json` made.

    Returns:
        The record.

    Raises:
        DataError: It is no JSON, of another version, or lacks a field or has an impossible one.
    """
    fields = _parse_record(record)
    key = fields.get("key")
    for name, types in _RECORD_TYPES.items():
        value: Any = fields.get(name)
        # A bool is an int to isinstance.
        ok = isinstance(value, types) and (bool in types or not isinstance(value, bool))
        if ok and types == (str,):
            ok = bool(str(value).strip()) and _is_text(str(value))
        if ok and types[0] is int:
            ok = 0 < value <= sys.float_info.max  # JSON has integers that no float holds
        expected = " or ".join(kind.__name__ for kind in types)
        _require(
            key=key, what=name, expected=f"{expected}, not empty", came=f"{value!r:.80}", ok=ok
        )
    try:
        meta = SampleMeta(**fields["meta"])
    except TypeError as error:
        raise DataError(f"sample {key!r}: meta: {error}") from error
    _check_meta(meta, key=key)
    return fields


def sample_from_metadata(
    record: str | bytes | dict[str, Any],
    *,
    rgb: UInt8[np.ndarray, "t h w 3"],
    entity_ids: UInt16[np.ndarray, "t h w"] | None = None,
    depth: UInt16[np.ndarray, "t h w"] | None = None,
) -> Sample:
    """Join a metadata record with its decoded arrays.

    Labels may be left out (a loader decodes only what it needs), so their absence is no error.

    Args:
        record: What `make_record` or `record_to_json` made.
        rgb: Decoded video, 0..255.
        entity_ids: Decoded ids, if wanted.
        depth: Decoded disparity, 0..65535, if wanted.

    Returns:
        The validated clip.

    Raises:
        DataError: The record is no JSON, of another version, lacks or adds a field, or the clip
            is not valid.
    """
    fields = _parse_record(record)
    key = fields.get("key")
    try:
        sample = Sample(
            key=fields["key"],
            rgb=rgb,
            entity_ids=entity_ids,
            depth=depth,
            caption_short=fields["caption_short"],
            caption_long=fields["caption_long"],
            fps=float(fields["fps"]),
            meta=SampleMeta(**fields["meta"]),
        )
        size = (fields["frames"], fields["height"], fields["width"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"sample {key!r}: metadata record: {error!r}") from error
    validate_sample(sample)
    if rgb.shape[:3] != size:
        raise DataError(f"sample {key!r}: rgb size: expected {size}, came {rgb.shape[:3]}")
    return sample
