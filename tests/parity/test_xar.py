"""xAR against the released PyTorch code: prediction, loss, gradients and both samplers.

Reads every size from the files; `JAXAR_GOLDENS` names another folder of cases.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.core import plan
from jaxar.core.condition import Label
from jaxar.flow.path import Linear
from jaxar.flow.time import LogitNormal
from jaxar.heads.flow import Flow, FlowNoise, Solving
from jaxar.nn.module import bind, params_of
from jaxar.schemes.base import Settings
from jaxar.schemes.noisy import Noisy
from jaxar.system import System
from jaxar.systems.image import xar as table
from jaxar.systems.image.xar import XAR
from jaxar.tokenizers.adapters.moments import Moments
from jaxar.tokenizers.tokens import Latents
from jaxar.tree import paths
from tests.given import Given, loss_given, sample_given
from tests.parity.cases import cases, state_dict

pytestmark = pytest.mark.parity

CELLS = 2  # the released code fixes 2 x 2 cells; their size follows from the latents


def channels_last(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


@pytest.fixture(scope="module", params=cases("xar"), ids=lambda path: path.stem)
def setting(request):
    """A case, its system and its parameters, made once for all tests of the case."""
    case = np.load(request.param)
    state = state_dict(case)
    latents = channels_last(case["train/latents"])
    _, h, w, c = latents.shape
    cells = plan.cell((h, w), height=h // CELLS, width=w // CELLS)
    depth = int(case["config/depth_each"])
    label = Label(state["class_emb.weight"].shape[0] - 1)
    make = functools.partial(
        _xar, cells, c, label, int(case["config/width"]), depth, int(case["config/heads"])
    )
    template = jax.eval_shape(make, jax.random.key(0))
    scheme = Noisy(Latents(Moments(1.0), cells, c), Flow(Linear(), LogitNormal()))
    system = System(template, make, scheme, label, (h, w, 2 * c))
    params = jax.tree.map(jnp.asarray, table.from_state_dict(state, params_of(template)))
    return case, system, params


def _xar(cells, channels, label, width, depth, heads, key):
    return XAR(cells, channels, label, width=width, depth=(depth, depth), heads=heads, key=key)


def drawn(case, system):
    """Returns tokens, labels, times and noise of the training case in our layout."""
    tokens = system.plan.cut(channels_last(case["train/latents"]))
    noise = np.moveaxis(case["train/noise"], 0, 1).reshape(tokens.shape)
    labels = jnp.asarray(case["train/labels"])
    return tokens, labels, FlowNoise(jnp.asarray(case["train/t"].T), jnp.asarray(noise))


def test_prediction(setting):
    case, system, params = setting
    tokens, labels, noise = drawn(case, system)
    noised, _ = system.scheme.flow.prepare(tokens, noise, system.plan)
    seen, times, layout = system.scheme.inputs(tokens, noised, noise.times)

    @jax.jit
    def predict(params):
        model = bind(system.network, params)
        return model(seen, times, labels, layout)[0]

    np.testing.assert_allclose(predict(params), case["train/prediction"], rtol=1e-3, atol=2e-4)


def test_loss_and_gradients(setting):
    case, system, params = setting
    loss, gradients = jax.jit(jax.value_and_grad(functools.partial(loss_given, system)))(
        params, *drawn(case, system)
    )
    np.testing.assert_allclose(loss, case["train/loss"], rtol=1e-5)

    norm = np.sqrt(sum(float(jnp.vdot(g, g)) for g in jax.tree.leaves(gradients)))
    np.testing.assert_allclose(norm, case["train/grad_norm"], rtol=1e-3)

    leaves = paths(gradients)
    sums = json.loads(str(case["train/grad_abs_sum_json"]))
    seen = 0
    for key, array in by_key(leaves, sums):
        # The bias of the keys moves all logits of a query alike: its gradient is zero, and what
        # is found there is rounding, in both implementations.
        floor = 1e-4 if "bias" in key else 1e-6
        np.testing.assert_allclose(np.abs(array).sum(), sums[key], rtol=1e-3, atol=floor)
        seen += 1
        if f"train/grad/{key}" in case:
            whole = case[f"train/grad/{key}"]
            given = array.T if whole.ndim == 2 else array
            scale = np.abs(whole).max()
            np.testing.assert_allclose(
                given.reshape(whole.shape), whole, rtol=1e-3, atol=1e-3 * scale
            )
    assert seen == len(sums)


def by_key(leaves, sums):
    """Yields (key of the release, our gradient), layers taken apart."""
    for row in table.ROWS:
        leaf = np.asarray(leaves[row.ours])
        if "{i}" not in row.theirs:
            yield row.theirs, leaf
            continue
        for i, layer in enumerate(leaf):
            yield row.theirs.replace("{i}", str(i)), layer


@pytest.mark.parametrize(
    "solver", ["euler", pytest.param("euler_maruyama", marks=pytest.mark.slow)]
)
def test_sampling(setting, solver):
    case, system, params = setting
    draws = jnp.asarray(case[f"sample/{solver}/noise"])
    per_entity = draws.shape[0] // system.plan.entities
    labels = jnp.asarray(case["sample/labels"])

    def noise(entity, number, shape):
        return draws[entity * per_entity + number]

    with jax.enable_x64(True):
        settings = Settings(Solving(solver, int(case["sample/num_steps"]), dtype="float64"))
        guidance = float(case["sample/cfg"])
        tokens = sample_given(system, params, labels, guidance, settings, Given(normal_of=noise))
    out = system.entities.paste(tokens)
    expected = np.moveaxis(case[f"sample/{solver}/latents"], 1, -1)
    np.testing.assert_allclose(np.asarray(out), expected, rtol=1e-3, atol=2e-3)
