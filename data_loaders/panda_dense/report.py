"""What lies beside the shards for people to read: figures, a page, and the data set card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_loaders.atomic_file import write_atomically
from data_loaders.panda_dense.manifest import joined_rows
from data_loaders.panda_dense.models import ModelFacts
from data_loaders.panda_dense.statistics import Statistics, draw, entity_groups
from data_loaders.panda_dense.store import Store
from data_loaders.shards import ShardIndex

CARD, FIGURES, PICTURE, PAGE = "README.md", "statistics.json", "statistics.png", "index.html"


def write_reports(
    store: Store, stages: Sequence[str], *, makers: Mapping[str, ModelFacts], shards: Path
) -> None:
    """Write card, figures, picture and page, each whole or not at all.

    Args:
        store: The data set, through all stages.
        stages: All of them but the last, in their order.
        makers: What made the labels, by stage.
        shards: Folder of the shards to show clips of.

    Raises:
        OSError: The disk is full or not writable.
    """
    # Here: the colours of ids come with torch.
    from data_loaders.shard_page import page

    statistics = Statistics.of(joined_rows(store, stages))
    figures = json.dumps(statistics.to_json(), indent=1)
    write_atomically(store.root / FIGURES, figures.encode())
    write_atomically(store.root / PICTURE, draw(statistics))
    write_atomically(store.root / CARD, card(statistics, makers=makers).encode())
    content = page(ShardIndex.open(shards), more=statistics.histograms())
    write_atomically(store.root / PAGE, content.encode())


def card(statistics: Statistics, *, makers: Mapping[str, ModelFacts]) -> str:
    """The data set card: what it is, what made it, what may be done with it.

    Args:
        statistics: Of the data set.
        makers: What made the labels, by stage.

    Returns:
        Markdown with the header that hubs read.
    """
    labels = "\n".join(
        f"| {stage} | {facts.backend} | {facts.model or '-'} | {facts.revision or '-'} "
        f"| {facts.version or '-'} | {facts.license or '-'} |"
        for stage, facts in makers.items()
    )
    reasons = "\n".join(
        f"| {stage} | {reason} | {count:,} |"
        for (stage, reason), count in statistics.rejections.most_common()
    )
    groups = entity_groups(statistics.entities)
    entities = "\n".join(f"| {group} | {count:,} |" for group, count in groups.items() if count)
    measures = "\n".join(
        f"| {summary['meaning']} | {summary['mean']:.4g} | {summary['quantiles']['0.05']:.4g} "
        f"| {summary['quantiles']['0.5']:.4g} | {summary['quantiles']['0.95']:.4g} |"
        for summary in statistics.to_json()["measures"].values()
    )
    return f"""---
task_categories: [text-to-video, image-segmentation, depth-estimation]
tags: [video, entity-segmentation, depth, webdataset]
license: other
---
# Panda-Dense

{statistics.kept:,} clips of {statistics.listed:,} that were looked at: video, a short and a long
caption, entity masks and depth. Made with `python -m data_loaders.panda_dense`.
{_warnings(makers)}
* `shards/`: for training; `heldout/`: for evaluation, of source videos that are not in `shards/`.
  Both are webdataset tars: `KEY.mp4` (or `.mkv`, exact), `KEY.seg.mkv` (entity ids, 0 = unlabelled,
  the same id through the clip), `KEY.depth.mkv` (disparity of 16 bits, min-max over the clip, 65535
  = nearest), `KEY.txt`, `KEY.long.txt`, `KEY.json`.
* `manifest.parquet`: every clip that was looked at, also those left out, with all figures.
* `statistics.json`, `statistics.png`, `index.html`: the figures, and clips to look at.

## What made the labels

| stage | backend | model | revision | library | licence of the weights |
|---|---|---|---|---|---|
{labels}

The videos keep the terms of their sources: those of Panda-70M are for research, and are not to be
passed on. Labels come under the licences of the weights that made them, too.

## Entities per clip

| entities | clips |
|---|---|
{entities}

## Figures of the clips

| | mean | 5 % | median | 95 % |
|---|---|---|---|---|
{measures}

## Clips left out

| stage | reason | clips |
|---|---|---|
{reasons or "| - | none | 0 |"}
"""


def _warnings(makers: Mapping[str, ModelFacts]) -> str:
    lines = []
    labels = ("segment", "propagate")
    classical = [s for s in labels if s in makers and makers[s].backend == "classical"]
    if classical:
        lines.append(
            f"**Not for results:** the entities ({', '.join(classical)}) come from superpixels and "
            "optical flow, not from a model; they are regions of one colour that drift."
        )
    depth, caption = makers.get("depth"), makers.get("caption")
    if depth is not None and depth.backend == "none":
        lines.append("There is no depth: no model was given.")
    if caption is not None and caption.backend == "given":
        lines.append(
            "No model wrote captions: the long ones are those of the source, else the short."
        )
    return "".join(f"\n> {line}\n" for line in lines)
