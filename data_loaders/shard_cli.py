"""The command line of `python -m data_loaders.shards`."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from data_loaders.atomic_file import write_atomically
from data_loaders.schema import DataError
from data_loaders.shard_files import files_at
from data_loaders.shard_format import CLIPS
from data_loaders.shard_report import human_bytes, text_report
from data_loaders.shard_verify import verify
from data_loaders.shards import ShardIndex, open_manifest


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected an integer >= 0, got {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_loaders.shards", description="Look at a folder of shards."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser(
        "verify",
        help="read every byte and name all that is damaged",
        description="Read every byte of a folder of shards. Exit status 0: whole; 1: not. Of an "
        "address everything is downloaded, whatever copies there are, and removed again.",
    )
    show = commands.add_parser(
        "inspect",
        help="what a folder holds, as a table and as a page",
        description="Print figures of a folder of shards; --html writes a page with samples too.",
    )
    for command in (check, show):
        command.add_argument("folder", metavar="DIR", help="folder, or its https://, s3:// ...")
    check.add_argument("--workers", type=_count, default=0, help="processes; 0 = this one")
    check.add_argument("--decode", action="store_true", help="decode every video and label too")
    show.add_argument("--html", type=Path, metavar="PAGE", help="page to write")
    show.add_argument("--samples", type=_count, default=24, help="on the page (default 24)")
    show.add_argument("--seed", type=_count, default=0, help="of the choice of samples")
    return parser


def _verify(arguments: argparse.Namespace) -> int:
    started = time.monotonic()
    faults = samples = size = shards = bad_shards = 0
    for report in verify(
        files_at(arguments.folder), workers=arguments.workers, decode=arguments.decode
    ):
        for fault in report.faults:
            print(fault)
        faults += len(report.faults)
        samples += len(report.keys)
        size += report.bytes_read
        shards += bool(report.bytes_read or report.keys)
        bad_shards += bool(report.faults)
    state = f"{faults} fault(s), {bad_shards} file(s) damaged" if faults else "whole"
    read = f"{samples:,} samples in {shards:,} shard(s), {human_bytes(size)} read"
    print(f"{arguments.folder}: {state}: {read} in {time.monotonic() - started:.1f} s")
    return 1 if faults else 0


def _inspect(arguments: argparse.Namespace) -> int:
    manifest = open_manifest(files_at(arguments.folder))
    for line in text_report(manifest):
        print(line)
    if arguments.html is None:
        return 0
    if manifest.kind != CLIPS:
        raise DataError(
            f"--html: a page shows {CLIPS}, but {arguments.folder} holds {manifest.kind}"
        )
    # Here: the colours of ids come with torch.
    from data_loaders.shard_page import page

    content = page(
        ShardIndex.open(arguments.folder), num_samples=arguments.samples, seed=arguments.seed
    ).encode()
    write_atomically(arguments.html, content)
    print(f"\n{arguments.html}: {human_bytes(len(content))}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        Exit status: 0; 1 for shards that are damaged or cannot be read; 130 when interrupted.
    """
    arguments = _parser().parse_args(argv)
    try:
        return _verify(arguments) if arguments.command == "verify" else _inspect(arguments)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
