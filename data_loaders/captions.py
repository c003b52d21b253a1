"""The task named in words: for the ablation without a task table (`model.task_signal: prompt`)."""

from sat_udpdiff.config import Task

TASK_PHRASES: dict[Task, str] = {
    "segmentation": "with segmentation map: ",
    "depth": "with depth map: ",
}
"""In front of the caption, in training and in sampling alike (choice; the paper gives no words)."""


def name_task(caption: str, *, task: Task) -> str:
    """The caption with its task in front."""
    return TASK_PHRASES[task] + caption
