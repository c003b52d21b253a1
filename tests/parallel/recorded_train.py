"""train.py that writes down which samples it is given.

    recorded_train.main([FOLDER, ARGUMENT OF TRAIN.PY ...])

Every rank writes FOLDER/rank0 and so on, a line of keys per micro-batch.
"""

import json
import os
from pathlib import Path

from sat_udpdiff import train


def main(arguments: list[str]) -> int:
    """Train; returns the exit status."""
    folder, *rest = arguments
    path = Path(folder) / f"rank{os.environ['RANK']}"
    path.parent.mkdir(exist_ok=True)

    class Recorded(train.Batches):
        def __next__(self):
            batch = super().__next__()
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(list(batch.keys)) + "\n")
            return batch

    train.Batches = Recorded
    return train.main(rest)
