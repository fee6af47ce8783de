"""VAR against the released PyTorch code: teacher forcing, logits and greedy sampling.

Reads every size from the files; `JAXAR_GOLDENS` names another folder of cases.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxar
from jaxar import config as configs
from jaxar import registry
from jaxar.assembly import build_system
from jaxar.core import plan
from jaxar.core.condition import Label
from jaxar.heads.categorical import Categorical, Choosing
from jaxar.nn.module import bind, params_of
from jaxar.schemes.base import BackboneWithHead, Settings
from jaxar.schemes.shifted import Shifted
from jaxar.system import System
from jaxar.systems.image import var as table
from jaxar.systems.image.var import VAR
from jaxar.tokenizers.adapters.features import FeatureMap
from jaxar.tokenizers.tokens import Codes
from jaxar.training.optim import decayed, learning_rate, weight_decay
from jaxar.tree import count, paths
from jaxar.weights.tables import WeightsError
from tests.given import Given, loss_given, sample_given
from tests.parity.cases import FOLDER, cases, state_dict, vq_autoencoder

pytestmark = pytest.mark.parity

TIE = 1e-5
"""Between two logits, of which either may be chosen."""


@pytest.fixture(scope="module", params=cases("var"), ids=lambda path: path.stem)
def setting(request):
    """A case, its system, its parameters and its tokenizer, made once for all tests of the case."""
    case = np.load(request.param)
    tokenizer = vq_autoencoder(case)
    scales = plan.scale(tokenizer.quantizer.grid, sizes=case["config/patch_nums"].tolist())
    entities = Codes(FeatureMap(), tokenizer.quantizer, scales)
    label = Label(int(case["config/num_classes"]))
    make = functools.partial(_network, case, entities, label)
    template = jax.eval_shape(make, jax.random.key(0))
    shape = (*scales.grid, entities.channels)
    system = System(template, make, Shifted(entities), label, shape)
    params = registry.convert("var", state_dict(case, "var"), params_of(template))
    return case, system, jax.tree.map(jnp.asarray, params), tokenizer


def _network(case, entities, label, key):
    width, depth, heads = (int(case[f"config/{name}"]) for name in ("width", "depth", "heads"))
    backbone = VAR(
        entities.plan,
        entities.channels,
        label,
        width=width,
        depth=depth,
        heads=heads,
        cosine=bool(case["config/attn_l2_norm"]),
        shared_modulation=bool(case["config/shared_aln"]),
        key=key,
    )
    return BackboneWithHead(backbone, Categorical(entities.plan, width, entities.outcomes, key=key))


def predicted(system, params, inputs, labels):
    """Returns the logits of all tokens, given what precedes them."""

    @jax.jit
    def run(params, inputs, labels):
        network = bind(system.network, params)
        return network.head.logits(network.backbone(inputs, labels, system.plan.layout())[0])

    return run(params, inputs, labels)


def test_teacher_forcing_and_logits(setting):
    case, system, params, _ = setting
    inputs = system.entities.inputs(jnp.asarray(case["codes"]))
    np.testing.assert_allclose(inputs, case["teacher_forcing_input"], atol=2e-4)
    logits = predicted(system, params, inputs, jnp.asarray(case["labels"]))
    np.testing.assert_allclose(logits, case["logits"], atol=2e-4)


def test_tokens_and_loss(setting):
    """From features to codes to the mean cross-entropy of the released logits."""
    case, system, params, _ = setting
    features = jnp.asarray(np.moveaxis(case["features"], 1, -1))
    codes = system.entities.cut(features, jax.random.key(0))
    if not np.array_equal(codes, case["codes"]):
        pytest.skip("two codes are equally near: tests/parity/test_vq_vae.py compares them")
    likelihood = jax.nn.log_softmax(case["logits"].astype(np.float64), -1)
    expected = -np.take_along_axis(np.asarray(likelihood), case["codes"][..., None], -1).mean()
    loss = jax.jit(functools.partial(loss_given, system))(
        params, codes, jnp.asarray(case["labels"]), ()
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_greedy_sampling(setting):
    """The codes of the release, but where two are equally likely, and its images in [0, 1]."""
    case, system, params, tokenizer = setting
    codes, labels = jnp.asarray(case["greedy/codes"]), jnp.asarray(case["labels"])
    guidance = 1 + float(case["greedy/cfg"])
    logits = guided(system, params, codes, labels, guidance)
    theirs = np.take_along_axis(logits, np.asarray(codes)[..., None], -1)[..., 0]
    assert (logits.max(-1) - theirs <= TIE).all()

    given = Given(gumbel_of=lambda entity, number, shape: jnp.zeros((len(labels), *shape)))
    sampled = sample_given(system, params, labels, guidance, Settings(Choosing()), given)
    if np.array_equal(logits.argmax(-1), codes):
        np.testing.assert_array_equal(sampled, codes)
    images = tokenizer.decode(system.entities.paste(codes))
    expected = np.moveaxis(case["greedy/images"], 1, -1)
    np.testing.assert_allclose((images + 1) / 2, expected, atol=2e-4)


def guided(system, params, codes, labels, guidance):
    """Returns the guided logits of all tokens in one pass, each seeing the given codes before it.

    The weight rises in a straight line from 1 at the first level to the whole at the last.
    """
    inputs = system.entities.inputs(codes)
    without = jnp.full_like(labels, system.num_classes)
    conditional, unconditional = (
        np.asarray(predicted(system, params, inputs, of)) for of in (labels, without)
    )
    levels = system.plan.entity
    weight = 1 + (guidance - 1) * (levels / levels.max())[:, None]
    return unconditional + weight * (conditional - unconditional)


def test_from_files_to_pictures(setting, tmp_path):
    """Two files and the config of the release, cut to the size of the case; top-k 1 is greedy."""
    case, system, _, _ = setting
    files = {part: tmp_path / f"{part}.npz" for part in ("var", "vae")}
    for part, path in files.items():
        np.savez(path, **state_dict(case, part))
    levels = tuple(case["config/patch_nums"].tolist())
    sizes = {
        "data_shape": system.shape,
        "num_classes": system.num_classes,
        "plan.sizes": levels,
        "autoencoder.levels": levels,
        "autoencoder.width": case["config/ch"],
        "quantizer.vocabulary": system.entities.outcomes,
        "quantizer.channels": system.entities.channels,
        "model.cosine": case["config/attn_l2_norm"],
        "model.shared_modulation": case["config/shared_aln"],
        "model.dtype": "float32",
        "mesh.data": 1,
        **{f"model.{name}": case[f"config/{name}"] for name in ("width", "depth", "heads")},
    }
    model = jaxar.load(
        "var_d16",
        weights=files["var"],
        tokenizer=files["vae"],
        overrides=[f"{field}={value}" for field, value in sizes.items()],
    )
    guidance = 1 + float(case["greedy/cfg"])
    images = model.sample(case["labels"], guidance=guidance, top_k=1, top_p=0.0)
    expected = np.moveaxis(case["greedy/images"], 1, -1)
    np.testing.assert_allclose((images + 1) / 2, expected, atol=2e-3)


def test_every_released_key_has_its_place_in_our_config():
    """By shapes alone: what does not fit is said before anything of this size is allocated."""
    released = json.loads((FOLDER / "var_d16_keys.json").read_text())
    system = build_system(configs.load("var_d16"))
    template = jax.eval_shape(system.init, jax.random.key(0))
    assert count(template) == released["num_parameters"]
    state = {
        key: np.broadcast_to(np.float32(0), shape) for key, shape in released["state_dict"].items()
    }
    del state["blocks.7.attn.v_bias"]
    with pytest.raises(WeightsError) as error:
        table.from_state_dict({**state, "more": np.zeros(1)}, template)
    lines = str(error.value).split("\n  ")[1:]
    assert lines == ["missing key blocks.7.attn.v_bias", "unused key more"]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("var_d16", 310_283_520),
        ("var_d20", 600_917_136),
        ("var_d24", 1_033_399_360),
        ("var_d30", 2_010_020_356),
        ("var_d36", 2_353_893_904),
    ],
)
def test_published_sizes(name, parameters):
    """Backbone and head, without the tokenizer."""
    system = build_system(configs.load(name))
    assert count(jax.eval_shape(system.init, jax.random.key(0))) == parameters


@pytest.mark.parametrize("name", ["var_d16", "var_d36"])
def test_weight_decay_spares_what_the_release_spares(name):
    """By the words of its train.py, of which biases are all that has one axis."""
    config = configs.load(name)
    template = jax.eval_shape(build_system(config).init, jax.random.key(0))
    ours = paths(decayed(template, spared=config.optimizer.no_decay))
    words = ("bias", "pos_1LC", "pos_start", "lvl_embed", "ada_gss", "scale_mul")
    for row in table.rows(template):
        assert ours[row.ours] == (not any(word in row.theirs for word in words)), row.theirs


@pytest.mark.parametrize(
    ("name", "last", "decay"), [("var_d16", 0.1, 0.05), ("var_d30", 0.01, 0.08)]
)
def test_rate_and_weight_decay_are_those_of_the_release(name, last, decay):
    """Up for a 50th of the run, flat for a 20th of the rest, then straight down to the last."""
    config = configs.load(name)
    options, steps = config.optimizer, config.steps
    rate = learning_rate(options, steps=steps, batch_size=config.batch_size)
    peak = options.base_learning_rate * config.batch_size / 256
    warmup = round(steps / 50)
    for share in (0.0, 0.3, 0.9):
        step = int(share * warmup)
        np.testing.assert_allclose(rate(step), peak * (0.005 + 0.995 * step / warmup), rtol=1e-5)
    for share in (0.0, 0.03, 0.049, 0.06, 0.5, 0.99, 1.0):
        step = warmup + int(share * (steps - 1 - warmup))
        rest = 1 - (step - warmup) / (steps - 1 - warmup)
        expected = peak if rest > 0.95 else peak * (last + (1 - last) * rest / 0.95)
        np.testing.assert_allclose(rate(step), expected, rtol=1e-4)
    schedule = weight_decay(options, steps=steps)
    ends = [schedule(step) if callable(schedule) else schedule for step in (0, steps - 1)]
    np.testing.assert_allclose(ends, [0.05, decay], rtol=1e-5)
