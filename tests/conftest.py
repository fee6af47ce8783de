"""Annotations are checked while the tests run; XLA gets eight CPU devices and optimises little.

The programs here are tiny, so compiling is nearly all of their time.
"""

import gc
import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
# Programs that several tests compile, and the command line's processes, are compiled once.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxar-tests-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import pytest
from jaxtyping import install_import_hook

HOOK = install_import_hook(["jaxar", "launch", "benchmarks"], "beartype.beartype")


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Gives back what a module compiled; programs that others share are in the cache on disk."""
    yield
    import jax

    from jaxar.training.memory import trim

    jax.clear_caches()
    gc.collect()
    trim()
