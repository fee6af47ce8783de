"""What the device itself can do: matrix products and copies, measured.

The rate of a program is compared with the best of these rates, not with a data sheet: so the same
fraction means the same on every machine, throttled or shared ones too.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.measure import seconds

WIDTHS = {"cpu": 1024}
"""Width of the square matrices by platform, 8192 where none is named."""

COPIED = {"cpu": 1 << 27}
"""Bytes of the array that is copied, 2^30 where none are named."""


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """Rates of one device.

    Attributes:
      kind: What JAX calls the device.
      flops: Operations a second of square matrix products, by dtype.
      bandwidth: Bytes a second that a copy reads and writes together.
    """

    kind: str
    flops: dict[str, float]
    bandwidth: float


def measure(rounds: int, device: Any = None) -> Ceilings:
    """Returns the best of several rounds of each kind on one device, the first by default."""
    device = device or jax.devices()[0]
    width = WIDTHS.get(device.platform, 8192)
    rates = {}
    for dtype in ("float32", "bfloat16"):
        key = jax.device_put(jax.random.key(0), device)
        a = jax.random.normal(key, (width, width), dtype)
        spent = seconds(_chain(lambda x, a=a: (x @ a) * width**-0.5, a), rounds)
        rates[dtype] = 2.0 * width**3 / spent.least
    bytes_ = COPIED.get(device.platform, 1 << 30)
    x = jax.device_put(jnp.zeros(bytes_ // 4, jnp.float32), device)
    spent = seconds(_chain(lambda x: x + 1, x), rounds)
    return Ceilings(device.device_kind, rates, 2.0 * bytes_ / spent.least)


def _chain(step: Any, x: Any) -> Any:
    """Returns run(count), which applies a step again and again and waits for the last."""
    compiled, kept = jax.jit(step, donate_argnums=0), [jnp.copy(x)]

    def run(count: int) -> None:
        for _ in range(count):
            kept[0] = compiled(kept[0])
        kept[0].block_until_ready()

    return run
