"""`fit` on a system of two matrices, in a process of its own: for tests that start many of them.

python -m tests.toy WORKDIR [--processes=2 --process_id=0 --coordinator=...] [field=value ...]
"""

import argparse
import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxar import checkpoint, tree
from jaxar import config as configs
from jaxar.data.source import Arrays
from jaxar.nn.dropout import dropout
from jaxar.parallel import distributed, sharding
from jaxar.training.loop import fit

WIDTH = 8


class Toy:
    """Two matrices that learn to give back what went in, with dropout between them."""

    shows = "samples"

    def init(self, key):
        up, down = jax.random.split(key)
        return {
            "up": {"kernel": jax.random.normal(up, (WIDTH, 4 * WIDTH)) / 4},
            "down": {"kernel": jax.random.normal(down, (4 * WIDTH, WIDTH)) / 4},
        }

    @property
    def frozen(self):
        return {}

    def loss(self, params, frozen, batch, key):
        x = batch["data"].reshape(len(batch["data"]), -1)
        hidden = dropout(jnp.tanh(x @ params["up"]["kernel"]), 0.1, key)
        loss = jnp.mean(jnp.square(hidden @ params["down"]["kernel"] - x))
        return loss, {"loss": loss}

    def settle(self, params, seen, key):
        return params


class Troubled(Arrays):
    """Random data that take their time, and from some read on never come, or cannot be read."""

    def __init__(self, pause=0.0, hangs_after=10**9, fails_after=10**9):
        data = np.random.default_rng(0).normal(size=(40, 2, 4, 1)).astype(np.float32)
        super().__init__(data, np.arange(40) % 10, 10)
        self._trouble, self._reads = (pause, hangs_after, fails_after), 0

    def read(self, index, rng):
        pause, hangs_after, fails_after = self._trouble
        self._reads += 1
        time.sleep(3600 if self._reads > hangs_after else pause)
        if self._reads > fails_after:
            raise KeyError("a mistake")
        return super().read(index, rng)


def settings(*overrides):
    """Returns the config of such a run."""
    config = configs.override(
        configs.load("xar_digits"),
        [
            "batch_size=8",
            "steps=8",
            "optimizer.warmup_steps=1",
            "log_every=1",
            "sample.every=0",
            "checkpoint.every=4",
            "checkpoint.keep=99",
            "mesh.data=2",
            "mesh.fsdp=2",
        ],
    )
    return configs.override(config, overrides)


def watch(dies_at):
    """Has the run print a hash of every batch, and of every state that is saved or restored."""
    store = checkpoint.Checkpoints
    save, restore, spread = store.save, store.restore, sharding.spread

    def tell(what, values):
        print(what, tree.digest(values, distributed.gathered), flush=True)

    def saved(self, step, state, record):
        save(self, step, state, record)
        tell(f"saved {step}", state)
        if step == dies_at:
            self.wait()
            sys.stdout.flush()
            os._exit(9)

    def restored(self, step, *rest, **options):
        state = restore(self, step, *rest, **options)
        tell(f"restored {step}", state)
        return state

    def spreading(*arguments):
        place = spread(*arguments)

        def told(batch):
            whole = place(batch)
            tell("batch", whole)
            return whole

        return told

    store.save, store.restore, sharding.spread = saved, restored, spreading


def main():
    flags = argparse.ArgumentParser()
    flags.add_argument("workdir", type=Path)
    flags.add_argument("fields", nargs="*")
    flags.add_argument("--coordinator")
    flags.add_argument("--processes", type=int)
    flags.add_argument("--process_id", type=int)
    flags.add_argument("--patience", type=float, default=300)
    flags.add_argument("--pause", type=float, default=0)
    flags.add_argument("--hangs", type=int, help="process whose data never come")
    flags.add_argument("--fails", type=int, help="process whose data cannot be read")
    flags.add_argument("--dies_at", type=int, help="step after whose save all processes die")
    known = flags.parse_args()
    distributed.start(
        coordinator=known.coordinator,
        processes=known.processes,
        process=known.process_id,
        patience=known.patience,
        stoppable=True,
    )
    here = jax.process_index()
    source = Troubled(
        known.pause,
        40 if known.hangs == here else 10**9,
        40 if known.fails == here else 10**9,
    )
    watch(known.dies_at)
    config = settings(*known.fields)
    with distributed.ending_together():
        mesh = sharding.make_mesh(config.mesh)
        fit(Toy(), {}, source, config, known.workdir, mesh, lambda *_: None)
        print("over", flush=True)


if __name__ == "__main__":
    main()
