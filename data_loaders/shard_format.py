"""What a folder of shards looks like: names and records that writer and reader share."""

import re
from dataclasses import dataclass

from data_loaders.decode import RGB_ENCODINGS

MANIFEST = "manifest.json"
RGB_MEMBERS = tuple(way.member for way in RGB_ENCODINGS.values())
LABEL_MEMBERS = {"entity_ids": "seg.mkv", "depth": "depth.mkv"}
REQUIRED_MEMBERS = ("txt", "long.txt", "json")

OUR_FILES = re.compile(r"shard-\d{6}\.(tar|index\.json)(\.partial)?|manifest\.json(\.partial)?")


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
class ShardInfo:
    """One shard, as the manifest has it."""

    name: str
    """File name of the tar."""
    num_samples: int
    num_bytes: int
    """Size of the tar."""
    sha256: str
    """Of the tar."""
    index_sha256: str
    """Of the index file beside it."""
    members: dict[str, int]
    """How many samples have each member."""

    @property
    def index_name(self) -> str:
        """File name of the index."""
        return self.name.removesuffix(".tar") + ".index.json"
