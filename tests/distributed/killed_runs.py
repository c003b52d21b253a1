"""Runs of train.py that are killed at random instants, and started again until they end.

    python killed_runs.py PLAN.json RESULT.json

One run is left alone; the others must equal it. Each process is a fork of this one, as in
forked_runs.py. SIGKILL falls on one process or on all, at a random time after the start, or right
before a random one of the file operations of a save. The clock of every start jumps at a random
time, too. PLAN.json holds the fields of `Plan`; RESULT.json will hold those of `Result`.
"""

import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from sat_udpdiff import train
from sat_udpdiff.free_port import free_port
from sat_udpdiff.training.checkpoint_files import STAGING
from sat_udpdiff.training.hang_watch import HUNG
from sat_udpdiff.weights.run_folder import find_latest, step_folders
from tests.parallel.forked_runs import be_rank, import_for

PATIENCE = 120.0
"""Seconds that the others have to end when a process was killed, on a busy machine."""
_WRITES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}
_TIMED = re.compile("second|rank_lag")
"""Names of what no two runs have alike."""
_MET, _BEGUN = b"m", b"b"
"""What a rank writes when it has met the others, and when its steps begin; its number is written
before a file operation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is to be done."""

    arguments: list[str]
    """Of train.py, but for run.output."""
    folder: str
    """Of the runs."""
    saves: int
    """In a run."""
    kills: int
    kills_per_run: int
    seed: int
    ranks: int = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Strike:
    """When a start is killed; never, as it stands."""

    victims: tuple[int, ...] = ()
    """Ranks; the first of them meets the operation."""
    seconds: float = inf
    """After the start."""
    operation: int = 0
    """Number of a file operation within saves, from 1; 0 = none."""

    @property
    def kind(self) -> str:
        return "operation" if self.operation else "time"


@dataclass(frozen=True, kw_only=True, slots=True)
class Kill:
    """What came of one."""

    kind: str
    victims: tuple[int, ...]
    seconds: float
    """After the start."""
    was_before_meeting: bool
    """The ranks had not heard of each other; a launcher ends the others then, and so do we: they
    would wait for the timeout of the process group."""
    was_starting: bool
    """They had, and their steps had not begun. Process groups are made there, in which a rank may
    wait for one that is gone; the hang watch ends it, `run.hang_minutes` later."""
    was_saving: bool
    """A checkpoint was begun and not yet the latest, or an old one half deleted."""
    resumed: int
    """Steps done when the start began."""
    done: int
    """Steps done when it ended."""
    kept: int
    """Steps that the newest whole checkpoint had."""
    others_seconds: float
    """Until the other ranks had ended by themselves; 0 where there were none."""

    @property
    def lost(self) -> int:
        """Steps to be done again."""
        return self.done - self.kept


@dataclass(kw_only=True, slots=True)
class Result:
    """What was seen; `faults` must be empty."""

    kills: list[Kill] = field(default_factory=list)
    runs: int = 0
    """That were killed, resumed and compared."""
    seconds: float = 0.0
    """In all."""
    unbroken_seconds: float = 0.0
    """From the start to the end of the run that was left alone."""
    faults: list[str] = field(default_factory=list)


class Start:
    """The processes of one start of the program, until all have ended.

    Args:
        program: Takes the arguments.
        arguments: Of the program.
        ranks: Number of processes.
        logs: Folder, there, in which each rank has a file.
        strike: When to kill.
        clock_jump: Seconds after the start, and seconds by which `time.time` is wrong from then on.
    """

    def __init__(
        self,
        program: Callable[[list[str]], int],
        arguments: list[str],
        *,
        ranks: int,
        logs: Path,
        strike: Strike,
        clock_jump: tuple[float, float],
    ) -> None:
        self.strike, self.begin = strike, time.monotonic()
        self.struck: float | None = None
        """Moment of the first death."""
        self.ends: dict[int, tuple[int, float]] = {}
        """Rank -> exit status, negative for a signal, and moment."""
        self.words = b""
        """What the processes said of themselves."""
        self.has_hung = False
        self.num_met = 0
        """Ranks that had found the others when the first was killed, or ever."""
        self.num_begun = 0
        """Ranks whose steps had begun, likewise."""
        self._ear, mouth = os.pipe()
        os.set_blocking(self._ear, False)
        port = free_port()
        self.ranks: dict[int, int] = {}
        """Process id -> rank."""
        for rank in range(ranks):
            child = os.fork()
            if child == 0:
                same = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
                own = {"MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
                os.environ |= same | own
                _tell_of(mouth, "train", word=_MET)
                _tell_of(mouth, "run", word=_BEGUN)
                is_first = strike.victims[:1] == (rank,)
                _watch_saves(mouth, rank=rank, last=strike.operation if is_first else 0)
                _set_clock(clock_jump)
                os._exit(be_rank(partial(program, arguments), log=logs / f"rank{rank}"))
            self.ranks[child] = rank
        os.close(mouth)

    def wait(self) -> None:
        """Until all processes have ended, of which the victims are killed at their time."""
        while self._alive():
            self._reap()
            self._listen()
            now = time.monotonic()
            if self.struck is None and now - self.begin > self.strike.seconds:
                self._kill(self.strike.victims)
                self._note_strike(now)
            elif self.struck is not None and now - self.struck > PATIENCE and self._alive():
                self.has_hung = True
                self._kill(self._alive())
            time.sleep(0.003)
        self._listen()
        if self.struck is None:
            self._count()
        os.close(self._ear)

    def operations(self, rank: int) -> int:
        """File operations of a rank in its saves."""
        return self.words.count(str(rank).encode())

    def process_of(self, rank: int) -> int:
        """Its id."""
        return next(process for process, other in self.ranks.items() if other == rank)

    def _alive(self) -> list[int]:
        return [rank for rank in self.ranks.values() if rank not in self.ends]

    def _listen(self) -> None:
        try:
            self.words += os.read(self._ear, 65536)
        except BlockingIOError:
            return

    def _reap(self) -> None:
        for rank in self._alive():
            child, status = os.waitpid(self.process_of(rank), os.WNOHANG)
            if child:
                self.ends[rank] = os.waitstatus_to_exitcode(status), time.monotonic()
                if self.struck is None and self.ends[rank][0] == -signal.SIGKILL:
                    # By its own hand, before an operation; the other victims follow.
                    self._kill(self.strike.victims)
                    self._note_strike(self.ends[rank][1])

    def _note_strike(self, moment: float) -> None:
        self.struck = moment
        self._listen()
        self._count()
        if self.num_met < len(self.ranks):
            self._kill(self._alive())

    def _count(self) -> None:
        self.num_met, self.num_begun = self.words.count(_MET), self.words.count(_BEGUN)

    def _kill(self, ranks: tuple[int, ...] | list[int]) -> None:
        for rank in ranks:
            if rank not in self.ends:
                os.kill(self.process_of(rank), signal.SIGKILL)


def _tell_of(mouth: int, name: str, *, word: bytes) -> None:
    """Write `word` when a rank comes to the function `name` of train.py."""
    work = getattr(train, name)

    def tell_and_work(*arguments: Any, **settings: Any) -> bool:
        os.write(mouth, word)
        return work(*arguments, **settings)

    setattr(train, name, tell_and_work)


def _watch_saves(mouth: int, *, rank: int, last: int) -> None:
    """Tell of each file operation of a save; the one numbered `last` is not reached any more."""
    count = 0

    def see(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in _WRITES and any(STAGING in str(word) for word in arguments[:2]):
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)
            os.write(mouth, str(rank).encode())

    sys.addaudithook(see)


def _set_clock(jump: tuple[float, float]) -> None:
    """Python's clock of the day; durations are measured by the other one."""
    right, (after, by), begin = time.time, jump, time.monotonic()
    time.time = lambda: right() + (by if time.monotonic() - begin > after else 0.0)


class Trial:
    """Makes the runs of a plan.

    Args:
        plan: What is to be done.
        program: `main` of train.py.
        tell: Called with a line after each kill.
    """

    def __init__(
        self, plan: Plan, *, program: Callable[[list[str]], int], tell: Callable[[str], None]
    ) -> None:
        self._plan, self._program, self._tell = plan, program, tell
        self._folder, self._draw = Path(plan.folder), random.Random(plan.seed)
        self._unbroken = self._folder / "unbroken"
        self._operations: dict[int, int] = {}
        """Of each rank in a save."""
        self.result = Result()

    def make(self) -> Result:
        """All of it; ends early at a fault."""
        begin = time.monotonic()
        start = self._start(self._unbroken, Strike())
        self.result.unbroken_seconds = time.monotonic() - begin
        for rank in range(self._plan.ranks):
            self._operations[rank] = start.operations(rank) // self._plan.saves
        while len(self.result.kills) < self._plan.kills and not self.result.faults:
            run = self._folder / f"run_{self.result.runs}"
            self._break(run)
            if not self.result.faults:
                self.result.faults += differences(run, self._unbroken)
            self.result.runs += 1
        self.result.seconds = time.monotonic() - begin
        return self.result

    def _break(self, run: Path) -> None:
        """Start a run until it ends."""
        left = min(self._plan.kills_per_run, self._plan.kills - len(self.result.kills))
        while not self.result.faults:
            strike = self._next_strike() if left else Strike()
            resumed, before = _step_kept(run), _unfinished(run)
            start = self._start(run, strike)
            if start.struck is None:
                return
            left -= 1
            beat = _read_beat(run)
            is_own = beat.get("pid") == start.process_of(0)
            others = [end for rank, (_, end) in start.ends.items() if rank not in strike.victims]
            kill = Kill(
                kind=strike.kind,
                victims=strike.victims,
                seconds=round(start.struck - start.begin, 3),
                was_before_meeting=start.num_met < self._plan.ranks,
                was_starting=start.num_met == self._plan.ranks > start.num_begun,
                was_saving=bool(_unfinished(run) - before),
                resumed=resumed,
                done=max(resumed, beat["step"]) if is_own else resumed,
                kept=_step_kept(run),
                others_seconds=round(max(others, default=start.struck) - start.struck, 3),
            )
            self.result.kills.append(kill)
            if kill.kept < kill.resumed:
                self.result.faults.append(f"{run}: a checkpoint was lost: {kill}")
            self._tell(f"{len(self.result.kills)}: {kill}")

    def _next_strike(self) -> Strike:
        order = self._draw.sample(range(self._plan.ranks), self._plan.ranks)
        victims = tuple(order[: self._draw.choice([1, self._plan.ranks])])
        if len(self.result.kills) % 2:
            seconds = self._draw.uniform(0, self.result.unbroken_seconds)
            return Strike(victims=victims, seconds=seconds)
        # In the first or the second save of the start.
        operation = self._draw.randint(1, 2 * self._operations[victims[0]])
        return Strike(victims=victims, operation=operation)

    def _start(self, run: Path, strike: Strike) -> Start:
        logs = self._folder / "logs" / f"{run.name}_{len(self.result.kills)}"
        logs.mkdir(parents=True)
        longest = self.result.unbroken_seconds or 10.0
        jump = self._draw.uniform(0, longest), self._draw.uniform(-1e7, 1e7)
        start = Start(
            self._program,
            [*self._plan.arguments, f"run.output={run}"],
            ranks=self._plan.ranks,
            logs=logs,
            strike=strike,
            clock_jump=jump,
        )
        start.wait()
        self.result.faults += _faults(start, logs=logs)
        return start


def _faults(start: Start, *, logs: Path) -> list[str]:
    """What a start did that it must not do, with what its ranks wrote."""
    faults = []
    if start.has_hung:
        faults.append(f"the others did not end within {PATIENCE:g} s")
    for rank, (status, _) in start.ends.items():
        text = (logs / f"rank{rank}").read_text() if (logs / f"rank{rank}").exists() else ""
        may = {0} if start.struck is None else {0, 1, -signal.SIGKILL}
        if start.struck is not None and start.num_begun < len(start.ranks):
            may |= {HUNG}
        if status not in may or "Traceback" in text:
            faults.append(f"rank {rank} ended with {status}: {text}")
    return faults


def _read_beat(run: Path) -> Mapping[str, Any]:
    """The heartbeat, which is written in every step; empty before the first."""
    path = run / "heartbeat.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _step_kept(run: Path) -> int:
    """Steps of the newest checkpoint, of which every byte is right; 0 where there is none."""

    def refuse(message: str) -> None:
        raise AssertionError(f"a kill damaged what it must not: {message}")

    found = find_latest(run, verify=True, tell=refuse)
    return found.step if found else 0


def _unfinished(run: Path) -> set[tuple[str, int]]:
    """Names and times of what a save has begun and not ended."""
    folder = run / "checkpoints"
    names = {(path.name, path.stat().st_ctime_ns) for path in folder.glob(f"{STAGING}*")}
    newest = [path for path in step_folders(run)[:1] if path.name != _latest(folder)]
    return names | {(path.name, path.stat().st_ctime_ns) for path in newest}


def _latest(folder: Path) -> str:
    path = folder / "latest"
    return path.read_text().strip() if path.exists() else ""


def logged(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl, but for what was timed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if not _TIMED.search(key)} for line in lines]


def differences(run: Path, other: Path) -> list[str]:
    """What two runs that must be the same do not have in common, byte by byte and line by line."""
    found = []
    if logged(run) != logged(other):
        found.append(f"{run}: logged {logged(run)}, not {logged(other)}")
    newest, expected = step_folders(run)[0], step_folders(other)[0]
    if newest.name != expected.name or newest.name != _latest(newest.parent):
        return [*found, f"{run}: ended with {newest.name}, not {expected.name}"]
    found += [
        f"{run}: {path.name} differs"
        for path in sorted(expected.glob("*.safetensors"))
        if path.read_bytes() != (newest / path.name).read_bytes()
    ]
    states = [json.loads((folder / "state.json").read_text()) for folder in (newest, expected)]
    found += [
        f"{run}: {key} is {states[0][key]}, not {states[1][key]}"
        for key in ("state", "counters", "ema_updates")
        if states[0][key] != states[1][key]
    ]
    if left := [path.name for path in newest.parent.glob(f"{STAGING}*")]:
        found.append(f"{run}: left behind {left}")
    return found


def main() -> int:
    """Make the plan; returns the exit status."""
    plan, result = map(Path, sys.argv[1:])
    import_for("sample")  # the frozen networks
    import_for("train")
    trial = Trial(
        Plan(**json.loads(plan.read_text())),
        program=train.main,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    result.write_text(json.dumps(asdict(trial.make())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
