"""Evaluations as JSON, and back.

One file holds the rows of a table: for each set of videos its groups by task with scores,
intervals, scores per video, exclusions with reasons, what each number depends on, and its cost.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data_loaders.atomic_file import write_atomically
from sat_udpdiff.config_sources import plain
from sat_udpdiff.evaluation.measure import Histogram, Score
from sat_udpdiff.evaluation.run import Cost, Evaluation, Group

VERSION = 1
"""Of the file's form."""


def write_results(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Write a file of evaluations; an older one is replaced in one step."""
    content = {"version": VERSION, "evaluations": [plain(asdict(one)) for one in evaluations]}
    text = json.dumps(
        content, indent=1, ensure_ascii=False, allow_nan=False, default=_number_of_numpy
    )
    write_atomically(path, (text + "\n").encode())


def _number_of_numpy(value: object) -> Any:
    """Facts and scores may be numpy's numbers, which JSON does not know."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"expected text or a number, got {type(value).__name__}")


def read_results(path: Path) -> list[Evaluation]:
    """The evaluations of a file of `write_results`.

    Raises:
        ValueError: It cannot be read, or is no such file; names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["version"]
        if version != VERSION:
            raise ValueError(f"version: expected {VERSION}, got {version}")
        return [_evaluation(one) for one in content["evaluations"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or repr(error)
        raise ValueError(f"{path}: expected results of an evaluation: {reason}") from error


def _evaluation(values: Mapping[str, Any]) -> Evaluation:
    costs = {name: Cost(**cost) for name, cost in values["costs"].items()}
    groups = tuple(_group(group) for group in values["groups"])
    return Evaluation(**{**values, "groups": groups, "costs": costs})


def _group(values: Mapping[str, Any]) -> Group:
    scores = tuple(_score(score) for score in values["scores"])
    histograms = tuple(_histogram(histogram) for histogram in values["histograms"])
    lists = {"scores": scores, "histograms": histograms, "videos": tuple(values["videos"])}
    return Group(**{**values, **lists})


def _histogram(values: Mapping[str, Any]) -> Histogram:
    shares = {of: tuple(some) for of, some in values["shares"].items()}
    return Histogram(**{**values, "edges": tuple(values["edges"]), "shares": shares})


def _score(values: Mapping[str, Any]) -> Score:
    interval = values["interval"]
    return Score(**{**values, "interval": None if interval is None else tuple(interval)})
