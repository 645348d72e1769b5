"""Open files: every connection takes one, and a process may have only so many (RLIMIT_NOFILE)."""

from __future__ import annotations

import contextlib
import resource

PER_CLIENT = 2
"""A client's own connection, and one to a provider while its request is relayed."""
PER_REPLICA = 8
"""Its socket, lifeline, output, log and the watch on its end, with room for one that is being replaced."""
REST = 256
"""The database, the listeners, the operator's connections, logs, look-ups of names."""


def needed(connections: int, replicas: int) -> int:
    """How many files a gateway may have open at a time with so many clients and engine processes."""
    return PER_CLIENT * connections + PER_REPLICA * replicas + REST


def make_room(wanted: int) -> int:
    """Let this process open `wanted` files, as far as it may raise its limit by itself; gives the limit in force.

    No further than wanted, because engines inherit the limit, and programs are known that walk through or make
    room for every number that it allows. It is never lowered.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < target:
        with contextlib.suppress(OSError, ValueError):  # a sandbox may forbid it; what counts is what is in force
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return wanted if soft == resource.RLIM_INFINITY else soft


def shortage(connections: int, replicas: int, limit: int) -> str | None:
    """What an operator has to know when `limit` open files are too few; None when they are enough."""
    wanted = needed(connections, replicas)
    if limit >= wanted:
        return None
    fits = max(1, (limit - needed(0, replicas)) // PER_CLIENT)
    return (
        f"server.max_connections: {connections} connections may need {wanted} open files (two each for requests that "
        f"are relayed, and {needed(0, replicas)} for the engines, the database and the rest), but this process may "
        f"open {limit} – raise its hard limit (LimitNOFILE={wanted} in a systemd unit, or ulimit -n {wanted} before "
        f"the start), or write max_connections: {fits}"
    )
