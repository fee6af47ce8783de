"""What Python costs: compilations after the first, and microseconds for each step dispatched."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"
"""Event of JAX at the end of every compilation."""

TINY = ("model.width=16", "model.depth=(1,1)", "model.heads=2", "batch_size=1")
"""A step of xar_digits so small that a device is never the limit."""

_found: list[str] = []


@contextlib.contextmanager
def compilations() -> Iterator[Callable[[], int]]:
    """Gives the function that returns how many programs were compiled since the block began."""
    if not _found:
        jax.monitoring.register_event_duration_secs_listener(_listen)
        _found.append("listening")
    before = len(_found)
    yield lambda: len(_found) - before


def _listen(event: str, duration_secs: float, **kwargs: Any) -> None:
    if event == COMPILED:
        _found.append(event)


def overhead(steps: int = 200) -> dict[str, float]:
    """Returns microseconds a training step takes to dispatch, over `steps` of a tiny model.

    `thread` is the processor time of the thread that dispatches, `wall` the time that passes until
    the last dispatch returns: it is more where the device is a CPU that other work shares. `least`
    is the thread's time for a program that only gives the `arrays` of state and batch back: the
    runtime's own, which no step can be faster than.
    """
    from benchmarks import programs

    program = programs.make(programs.load("xar_digits", TINY, None), "train")
    program.run(10)
    spent, last = _spent(lambda: program.dispatch(steps))
    jax.block_until_ready(last)
    given = jax.tree.leaves(program.compiled.in_avals)
    held = [jax.numpy.zeros(array.shape, array.dtype) for array in given]
    same = jax.jit(lambda arrays: arrays, donate_argnums=0).lower(held).compile()

    def back():
        nonlocal held
        for _ in range(steps):
            held = same(held)

    back()
    least, _ = _spent(back)
    found = {kind: seconds / steps * 1e6 for kind, seconds in spent.items()}
    return {**found, "least": least["thread"] / steps * 1e6, "arrays": len(given)}


def _spent(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Returns seconds that passed, and those of this thread, and the result."""
    wall, thread = time.perf_counter(), time.thread_time()
    result = work()
    wall, thread = time.perf_counter() - wall, time.thread_time() - thread
    return {"wall": wall, "thread": thread}, result
