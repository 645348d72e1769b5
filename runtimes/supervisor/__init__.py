"""Starts, watches, drains, stops and restarts the engine processes of this box."""

from __future__ import annotations

from runtimes.supervisor.machine import Phase, Rules
from runtimes.supervisor.process import Launcher, LocalLauncher
from runtimes.supervisor.replica import ReplicaView
from runtimes.supervisor.spec import ReplicaKey, ReplicaSpec, SpecError, run_directory, socket_path
from runtimes.supervisor.supervisor import Choose, Lease, Subscription, Supervisor

__all__ = [
    "Choose",
    "Launcher",
    "Lease",
    "LocalLauncher",
    "Phase",
    "ReplicaKey",
    "ReplicaSpec",
    "ReplicaView",
    "Rules",
    "SpecError",
    "Subscription",
    "Supervisor",
    "run_directory",
    "socket_path",
]
