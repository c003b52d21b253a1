"""Ports of this machine where ranks may meet."""

import socket

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """A port at which nobody listened a moment ago; each program takes its own."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]
