"""Which samples of held-out prompts are planned."""

from pathlib import Path

import pytest

from sat_udpdiff.config_io import load_config
from sat_udpdiff.held_out import HeldOutPrompt
from sat_udpdiff.held_out_samples import plan_samples

CONFIGS = Path(__file__).parents[1] / "configs"
PROMPTS = [HeldOutPrompt(number=number, text=f"clip {number}") for number in range(2)]


def planned(*files, tasks=()):
    config = load_config([str(CONFIGS / file) for file in ("tiny.yaml", *files)])
    jobs = plan_samples(PROMPTS, config=config, seed=5, folder=Path("out"), tasks=tasks)
    assert len({job.folders for job in jobs}) == len(jobs)
    return [(job.request.prompt, job.request.task, job.request.seeds[0]) for job in jobs]


def test_every_prompt_is_sampled_for_every_task_with_one_seed() -> None:
    assert planned("multitask.yaml") == [
        *(("clip 0", "segmentation", 5), ("clip 0", "depth", 5)),
        *(("clip 1", "segmentation", 6), ("clip 1", "depth", 6)),
    ]
    assert planned("baseline.yaml") == [("clip 0", None, 5), ("clip 1", None, 6)]


def test_a_network_of_two_tasks_may_be_sampled_for_one() -> None:
    depth = [("clip 0", "depth", 5), ("clip 1", "depth", 6)]
    assert planned("multitask.yaml", tasks=("depth",)) == depth


def test_tasks_that_a_network_has_not_are_refused() -> None:
    with pytest.raises(ValueError, match="trained on segmentation only"):
        planned("segmentation.yaml", tasks=("depth",))
    with pytest.raises(ValueError, match="makes no dense map"):
        planned("baseline.yaml", tasks=("depth",))
