"""A page about a folder of clips: figures, and some of its samples as moving pictures.

One HTML file that needs nothing else: videos and posters are in it.
"""

from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise

import numpy as np
from jaxtyping import UInt8, UInt16

from data_loaders.order import color_generator
from data_loaders.page_parts import bars, damaged, document, fit, moving_picture, tiles
from data_loaders.schema import DataError, check_record
from data_loaders.shard_format import LABEL_MEMBERS, Member
from data_loaders.shard_report import Histogram, facts, histograms, human_bytes, member_rows
from data_loaders.shards import ShardIndex, StoredSample
from sat_udpdiff.colormaps import depth as depth_colormap
from sat_udpdiff.colormaps import pixelplanes


def page(
    index: ShardIndex,
    *,
    num_samples: int = 24,
    seed: int = 0,
    more: Sequence[Histogram] = (),
) -> str:
    """The page.

    A sample that is damaged is shown as damaged, with the reason.

    Args:
        index: Clips; ids and depth may be missing.
        num_samples: Samples to show, spread over the whole folder.
        seed: Of their choice, >= 0.
        more: Histograms to show besides those of the shards.

    Returns:
        HTML.
    """
    chosen = choose_samples(len(index), num_samples=num_samples, seed=seed)
    cards = "\n".join(_card(index, i) for i in chosen)
    body = f"""{_figures(index, more=more)}
<section>
<h2>Samples <small>{len(chosen):,} of {len(index):,}, seed {seed}</small></h2>
<div class="grid">
{cards}
</div>
</section>"""
    return document(str(index.folder), kind="Shards", body=body)


def choose_samples(total: int, *, num_samples: int, seed: int) -> list[int]:
    """Numbers of samples, rising: one from each of `num_samples` stretches of equal length."""
    count = min(total, num_samples)
    ends = [total * k // count for k in range(count + 1)] if count else [0]
    rng = np.random.default_rng(seed)
    return [int(rng.integers(low, high)) for low, high in pairwise(ends)]


def _figures(index: ShardIndex, *, more: Sequence[Histogram]) -> str:
    plots = "\n".join(
        bars(histogram.title, counts=histogram.counts)
        for histogram in [*histograms(index.manifest), *more]
    )
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{count:,}</td><td>{human_bytes(size)}</td>"
        f"<td>{human_bytes(size / max(count, 1))}</td></tr>"
        for name, count, size in member_rows(index.manifest)
    )
    return f"""<section>
{tiles(facts(index.manifest))}
<div class="plots">
{plots}
<figure><figcaption>files of a sample</figcaption>
<table><thead><tr><th>member</th><th>samples</th><th>size</th><th>mean</th></tr></thead>
<tbody>{rows}</tbody></table></figure>
</div>
</section>"""


def _card(index: ShardIndex, i: int) -> str:
    try:
        stored = index.sample(i)
    except DataError as error:
        return damaged(f"sample {i}", reason=str(error))
    try:
        return _whole(stored, number=i)
    except DataError as error:
        return damaged(stored.key, reason=str(error))


def _whole(stored: StoredSample, *, number: int) -> str:
    record = check_record(stored.read_bytes("json"))
    fps = float(record["fps"])
    panels = dict(_panels(stored))
    details = "".join(
        f"<li>{escape(fact)}</li>" for fact in _sample_facts(record, members=stored.members)
    )
    return f"""<article>
{moving_picture(panels, fps=fps)}
<h3>{escape(stored.key)} <small>{escape(stored.shard.name)}, sample {number}</small></h3>
<ul>{details}</ul>
<p>{escape(record["caption_short"])}</p>
<p class="long">{escape(record["caption_long"])}</p>
</article>"""


def _sample_facts(record: dict, *, members: dict[str, Member]) -> Iterator[str]:
    meta = record["meta"]
    yield f"{record['height']} x {record['width']}"
    yield f"{record['frames']} frames"
    yield f"{record['fps']:g} fps"
    yield f"{record['frames'] / record['fps']:.2f} s"
    if record["has_entity_ids"]:
        yield f"{meta['num_entities']} entities ({meta['segmentation_backend']})"
    if record["has_depth"]:
        yield f"depth ({meta['depth_backend']})"
    yield f"from {meta['source']}"
    yield human_bytes(sum(member.size for member in members.values()))


def _panels(stored: StoredSample) -> Iterator[tuple[str, UInt8[np.ndarray, "t h w 3"]]]:
    """(name, frames) of all that the sample has; each of the size of the page."""
    rgb = stored.rgb()
    yield "video", fit(rgb, exact=False)
    for name, member in LABEL_MEMBERS.items():
        if member not in stored.members:
            continue
        labels = stored.labels(name)
        if labels.shape != rgb.shape[:3]:
            raise DataError(
                f"sample {stored.key!r}: {name}: expected {rgb.shape[:3]}, got {labels.shape}"
            )
        if name == "depth":
            disparity = labels.astype(np.float32) / np.float32(65535)
            yield "depth", fit(depth_colormap.encode(disparity), exact=False)
        else:
            yield "entity ids", fit(_paint_ids(labels, key=stored.key), exact=True)


def _paint_ids(ids: UInt16[np.ndarray, "t h w"], *, key: str) -> UInt8[np.ndarray, "t h w 3"]:
    present = np.unique(ids)
    present = present[present > 0]
    table = np.zeros(65536, np.uint16)
    table[present] = np.arange(1, len(present) + 1)
    generator = color_generator(seed=0, epoch=0, key=key)
    # So far apart as that many colours are found at once; beyond, neighbours may look alike.
    distance = 60.0 if len(present) <= 30 else 0.0
    colors = pixelplanes.draw_colors(len(present), generator=generator, min_distance=distance)
    return pixelplanes.encode(table[ids], colors=colors)
