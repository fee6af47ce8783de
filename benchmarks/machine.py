"""What a figure was measured on: versions, processors, and how busy they were."""

import importlib.metadata
import os
import platform
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "libtpu", "torch")


def cores() -> int:
    """Returns the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
