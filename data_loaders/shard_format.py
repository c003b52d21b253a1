"""What a folder of shards looks like: names and records that writer and reader share."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from data_loaders.decode import RGB_ENCODINGS
from data_loaders.schema import SCHEMA_VERSION, DataError
from data_loaders.shard_stats import ClipStats, add_counts

MANIFEST = "manifest.json"
CLIPS = "clips"
"""Kind of a folder of `schema.Sample`; other kinds hold what their writer says."""
RGB_MEMBERS = tuple(way.member for way in RGB_ENCODINGS.values())
LABEL_MEMBERS = {"entity_ids": "seg.mkv", "depth": "depth.mkv"}
REQUIRED_MEMBERS = ("txt", "long.txt", "json")
"""Of every clip, besides one of RGB_MEMBERS."""

HOW_TO_MAKE = (
    "make shards with `python -m data_loaders.synthetic OUT` or "
    "`python -m data_loaders.panda_dense run --config FILE --videos VIDEOS --output OUT`"
)
# The endings of `atomic_file.partial_of`, and of versions before it that had one name alone.
OUR_FILES = re.compile(
    r"(shard-\d{6}\.(tar|index\.json)|manifest\.json)((\.[0-9a-f]{12})?\.partial)?"
)
# A name comes from a manifest, perhaps of a server: it must not lead out of the folder.
_SHARD_NAME = re.compile(r"[A-Za-z0-9_\-]+\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def shard_name(number: int) -> str:
    """File name of shard 0, 1, 2, ..."""
    return f"shard-{number:06d}.tar"


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """Where one file of a sample lies in its tar."""

    offset: int
    """First byte of the content."""
    size: int
    """Bytes."""
    crc32: int
    """Of the content: ffv1 decoders conceal damage without an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """Figures that add up over shards."""

    num_samples: int
    num_damaged: int
    """Samples without any member, known as damaged when the shard was written."""
    num_bytes: int
    """Size of the tar."""
    members: dict[str, int]
    """How many samples have each member."""
    member_bytes: dict[str, int]
    """Bytes of each member, over all samples."""
    stats: ClipStats | None
    """Figures of the clips; None for other kinds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo(Totals):
    """One shard, as the manifest has it."""

    name: str
    """File name of the tar."""
    sha256: str
    """Of the tar."""
    index_sha256: str
    """Of the index file beside it."""

    @property
    def index_name(self) -> str:
        """File name of the index."""
        return self.name.removesuffix(".tar") + ".index.json"


def count_members(samples: Iterable[Mapping[str, Sequence[int]]]) -> dict[str, Any]:
    """Figures of a shard that come from its index.

    Args:
        samples: Of each sample [offset, size, crc32] by member.

    Returns:
        `num_samples`, `num_damaged`, `members` and `member_bytes` of `Totals`.
    """
    samples = list(samples)
    return {
        "num_samples": len(samples),
        "num_damaged": sum(not sample for sample in samples),
        "members": add_counts(dict.fromkeys(sample, 1) for sample in samples),
        "member_bytes": add_counts(
            {name: place[1] for name, place in sample.items()} for sample in samples
        ),
    }


def total_of(shards: Sequence[ShardInfo]) -> Totals:
    """Sum over shards; clip figures only where every shard has them."""
    stats = [shard.stats for shard in shards if shard.stats is not None]
    return Totals(
        num_samples=sum(shard.num_samples for shard in shards),
        num_damaged=sum(shard.num_damaged for shard in shards),
        num_bytes=sum(shard.num_bytes for shard in shards),
        members=add_counts(shard.members for shard in shards),
        member_bytes=add_counts(shard.member_bytes for shard in shards),
        stats=ClipStats.total(stats) if len(stats) == len(shards) else None,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a folder of shards holds; it grows with the shards and not with the samples."""

    kind: str
    """`CLIPS`, or what the writer of the folder called it."""
    shards: tuple[ShardInfo, ...]
    totals: Totals
    """As written; `total_of(shards)` unless somebody changed the file."""
    extra: dict[str, Any] = field(default_factory=dict)
    """JSON object of the writer: what the shards were made from and how."""

    def to_json(self) -> bytes:
        """The file's content: one line per shard, equal for equal shards."""
        head = {
            "schema_version": SCHEMA_VERSION,
            "kind": self.kind,
            "extra": self.extra,
            **asdict(self.totals),
        }
        lines = [f"{json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in head.items()]
        shards = ",\n".join("  " + json.dumps(asdict(shard)) for shard in self.shards)
        return ("{\n" + ",\n".join(lines) + ',\n"shards": [\n' + shards + "\n]\n}\n").encode()

    @classmethod
    def from_json(cls, content: bytes, *, name: str) -> "Manifest":
        """Parse `to_json`.

        Args:
            content: Of the file.
            name: What to call it in an error.

        Raises:
            DataError: No manifest, of another version, without shards, or with an impossible one.
        """
        try:
            fields = json.loads(content)
            version = fields.pop("schema_version")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{name}: expected a manifest of shards: {error!r}") from error
        if version != SCHEMA_VERSION:
            raise DataError(f"{name}: schema_version: expected {SCHEMA_VERSION}, got {version}")
        try:
            kind, extra, shards = (fields.pop(part) for part in ("kind", "extra", "shards"))
            manifest = cls(
                kind=kind,
                extra=extra,
                shards=tuple(ShardInfo(**_with_stats(shard)) for shard in shards),
                totals=Totals(**_with_stats(fields)),
            )
            _check_shards(manifest.shards, name=name)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{name}: expected a manifest of shards: {error!r}") from error
        return manifest


def _with_stats(fields: dict[str, Any]) -> dict[str, Any]:
    stats = fields["stats"]
    return {**fields, "stats": None if stats is None else ClipStats.from_json(stats)}


def _check_shards(shards: Iterable[ShardInfo], *, name: str) -> None:
    names: set[str] = set()
    for shard in shards:
        for what, ok in {
            "name": _SHARD_NAME.fullmatch(shard.name) and shard.name not in names,
            "sha256": _SHA256.fullmatch(shard.sha256),
            "index_sha256": _SHA256.fullmatch(shard.index_sha256),
            "num_samples": isinstance(shard.num_samples, int) and shard.num_samples > 0,
            "num_bytes": isinstance(shard.num_bytes, int) and shard.num_bytes > 0,
        }.items():
            if not ok:
                value = getattr(shard, what)
                raise DataError(f"{name}: shard {shard.name!r}: impossible {what} {value!r}")
        names.add(shard.name)
    if not names:
        raise DataError(f"{name}: expected at least one shard, found none; {HOW_TO_MAKE}")
