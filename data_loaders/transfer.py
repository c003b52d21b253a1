"""Addresses that data may come from, and how patiently they are asked."""

import logging
import time
from collections.abc import Callable
from errno import ENOSPC
from typing import Any, TypeVar

import fsspec

from data_loaders.schema import DataError

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

# What to install for a scheme; '' = nothing.
SCHEMES = {
    "file": "",
    "http": "aiohttp",
    "https": "aiohttp",
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "memory": "",
}
_PAUSES = (1.0, 2.0, 4.0)
"""Seconds before each further try of a transfer."""
_SECONDS_OF_SILENCE = 60.0
"""A server that sends nothing for so long is given up; how long a file takes is not limited."""


class TransportError(OSError):
    """The network, the server or the disk for copies failed: no clip is known to be damaged."""


class MissingPackageError(DataError):
    """A scheme needs a package that is not installed."""


def file_system(url: str) -> Any:
    """The fsspec file system of an address.

    Raises:
        MissingPackageError: A package is missing; names what to install.
    """
    scheme = url.split(":", 1)[0]
    options: dict[str, Any] = {}
    try:
        if SCHEMES[scheme] == "aiohttp":
            import aiohttp

            # The default ends every transfer after 5 minutes.
            silence = _SECONDS_OF_SILENCE
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=silence, sock_read=silence)
            options["client_kwargs"] = {"timeout": timeout}
        return fsspec.filesystem(scheme, **options)
    except ImportError as error:
        package = SCHEMES[scheme]
        raise MissingPackageError(
            f"{url}: {scheme}:// needs {package}: pip install {package}"
        ) from error


def try_often(transfer: Callable[[], _Result], *, url: str) -> _Result:
    """Result of a transfer, tried again where that may help.

    Args:
        transfer: Raises whatever goes wrong; a `DataError` of its own is taken as damage under way.
        url: For the error.

    Raises:
        TransportError: Names the address and the last fault.
        MissingPackageError: A package is missing.
    """
    for tries, pause in enumerate((*_PAUSES, None), start=1):
        try:
            return transfer()
        except MissingPackageError:
            raise
        except Exception as error:
            why = "no such file" if isinstance(error, FileNotFoundError) else str(error)
            why = why or type(error).__name__
            if pause is None or _is_final(error):
                raise TransportError(f"{url}: cannot be fetched (tries: {tries}): {why}") from error
            _log.warning("%s: trying again in %g s: %s", url, pause, why)
            time.sleep(pause)
    raise AssertionError("unreachable")


def _is_final(error: Exception) -> bool:
    if isinstance(error, FileNotFoundError | PermissionError):
        return True
    if isinstance(error, OSError) and error.errno == ENOSPC:
        return True
    status = getattr(error, "status", None)
    # 408 and 429: the server asks for another try.
    return isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
