"""sample.py, whose processes look when they are done whether all samples are there.

last_to_leave.main([SAMPLES, COUNT, ARGUMENT OF SAMPLE.PY ...])
"""

import sys
from pathlib import Path

from sat_udpdiff import sample


def main(arguments: list[str]) -> int:
    """Make samples; returns the exit status, which is 1 where some of COUNT were to come still."""
    folder, count, *rest = arguments
    status = sample.main([*rest, "--output", folder])
    found = len(list(Path(folder).glob("*/sample.json")))
    if found < int(count):
        sys.stderr.write(f"{found} of {count} samples were there when this process was done\n")
        return 1
    return status
