"""Latents and text embeddings of a data set, as folders of shards hold them.

A cache has one shard for each shard of the clips, with the same samples in the same places, so that
the order of training is the same. A sample is these members, read one by one:

    {key}.video.safetensors     posterior of the RGB: mean and log-variance (t, c, h, w)
    {key}.depth.safetensors     the same of the depth map                      (if depth is a task)
    {key}.seg0.safetensors ...  the same of the ids in each of k colourings    (if they are)
    {key}.short.safetensors     embedding (n, d) of the short caption
    {key}.long.safetensors      of the long one, unless it is the same
    {key}.empty.safetensors     of no caption, where that is not zeros (first sample of a shard)
    {key}.json                  the record of the clip

Posteriors are unscaled and everything is in its encoder's own dtype: nothing is rounded on the way.
A sample whose clip is damaged has no members and says why.
"""

from sat_udpdiff.config import Config, Task

KIND = "latents"
"""Of the manifest."""
VIDEO, DEPTH, EMPTY = "video.safetensors", "depth.safetensors", "empty.safetensors"
FORMAT = 1
"""Changes when what is stored changes its meaning."""


def colored_member(recolouring: int) -> str:
    """Member of the ids in colouring 0, 1, ..."""
    return f"seg{recolouring}.safetensors"


def caption_member(*, is_long: bool, task: Task | None) -> str:
    """Member of a caption; `task` where the caption names it."""
    name = "long" if is_long else "short"
    return f"{name}.safetensors" if task is None else f"{name}.{task}.safetensors"


def named_tasks(config: Config) -> tuple[Task | None, ...]:
    """The tasks that captions name: none but in the prompt ablation."""
    return config.data.tasks if config.model.task_signal == "prompt" else (None,)
