"""Where parity files are found, and how a case becomes a state dict."""

import importlib.util
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.nn.module import bind, params_of
from jaxar.tokenizers.autoencoders import vq as vq_vae
from jaxar.tokenizers.autoencoders.vq import VQAutoencoder
from jaxar.tokenizers.quantizers.vector import VectorQuantizer

FOLDER = Path(os.environ.get("JAXAR_GOLDENS") or Path(__file__).parents[1] / "goldens")


def cases(family: str) -> list[Path]:
    """Returns the files of a family; none at all is an error, not a silent pass."""
    found = sorted([*FOLDER.glob(f"{family}.npz"), *FOLDER.glob(f"{family}_*.npz")])
    assert found, f"no {family}.npz or {family}_*.npz in {FOLDER}"
    return found


def golden_weight(key: str, shape: list[int]) -> np.ndarray:
    """Returns the weight that stands under a key, by the recipe beside the files."""
    beside = FOLDER / "recipe.py"
    path = beside if beside.exists() else Path(__file__).parents[1] / "goldens" / "recipe.py"
    module_spec = importlib.util.spec_from_file_location("golden_recipe", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module.golden_weight(key, tuple(shape))


def state_dict(case, part: str | None = None) -> dict[str, np.ndarray]:
    """Returns the released state dict that a case was run with, or one of several by name."""
    keys = json.loads(str(case["state_dict_json"]))
    keys = keys if part is None else keys[part]
    return {key: golden_weight(key, shape) for key, shape in keys.items()}


def pyramid_of(state: dict[str, np.ndarray], width: int) -> dict:
    """Returns the sizes of the convolutional networks that a released state dict is of."""
    levels = [i for i in range(99) if f"encoder.down.{i}.block.0.conv1.weight" in state]
    blocks = [i for i in range(99) if f"encoder.down.0.block.{i}.conv1.weight" in state]
    widths = [state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in levels]
    return dict(
        image_channels=state["encoder.conv_in.weight"].shape[1],
        width=width,
        multipliers=tuple(w // width for w in widths),
        blocks=len(blocks),
    )


def attention_of(state: dict[str, np.ndarray], name: str) -> tuple[int, ...]:
    """Returns the levels of the encoder with attention, whose first map is called `name`."""
    return tuple(i for i in range(99) if f"encoder.down.{i}.attn.0.{name}.weight" in state)


def vq_autoencoder(case) -> VQAutoencoder:
    """Returns the tokenizer of a case of VAR, with its parameters."""
    state = state_dict(case, "vae")
    found = dict(
        **pyramid_of(state, int(case["config/ch"])),
        attention=attention_of(state, "qkv"),
        phis=sum(key.startswith(vq_vae.PHIS[1]) and key.endswith("weight") for key in state),
    )
    codes = {"vocabulary": int(case["config/vocab"]), "channels": int(case["config/z_channels"])}
    levels = case["config/patch_nums"].tolist()

    def make(key):
        return VQAutoencoder(VectorQuantizer(**codes, key=key), levels=levels, **found, key=key)

    template = jax.eval_shape(make, jax.random.key(0))
    params = vq_vae.from_state_dict(state, params_of(template))
    return bind(template, jax.tree.map(jnp.asarray, params))
