"""FlowAR against the released PyTorch code: trunk, flow network, loss, gradients, sampling.

Reads every size from the files; `JAXAR_GOLDENS` names another folder of cases.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar import registry
from jaxar.core import plan
from jaxar.core.condition import Label
from jaxar.flow.guidance import Guidance
from jaxar.flow.path import Linear
from jaxar.flow.time import Uniform
from jaxar.heads.flow import Flow, FlowNoise, Solving
from jaxar.heads.flow_network import FlowNetwork
from jaxar.nn.module import bind, params_of
from jaxar.schemes.base import BackboneWithHead, Settings
from jaxar.schemes.shifted import Shifted
from jaxar.system import System
from jaxar.systems.image import flowar as table
from jaxar.systems.image.flowar import FlowAR
from jaxar.tokenizers.adapters.moments import Moments
from jaxar.tokenizers.tokens import Latents
from jaxar.tree import paths
from tests.given import Given, loss_given, sample_given
from tests.parity.cases import cases, state_dict

pytestmark = pytest.mark.parity

HEAD = 64  # width of a head of the released flow network


def channels_last(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


@pytest.fixture(scope="module", params=cases("flowar"), ids=lambda path: path.stem)
def setting(request):
    """A case, its system and its parameters, made once for all tests of the case."""
    case = np.load(request.param)
    state = state_dict(case)
    _, c, h, w = case["train/latents"].shape
    scales = plan.scale((h, w), sizes=sizes_of(case))
    label = Label(state["class_emb.weight"].shape[0] - 1)
    make = functools.partial(_flowar, scales, c, label, {k: int(case[k]) for k in CONFIG})
    template = jax.eval_shape(make, jax.random.key(0))
    scheme = Shifted(Latents(Moments(1.0), scales, c))
    system = System(template, make, scheme, label, (h, w, 2 * c))
    params = jax.tree.map(jnp.asarray, table.from_state_dict(state, params_of(template)))
    return case, system, params


def sizes_of(case):
    """Returns the sizes of the levels, by the noise of each; all are squares, as in the release."""
    sizes = []
    while (key := f"sample/noise/{len(sizes)}") in case:
        sizes.append(round(case[key].shape[1] ** 0.5))
    return sizes


CONFIG = [
    *(f"config/{name}" for name in ("width", "depth_each", "heads")),
    *(f"config/{name}" for name in ("flow_width", "flow_depth", "cross")),
]


def _flowar(plan, channels, label, config, key):
    width, depth, heads, flow_width, flow_depth, cross = (config[name] for name in CONFIG)
    trunk = FlowAR(plan, channels, label, width=width, depth=(depth, depth), heads=heads, key=key)
    head = FlowNetwork(
        plan,
        width,
        channels,
        flow=Flow(Linear(), Uniform()),
        width=flow_width,
        depth=flow_depth,
        heads=flow_width // HEAD,
        cross=bool(cross),
        key=key,
    )
    return BackboneWithHead(trunk, head)


def drawn(case, system):
    """Returns tokens, labels, times and noise of the training case in our layout."""
    tokens = system.plan.cut(channels_last(case["train/latents"]))
    noise = FlowNoise(jnp.asarray(case["train/t"].T), jnp.asarray(case["train/noise"]))
    return tokens, jnp.asarray(case["train/labels"]), noise


def test_condition_of_every_token(setting):
    case, system, params = setting
    tokens, labels, _ = drawn(case, system)

    @jax.jit
    def condition(params):
        inputs = system.entities.inputs(tokens)
        return bind(system.network, params).backbone(inputs, labels, system.plan.layout())[0]

    np.testing.assert_allclose(condition(params), case["train/condition"], rtol=1e-3, atol=2e-4)


def test_velocity_of_every_token(setting):
    """Level by level, as the release does."""
    case, system, params = setting
    tokens, _, noise = drawn(case, system)
    noised, _ = bind(system.network, params).head.flow.prepare(tokens, noise, system.plan)

    @jax.jit
    def velocities(params, hidden):
        head = bind(system.network, params).head
        levels = []
        for i, (start, stop) in enumerate(system.plan.spans()):
            own = slice(start, stop)
            layout = Layout(np.arange(start, stop), (stop - start,), None)
            times = noise.times[:, i : i + 1]
            levels.append(head(noised[:, own], times, hidden[:, own], layout))
        return jnp.concatenate(levels, 1)

    hidden = jnp.asarray(case["train/condition"])
    made = velocities(params, hidden)
    np.testing.assert_allclose(made, case["train/prediction"], rtol=1e-3, atol=2e-4)


def test_loss_and_gradients(setting):
    case, system, params = setting
    loss, gradients = jax.jit(jax.value_and_grad(functools.partial(loss_given, system)))(
        params, *drawn(case, system)
    )
    np.testing.assert_allclose(loss, case["train/loss"], rtol=1e-5)

    norm = np.sqrt(sum(float(jnp.vdot(g, g)) for g in jax.tree.leaves(gradients)))
    np.testing.assert_allclose(norm, case["train/grad_norm"], rtol=1e-3)

    sums = json.loads(str(case["train/grad_abs_sum_json"]))
    found = dict(by_key(gradients))
    assert found.keys() == sums.keys() == state_dict(case).keys()
    for key, array in found.items():
        # The bias of the keys moves all logits of a query alike: its gradient is zero, and what
        # is found there is rounding, in both implementations.
        floor = 1e-4 if "bias" in key else 1e-6
        given = np.abs(array).sum()
        np.testing.assert_allclose(given, sums[key], rtol=1e-3, atol=floor, err_msg=key)


def by_key(gradients):
    """Yields (key of the release, our gradient), layers taken apart."""
    leaves = paths(gradients)
    for row in table.rows(gradients):
        leaf = np.asarray(leaves[row.ours])
        if "{i}" not in row.theirs:
            yield row.theirs, leaf
            continue
        for i, layer in enumerate(leaf):
            yield row.theirs.replace("{i}", str(i)), layer


def test_sampling(setting):
    """The release draws noise for both halves of the batch; ours needs that of the first.

    Its other half starts from noise of its own and walks alone outside the interval of guidance;
    inside it is overwritten. So nothing of it is seen in the samples.
    """
    case, system, params = setting
    labels = jnp.asarray(case["sample/labels"])
    noise = [jnp.asarray(case[f"sample/noise/{i}"]) for i in range(system.plan.entities)]

    def first_half(entity, number, shape):
        assert number == 0
        return noise[entity][: len(labels)]

    high = round(float(case["sample/guidance_high"]), 6)
    with jax.enable_x64(True):
        solving = Solving("euler", int(case["sample/num_steps"]), times="two_part", dtype="float64")
        settings = Settings(solving, guidance=Guidance("linear", 0.0, high))
        guidance = round(float(case["sample/cfg"]), 6)
        draws = Given(normal_of=first_half)
        tokens = sample_given(system, params, labels, guidance, settings, draws)
    out = system.entities.paste(tokens)
    expected = np.moveaxis(case["sample/latents"], 1, -1)
    np.testing.assert_allclose(np.asarray(out), expected, rtol=1e-3, atol=2e-3)


def test_buffers_are_ignored_and_the_other_version_is_refused(setting):
    case, system, params = setting
    state = state_dict(case)
    attention = [key.rsplit(".", 2)[0] for key in state if key.endswith("attn.proj.weight")]
    buffers = {f"{name}.rope.freqs": np.zeros(8) for name in attention} | {"mask": np.zeros(1)}
    again = registry.convert("flowar", state | buffers, params_of(system.network))
    jax.tree.map(np.testing.assert_array_equal, again, params)

    config = {k: int(case[k]) for k in CONFIG}
    config["config/cross"] = not config["config/cross"]
    sizes = system.plan, system.entities.channels, system.condition
    other = params_of(jax.eval_shape(lambda key: _flowar(*sizes, config, key), jax.random.key(0)))
    with pytest.raises(ValueError, match=r"unused key flownet\.res_blocks\.0"):
        table.from_state_dict(state, other)
