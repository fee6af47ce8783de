"""What a figure was measured on: versions, processors, and how busy they were."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "libtpu", "torch")


def cores() -> int:
    """Returns the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def others() -> Callable[[float], float | None]:
    """Returns the function that says how much of the machine other work has taken since.

    It takes the processor seconds that were used here, and returns the share of all processors'
    time that went to anything else, hosts of virtual machines included: None where the system does
    not count it.
    """
    busy, began = _busy(), time.perf_counter()

    def share(used: float) -> float | None:
        now, wall = _busy(), time.perf_counter() - began
        if busy is None or now is None:
            return None
        return max(0.0, now - busy - used) / (wall * (os.cpu_count() or 1))

    return share


def _busy() -> float | None:
    """Returns the seconds that the machine's processors were not idle, since it started."""
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _waiting, *interrupts = map(int, words[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def facts() -> dict[str, Any]:
    """Returns versions, processors and the load of the last minute, as JSON keeps them."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "versions": versions,
        "cores": cores(),
        "load": round(os.getloadavg()[0], 1),
    }


def line(found: dict[str, Any]) -> str:
    """Returns the facts in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"{versions}; {found['cores']} cores, load {found['load']}"
