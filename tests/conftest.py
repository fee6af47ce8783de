"""Annotations are checked while the tests run; XLA gets eight CPU devices and optimises little.

The programs here are tiny, so compiling is nearly all of their time.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

from jaxtyping import install_import_hook

HOOK = install_import_hook("jaxar", "beartype.beartype")
