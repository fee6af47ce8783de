"""MAR against the released PyTorch code: conditions, losses and sampling.

Reads every size from the files; `JAXAR_GOLDENS` names another folder of cases.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar import config
from jaxar.assembly import build_system
from jaxar.core import plan
from jaxar.core.condition import Label
from jaxar.heads.diffusion import Denoising, DiffusionHead, Noise
from jaxar.nn.module import bind, params_of
from jaxar.schemes.base import BackboneWithHead, Settings
from jaxar.schemes.masked import Masked, Masking
from jaxar.system import System
from jaxar.systems.image import mar as table
from jaxar.systems.image.mar import MAR
from jaxar.tokenizers.adapters.moments import Moments
from jaxar.tokenizers.tokens import Latents
from jaxar.tree import count
from tests.given import Given, loss_given, sample_given
from tests.parity.cases import cases, state_dict

pytestmark = pytest.mark.parity


def channels_last(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


@pytest.fixture(scope="module", params=cases("mar"), ids=lambda path: path.stem)
def setting(request):
    """A case, its system and its parameters, made once for all tests of the case."""
    case = np.load(request.param)
    state = state_dict(case)
    _, h, w, c = channels_last(case["train/latents"]).shape
    tokens = plan.token((h, w))
    make = functools.partial(_network, case, tokens, c)
    template = jax.eval_shape(make, jax.random.key(0))
    scheme, label = Masked(Latents(Moments(1.0), tokens, c)), label_of(case)
    system = System(template, make, scheme, label, (h, w, 2 * c))
    params = jax.tree.map(jnp.asarray, table.from_state_dict(state, params_of(template)))
    return case, system, params


def label_of(case):
    return Label(int(case["config/num_classes"]))


def _network(case, tokens, channels, key):
    size = {name: int(case[f"config/{name}"]) for name in ("width", "depth_each", "heads")}
    backbone = MAR(
        tokens,
        channels,
        label_of(case),
        width=size["width"],
        depth=(size["depth_each"],) * 2,
        heads=size["heads"],
        buffer=int(case["config/buffer_size"]),
        key=key,
    )
    width, depth = int(case["config/head_width"]), int(case["config/head_depth"])
    head = DiffusionHead(
        tokens, size["width"], channels, width=width, depth=depth, repeats=1, key=key
    )
    return BackboneWithHead(backbone, head)


def drawn(case, system):
    """Returns tokens, labels and the loss's randomness of the training case in our layout."""
    tokens = system.plan.cut(channels_last(case["train/latents"]))
    labels = jnp.asarray(case["train/labels"])
    order = jnp.argsort(jnp.asarray(case["train/mask"]), -1, stable=True)
    counts = set(case["train/mask"].sum(-1).astype(int).tolist())
    assert len(counts) == 1
    head = Noise(jnp.asarray(case["train/t"])[None], jnp.asarray(case["train/noise"])[None])
    return tokens, labels, Masking(order, jnp.asarray(counts.pop()), head)


def conditions(system, params, tokens, labels, noise):
    kept = system.plan.tokens - noise.masked
    backbone = bind(system.network, params).backbone
    return backbone(tokens, labels, noise.order, kept, system.scheme.most_kept)


def test_conditions(setting):
    case, system, params = setting
    hidden = jax.jit(functools.partial(conditions, system))(params, *drawn(case, system))
    np.testing.assert_allclose(hidden, case["train/condition"], rtol=1e-3, atol=2e-4)


def test_losses(setting):
    case, system, params = setting
    tokens, labels, noise = drawn(case, system)

    @jax.jit
    def losses(params):
        hidden = conditions(system, params, tokens, labels, noise)
        return bind(system.network, params).head.loss(hidden, tokens, noise.head, system.plan)

    np.testing.assert_allclose(losses(params), case["train/token_loss"], rtol=1e-3, atol=2e-4)
    loss = jax.jit(functools.partial(loss_given, system))(params, tokens, labels, noise)
    np.testing.assert_allclose(loss, case["train/loss"], rtol=1e-5)


def test_sampling(setting):
    case, system, params = setting
    order = np.flip(case["sample/orders"], -1)  # the release reveals from the end
    iterations, steps = int(case["sample/num_iter"]), int(case["sample/steps"])
    sizes = plan.unmasking(system.plan.tokens, iterations)
    draws = jnp.asarray(arranged(case, order, sizes, steps))

    def noise(iteration, number, shape):
        return draws[iteration, number][:, : shape[0]]

    cfg = float(case["sample/cfg"])
    settings = Settings(Denoising(steps), guided=cfg != 1, iterations=iterations)
    given = Given(normal_of=noise, order=jnp.asarray(order))
    labels = jnp.asarray(case["sample/labels"])
    out = system.entities.paste(sample_given(system, params, labels, cfg, settings, given))
    expected = np.moveaxis(case["sample/latents"], 1, -1)
    # The first step divides by sqrt(a_T): 20,000 times what a random network, and rounding, give.
    scale = np.maximum(1, np.abs(expected).max(-1, keepdims=True))
    np.testing.assert_allclose(np.asarray(out) / scale, expected / scale, atol=2e-4)


def arranged(case, order, sizes, steps):
    """Returns the draws (iterations, 1 + steps, b, most, c) in our order of revealing.

    The release draws for the tokens of an iteration in raster order, example by example; the draws
    of its diffusion steps are for a doubled batch, whose second half reaches nothing.
    """
    batch, channels = len(order), case["sample/noise/0000"].shape[-1]
    draws = np.zeros((len(sizes), 1 + steps, batch, max(sizes), channels), np.float32)
    start = 0
    for i, size in enumerate(sizes):
        row = np.argsort(np.argsort(order[:, start : start + size], -1), -1)
        for number in range(1 + steps):
            drawn = case[f"sample/noise/{i * (1 + steps) + number:04d}"][: batch * size]
            drawn = drawn.reshape(batch, size, channels)
            draws[i, number, :, :size] = np.take_along_axis(drawn, row[..., None], 1)
        start += size
    assert int(case["sample/num_noise"]) == len(sizes) * (1 + steps)
    return draws


@pytest.mark.parametrize(("name", "millions"), [("mar_b", 208), ("mar_l", 479), ("mar_h", 943)])
def test_configs_have_the_published_sizes(name, millions):
    """The readme of the release rounds up."""
    network = build_system(config.load(name)).network
    assert math.ceil(count(params_of(network)) / 1e6) == millions
