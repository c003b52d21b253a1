"""The stages in their order, made from the settings."""

from data_loaders.panda_dense.caption import CaptionStage
from data_loaders.panda_dense.cut import CutStage
from data_loaders.panda_dense.depth import DepthStage
from data_loaders.panda_dense.filter import FilterStage
from data_loaders.panda_dense.ingest import IngestStep
from data_loaders.panda_dense.propagate import PropagateStage
from data_loaders.panda_dense.runner import check_run
from data_loaders.panda_dense.segment import SegmentStage
from data_loaders.panda_dense.select import SelectStep
from data_loaders.panda_dense.settings import PandaConfig, resolve_device
from data_loaders.panda_dense.stage import Stage
from data_loaders.panda_dense.steps import PartStep, Step
from data_loaders.panda_dense.store import Store
from data_loaders.panda_dense.write import WriteStep

STAGES = (
    "ingest",
    "filter",
    "select",
    "cut",
    "segment",
    "propagate",
    "depth",
    "caption",
    "write",
)


def make_steps(store: Store, *, config: PandaConfig) -> list[Step]:
    """All stages of a data set.

    Args:
        store: The data set in the making.
        config: Its settings.

    Raises:
        DataError: `run.device` is not there, or another setting of `run` is out of range.
    """
    check_run(config.run)
    device = resolve_device(config.run.device)
    videos = config.ingest.videos
    stages: dict[str, Stage] = {
        "filter": FilterStage(
            config.filter,
            clip=config.clip,
            thresholds=config.select.thresholds,
            videos=videos,
            device=device,
        ),
        "cut": CutStage(config.clip, videos=videos),
        "segment": SegmentStage(config.segment, device=device),
        "propagate": PropagateStage(config.propagate, segment=config.segment, device=device),
        "depth": DepthStage(config.depth, device=device),
        "caption": CaptionStage(config.caption, device=device),
    }
    steps: list[Step] = []
    for place, name in enumerate(STAGES):
        after = STAGES[place + 1 : -1]
        if name == "ingest":
            step: Step = IngestStep(store, ingest=config.ingest, after=after, settings=config.run)
        elif name == "select":
            step = SelectStep(
                store, select=config.select, before=steps, after=after, settings=config.run
            )
        elif name == "write":
            step = WriteStep(
                store,
                before=steps,
                write=config.write,
                settings=config.run,
            )
        else:
            step = PartStep(store, stages[name], before=steps, after=after, settings=config.run)
        steps.append(step)
    return steps
