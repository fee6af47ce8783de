"""Every config of the project, small enough to run in seconds."""

from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

from jaxar import config as configs
from jaxar.assembly import build_autoencoder, build_system
from jaxar.data.source import Arrays
from jaxar.nn.module import params_of
from jaxar.runs.load import TOKENIZER
from jaxar.tree import paths

NAMES = sorted(path.stem for path in configs.files(Path(__file__).parents[1] / "configs"))


def shrunk(name, *overrides):
    """Returns a config with its plan, data and flow as they are, and a tiny network and run."""
    config = configs.load(name)
    small = [
        "model.width=16",
        f"model.depth={_shallow(config)}",
        "model.heads=2",
        "model.buffer=2",
        "model.dtype=float32",
        "head.width=16",
        "head.depth=2",
        "head.heads=2",
        "head.dtype=float32",
        "batch_size=4",
        "steps=4",
        "optimizer.warmup_steps=1",
        "workers=0",
        "mesh.data=1",
        "autoencoder.weights=''",  # of another run, which is not there
        "sample.steps=3",
        "sample.iterations=4",
        "sample.every=0",
        "sample.classes=2",
        "sample.per_class=2",
        "log_every=2",
        "checkpoint.every=2",
    ]
    fields = {line.split("=")[0].strip() for line in configs.render(config).splitlines()}
    small = [word for word in small if word.split("=")[0] in fields]
    if "levels" in config.autoencoder:
        small += ["autoencoder.width=16", "autoencoder.multipliers=(1,1)", "autoencoder.blocks=1"]
        small += ["autoencoder.attention=(1,)", "quantizer.vocabulary=32", "quantizer.channels=8"]
        small += ["data_shape=(4,4,8)", "plan.sizes=(1,2,3,4)", "autoencoder.levels=(1,2,3,4)"]
    elif config.data_shape == (16, 16, 32):  # the papers' latents: four cells still, or 3 scales
        plans = {"cell": ["plan.height=2", "plan.width=2"], "scale": ["plan.sizes=(1,2,4)"]}
        small += ["data_shape=(4,4,32)", *plans.get(config.plan.name, [])]
    return configs.override(config, [*small, *overrides])


def _shallow(config):
    """Returns the depth of a tiny network: of one stack or of two."""
    return 2 if isinstance(config.model.get("depth"), int) else (2, 2)


def with_autoencoder(config, folder):
    """Returns the config with an autoencoder of random weights, where its system needs one."""
    if not getattr(build_system(config), "autoencoder", False):
        return config
    rng = np.random.default_rng(1)
    template = paths(params_of(build_autoencoder(config)))
    folder.mkdir()
    save_file(
        {
            path: rng.normal(0, 0.1, leaf.shape).astype(np.float32)
            for path, leaf in template.items()
        },
        folder / TOKENIZER,
    )
    return configs.override(config, [f"autoencoder.weights={str(folder)!r}"])


def arrays(config, count=12, seed=0):
    """Returns a source of random records of the config's shape."""
    rng = np.random.default_rng(seed)
    data = rng.uniform(-1, 1, (count, *config.data_shape)).astype(np.float32)
    return Arrays(data, np.arange(count) % config.num_classes, config.num_classes)


def system_and_params(name, *overrides):
    """Returns the shrunk system and parameters that make every part matter."""
    config = shrunk(name, *overrides)
    system = build_system(config)
    params = system.init(jax.random.key(0))
    return config, system, params
