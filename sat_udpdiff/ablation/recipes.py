"""What is trained, and which rows of the paper's tables it makes.

Every row is one network judged on one task. Networks that stand in several tables are trained once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sat_udpdiff.config import ConfigError, Task
from sat_udpdiff.config_values import hint
from sat_udpdiff.evaluation.paper import TITLES, PaperRow, table_rows

SHOWN = ("SC", "BC", "MS", "FVD")
"""The paper's columns that ablations are compared by, by their headers there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One way to train; all else is equal."""

    name: str
    files: tuple[str, ...]
    """Value files below configs/, after that of the family, without .yaml."""
    judged: tuple[Task | None, ...] = ("depth",)
    """Tasks that it is sampled for; None for the network without dense maps."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Its value files as a command names them."""
        return tuple(f"configs/{file}.yaml" for file in self.files)


def _arm(*files: str, judged: tuple[Task | None, ...] = ("depth",)) -> Arm:
    return Arm(name=files[-1].removeprefix("ablations/"), files=files, judged=judged)


# The order of training: what most tables need comes first.
ARMS: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (
        _arm("multitask", judged=("segmentation", "depth")),
        _arm("baseline", judged=(None,)),
        _arm("depth"),
        _arm("segmentation", judged=("segmentation",)),
        _arm("multitask", "ablations/random_channels"),
        _arm("multitask", "ablations/text_prompt"),
        _arm("segmentation", "ablations/location_aware", judged=("segmentation",)),
        _arm("multitask", "ablations/partition_03_07"),
        _arm("multitask", "ablations/partition_07_03"),
        _arm("depth", "ablations/scratch_single"),
        _arm("multitask", "ablations/scratch_multitask"),
    )
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of a table of the paper, and the network that makes it."""

    label: str
    arm: str
    task: Task | None
    paper: Mapping[str, float] = field(default_factory=dict)
    """The paper's numbers by header."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """One table of the paper, and which of its rows are held against each other."""

    name: str
    title: str
    rows: tuple[Row, ...]
    pairs: tuple[tuple[str, str], ...]
    """Labels of rows that the paper compares: what it proposes, and what that is held against."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Headers of the columns that it has."""
        return tuple(name for name in SHOWN if any(name in row.paper for row in self.rows))

    def row(self, label: str) -> Row:
        """The row of that label."""
        return next(row for row in self.rows if row.label == label)


def _row(row: PaperRow) -> Row:
    # Behind the family, which is that of the ablation.
    (arm,) = (arm for arm in ARMS.values() if arm.files == row.files[1:])
    return Row(label=row.name, arm=arm.name, task=row.task, paper=row.values)


def _table(number: int, *, pairs: Sequence[tuple[str, str]]) -> Table:
    return Table(
        name=f"Table {number}",
        title=TITLES[number],
        rows=tuple(map(_row, table_rows(number))),
        pairs=tuple(pairs),
    )


_BASELINE = table_rows(1)[0].name
_AGAINST_BASELINE = (("segmentation", _BASELINE), ("depth", _BASELINE))
_ONE, _BOTH = (_table(number, pairs=_AGAINST_BASELINE) for number in (1, 2))
# What the paper concludes from the two tables together.
_ONE_OR_BOTH = Table(
    name="Tables 1, 2",
    title="One task or both",
    rows=tuple(
        replace(table.row(task), label=f"{task}, {how}")
        for task in ("segmentation", "depth")
        for table, how in ((_ONE, "single task"), (_BOTH, "multi-task"))
    ),
    pairs=tuple(
        (f"{task}, multi-task", f"{task}, single task") for task in ("segmentation", "depth")
    ),
)
TABLES: tuple[Table, ...] = (
    _ONE,
    _BOTH,
    _ONE_OR_BOTH,
    _table(5, pairs=[("task embedding", "text prompt")]),
    _table(6, pairs=[("Pixelplanes", "location-aware")]),
    _table(7, pairs=[("0.5, 0.5", "0.3, 0.7"), ("0.5, 0.5", "0.7, 0.3")]),
    _table(10, pairs=[("duplicate", "random")]),
    _table(
        11,
        pairs=[
            ("scratch, multi-task", "scratch, single task"),
            ("CogVideoX, multi-task", "scratch, multi-task"),
        ],
    ),
)
CURVES: tuple[Row, Row] = tuple(row for row in TABLES[-1].rows if row.arm.startswith("scratch"))  # pyright: ignore[reportAssignmentType]
"""Fig. 8: these two, scored at several steps; the second one is to be the better."""
CURVE_COLUMNS = TABLES[-1].columns


def choose_arms(names: Sequence[str]) -> tuple[Arm, ...]:
    """The arms of those names in the order of training; all for none.

    Raises:
        ConfigError: There is no such arm.
    """
    for name in names:
        if name not in ARMS:
            near = hint(name, ARMS) or f" (there are {', '.join(ARMS)})"
            raise ConfigError(f"arms: no such arm{near}, got {name!r}", keys=("arms",))
    return tuple(arm for arm in ARMS.values() if not names or arm.name in names)
