"""The KL autoencoder: its layers, its posterior, its table of released weights, its training."""

import functools
import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxar.core.task import Frozen
from jaxar.data.glyphs import Glyphs
from jaxar.nn import conv
from jaxar.nn.module import Series, bind, params_of
from jaxar.objectives.autoencoder import balance
from jaxar.objectives.discriminator import PatchDiscriminator
from jaxar.objectives.perceptual import perceptual_distance
from jaxar.objectives.variational import VariationalAutoencoding
from jaxar.tokenizers import posterior
from jaxar.tokenizers.adapters.moments import Moments
from jaxar.tokenizers.autoencoders import kl as table
from jaxar.tokenizers.autoencoders.kl import KLAutoencoder
from jaxar.tree import count, nest, paths
from jaxar.weights.tables import WeightsError

RELEASED = json.loads((Path(__file__).parent / "goldens" / "kl16_keys.json").read_text())
TINY = dict(
    image_channels=1, width=8, multipliers=(1, 2), blocks=1, encoder_attention=(1,), channels=2
)


def make(key, **changes):
    return KLAutoencoder(**{**TINY, **changes}, key=key)


def template_of(**arguments):
    return jax.eval_shape(lambda key: KLAutoencoder(**arguments, key=key), jax.random.key(0))


def training(shape=(16, 16, 1), **options):
    options = {"discriminator_width": 8, "discriminator_layers": 2, **options}
    return VariationalAutoencoding(make, shape, **options)


def images_of(*shape, seed=1):
    return jax.random.uniform(jax.random.key(seed), shape, minval=-1, maxval=1)


# Layers.


@pytest.mark.parametrize(("channels", "groups"), [(128, 32), (48, 8), (16, 4), (8, 2), (6, 1)])
def test_group_norm_normalises_each_group(channels, groups):
    norm = conv.GroupNorm(channels)
    assert norm.groups == groups
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 4, 5, channels))
    y = norm(x).reshape(2, 20, groups, -1)
    np.testing.assert_allclose(y.mean((1, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((1, 3)), 1, atol=1e-4)


def test_group_norm_computes_in_float32():
    x = 1000 + jax.random.normal(jax.random.key(0), (1, 8, 8, 8))
    y = conv.GroupNorm(8)(x.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert np.isfinite(y.astype(jnp.float32)).all()


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="5 groups do not divide 8"):
        conv.GroupNorm(8, 5)


def test_kernels_and_biases_start_by_the_fan_in():
    layer = conv.Conv(16, 200, key=jax.random.key(0))
    bound = 1 / np.sqrt(9 * 16)
    for values in (layer.kernel[...], layer.bias[...]):
        assert 0.97 * bound < np.abs(values).max() <= bound
        np.testing.assert_allclose(values.std(), bound / np.sqrt(3), rtol=0.1)


def test_downsampling_and_upsampling_see_the_pixels_they_should():
    """The padding is below and right alone, and repeated pixels stand beside each other."""
    down = conv.Downsample(1, key=jax.random.key(0))
    kernel = down.conv.kernel[...]
    x = images_of(1, 6, 4, 1)
    padded = np.pad(np.asarray(x[0, :, :, 0]), ((0, 1), (0, 1)))
    y = down(x) - down.conv.bias[...]
    for i, j in np.ndindex(3, 2):
        window = padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        np.testing.assert_allclose(y[0, i, j, 0], (window * kernel[..., 0, 0]).sum(), atol=1e-5)
    up = conv.Upsample(1, key=jax.random.key(0))
    repeated = np.kron(np.asarray(x[0, :, :, 0]), np.ones((2, 2)))[None, ..., None]
    np.testing.assert_allclose(up(x), up.conv(jnp.asarray(repeated, jnp.float32)), atol=1e-6)


def test_series_keep_their_order_through_saved_paths():
    """Twelve modules: as words, "10" and "11" come before "2"."""

    def twelve(key):
        return Series(conv.Conv(1, 1, 1, key=key) for key in jax.random.split(key, 12))

    made, template = twelve(jax.random.key(0)), jax.eval_shape(twelve, jax.random.key(0))
    bound = bind(template, nest(paths(params_of(made))))
    for a, b in zip(made, bound, strict=True):
        assert a.kernel[...] == b.kernel[...]


# The autoencoder.


@pytest.fixture(scope="module")
def released():
    shapes = {key: tuple(shape) for key, shape in RELEASED["state_dict"].items()}
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}


def test_every_released_key_has_its_place(released):
    template = params_of(template_of())
    assert count(template) == RELEASED["num_parameters"]
    table.from_state_dict({**released, "loss.logvar": np.zeros(())}, template)
    assert {row.theirs for row in table.rows(template)} == set(released)
    with pytest.raises(WeightsError, match=r"missing key quant_conv\.bias"):
        table.from_state_dict({k: v for k, v in released.items() if "nt_conv.b" not in k}, template)
    with pytest.raises(WeightsError, match="unused key more"):
        table.from_state_dict({**released, "more": np.zeros(1)}, template)


@pytest.mark.parametrize(
    "arguments",
    [
        TINY,
        dict(TINY, image_channels=3, width=6, multipliers=(2, 1, 3), blocks=3, channels=5),
        dict(TINY, multipliers=(1, 2, 2), encoder_attention=(0, 2)),
        dict(TINY, multipliers=(3,), encoder_attention=(), channels=1),
    ],
)
def test_any_sizes_pass_through_a_state_dict(arguments):
    template = params_of(template_of(**arguments))
    state = {}
    for row in table.rows(template):
        shape = paths(template)[row.ours].shape
        square = (max(shape), max(shape), 1, 1)
        theirs = {1: shape, 2: shape[1:], 3: square, 4: (*shape[:1:-1], *shape[:2])}
        state[row.theirs] = np.zeros(theirs[len(shape)])
    chex.assert_trees_all_equal_shapes(table.from_state_dict(state, template), template)


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ((8, 12, 1), {}),
        ((16, 8, 3), dict(image_channels=3, multipliers=(1, 1, 2), encoder_attention=())),
        ((3, 5, 2), dict(image_channels=2, multipliers=(2,), encoder_attention=(0,), channels=7)),
    ],
)
def test_any_image_comes_back_in_its_size(shape, changes):
    arguments = {**TINY, **changes}
    network = template_of(**arguments)
    (h, w), channels = network.latents(shape)
    assert network.factor == 2 ** (len(arguments["multipliers"]) - 1)
    assert (h * network.factor, w * network.factor) == shape[:2]
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    params = params_of(network)
    moments = jax.eval_shape(lambda p, x: bind(network, p).moments(x), params, x)
    assert moments.shape == (2, h, w, 2 * channels)
    latents = jax.ShapeDtypeStruct((2, h, w, channels), jnp.float32)
    image = jax.eval_shape(lambda p, z: bind(network, p).decode(z), params, latents)
    assert image.shape == (2, *shape)


def test_bfloat16_is_close_and_returns_float32():
    params = params_of(make(jax.random.key(0)))
    x = images_of(2, 8, 8, 1)
    outs = []
    for dtype in ("float32", "bfloat16"):
        network = template_of(**TINY, dtype=dtype)
        outs.append(jax.jit(lambda p, x, net=network: bind(net, p).moments(x))(params, x))
        assert outs[-1].dtype == jnp.float32
    np.testing.assert_allclose(*outs, atol=0.05)
    assert not np.array_equal(*outs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(dtype="float16"), "float16"),
        (dict(encoder_attention=(2,)), "no level 2.*0 to 1"),
        (dict(multipliers=()), "multipliers"),
        (dict(blocks=0), "blocks=0"),
        (dict(channels=0), "channels=0"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        template_of(**{**TINY, **changes})


def test_images_and_latents_that_do_not_fit_are_named():
    network = template_of(**TINY)
    with pytest.raises(ValueError, match=r"8 x 7 do not fit.*multiples of 2"):
        network.moments(jnp.zeros((1, 8, 7, 1)))
    with pytest.raises(ValueError, match="must have 1 channels, not 3"):
        network.moments(jnp.zeros((1, 8, 8, 3)))
    with pytest.raises(ValueError, match="must have 2 channels, not 4"):
        network.decode(jnp.zeros((1, 4, 4, 4)))


# The posterior.


def test_samples_have_the_moments():
    mean, deviation = np.asarray([1.5, -2.0]), np.asarray([0.5, 3.0])
    moments = np.concatenate([mean, 2 * np.log(deviation)]).astype(np.float32)
    moments = jnp.broadcast_to(jnp.asarray(moments), (1, 200, 200, 4))
    draws = posterior.sample(moments, jax.random.key(0))
    np.testing.assert_allclose(draws.mean((0, 1, 2)), mean, atol=0.05)
    np.testing.assert_allclose(draws.std((0, 1, 2)), deviation, rtol=0.02)
    scaled = Moments(0.5).encode(moments, jax.random.key(0))
    np.testing.assert_allclose(scaled, 0.5 * draws, rtol=1e-6)


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (1.5, 0.5), (-0.7, 2.0)])
def test_divergence_is_the_integral(mean, deviation):
    x = np.linspace(-30, 30, 200_001)
    log_q = -0.5 * ((x - mean) / deviation) ** 2 - np.log(deviation * np.sqrt(2 * np.pi))
    log_p = -0.5 * x**2 - np.log(np.sqrt(2 * np.pi))
    integral = np.sum(np.exp(log_q) * (log_q - log_p)) * (x[1] - x[0])
    moments = jnp.broadcast_to(jnp.asarray([mean, 2 * np.log(deviation)]), (3, 2, 2, 2))
    found = posterior.divergence(moments.astype(jnp.float32))
    np.testing.assert_allclose(found, np.full(3, 4 * integral), rtol=1e-4, atol=1e-5)


# Training.


class Halves:
    """A frozen network of one parameter, a factor that changes nothing."""

    frozen = Frozen({"factor": jax.ShapeDtypeStruct((), jnp.float32)}, "none")

    def maps(self, params, images):
        return features(params["factor"] * images)


HALVES = {"perceptual": {"factor": jnp.float32(1)}}


def features(images):
    return [images, images[:, ::2, ::2] * jnp.arange(1.0, 1 + images.shape[-1])]


def test_perceptual_distance_is_zero_for_equals_and_four_for_opposites():
    x = images_of(2, 6, 6, 3)
    np.testing.assert_array_equal(perceptual_distance(features, x, x), np.zeros(2))
    np.testing.assert_allclose(perceptual_distance(features, x, -x), 4, rtol=1e-4)
    gradient = jax.grad(lambda y: perceptual_distance(features, x, y).sum())(jnp.zeros_like(x))
    assert np.isfinite(gradient).all()


@pytest.fixture(scope="module")
def game():
    """A system with every term and its parameters; run(step) -> (loss, metrics), gradients."""
    system = training(
        adversarial_weight=0.5,
        perceptual_weight=1.0,
        perceptual=Halves(),
        learned_variance=True,
        adversarial_start=3,
    )
    params = system.init(jax.random.key(0))
    images = images_of(2, *system.shape)

    @jax.jit
    def run(step):
        batch = {"data": images, "step": step}
        return jax.value_and_grad(system.loss, has_aux=True)(
            params, HALVES, batch, jax.random.key(1)
        )

    return system, params, images, run


def test_metrics_hold_every_term_and_add_up(game):
    system, _, _, run = game
    (loss, metrics), gradients = run(3)
    assert set(metrics) == {
        *("loss", "reconstruction", "perceptual", "kl", "log_variance"),
        *("generator", "discriminator", "ratio"),
    }
    numbers = np.prod(system.shape)
    total = metrics["reconstruction"] + metrics["perceptual"] + metrics["discriminator"]
    total += (1e-6 * metrics["kl"] + 0.5 * metrics["ratio"] * metrics["generator"]) / numbers
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    slope = 1 - metrics["reconstruction"] - metrics["perceptual"]  # of y exp(-s) + s at s = 0
    np.testing.assert_allclose(gradients["log_variance"]["bias"], slope, rtol=1e-4)


@pytest.mark.slow
def test_the_game_begins_at_its_step(game):
    _, _, _, run = game
    (before, _), early = run(2)
    (after, _), late = run(3)
    assert optax.tree.norm(early["discriminator"]) == 0 < optax.tree.norm(late["discriminator"])
    assert optax.tree.norm(early["autoencoder"]) > 0
    assert before != after


def test_each_player_gets_its_own_gradient(game):
    system, params, images, _ = game

    @jax.jit
    def slopes(params):
        def terms(params):
            _, metrics = system.loss(params, HALVES, {"data": images}, jax.random.key(1))
            return jnp.stack([metrics[name] for name in ("generator", "discriminator", "ratio")])

        jacobian = jax.jacrev(terms)(params)
        return {k: jax.vmap(optax.tree.norm)(jacobian[k]) for k in jacobian}

    norms = slopes(params)
    generator, judge, ratio = norms["autoencoder"]
    assert generator > 0 and judge == 0 and ratio == 0
    generator, judge, ratio = norms["discriminator"]
    assert generator == 0 and judge > 0 and ratio == 0


def test_the_ratio_balances_the_gradients_at_the_last_kernel():
    system = training(adversarial_weight=0.5)
    params = system.init(jax.random.key(0))
    images = images_of(2, *system.shape)
    network = bind(system.network, params["autoencoder"])
    hidden = jax.random.normal(jax.random.key(2), (2, 16, 16, 8))
    judge = bind(system.discriminator, params["discriminator"])
    losses = (lambda made: jnp.abs(images - made).sum(), lambda made: -judge(made).mean())
    ratio = balance(network.decoder.last.kernel[...], hidden, network.render(hidden), *losses)

    def norm(loss):
        def by_kernel(kernel):
            changed = {**params["autoencoder"]["decoder"]["last"], "kernel": kernel}
            decoder = {**params["autoencoder"]["decoder"], "last": changed}
            bound = bind(system.network, {**params["autoencoder"], "decoder": decoder})
            return loss(bound.render(hidden))

        return jnp.linalg.norm(
            jax.grad(by_kernel)(params["autoencoder"]["decoder"]["last"]["kernel"])
        )

    np.testing.assert_allclose(ratio, norm(losses[0]) / (norm(losses[1]) + 1e-4), rtol=1e-4)


def test_discriminator_judges_patches_and_names_images_that_are_too_small():
    judge = jax.eval_shape(lambda key: PatchDiscriminator(3, key=key), jax.random.key(0))
    sizes = [layer.kernel.shape[2:] for layer in [judge.first, *judge.convs, judge.last]]
    assert sizes == [(3, 64), (64, 128), (128, 256), (256, 512), (512, 1)]
    images = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    out = jax.eval_shape(lambda p, x: bind(judge, p)(x), params_of(judge), images)
    assert out.shape == (1, 30, 30, 1)
    with pytest.raises(ValueError, match="needs 24 x 24"):
        training(adversarial_weight=1.0, discriminator_layers=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(kl_weight=-1.0), "at least 0"),
        (dict(discriminator_layers=0), "at least 1"),
        (dict(perceptual_weight=1.0), "feature network"),
        (dict(shape=(15, 16, 1)), "multiples of 2"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        training(**options)


def test_without_a_game_there_is_no_discriminator():
    system = training()
    params = jax.eval_shape(system.init, jax.random.key(0))
    assert set(params) == {"autoencoder"}
    batch = {"data": jax.ShapeDtypeStruct((2, *system.shape), jnp.float32)}
    _, metrics = jax.eval_shape(system.loss, params, batch, jax.random.key(0))
    assert set(metrics) == {"loss", "reconstruction", "kl"}


@pytest.mark.slow
def test_the_loss_falls():
    system = training(adversarial_weight=0.5, kl_weight=1e-4)
    source = Glyphs(size=16, count=32)
    read = functools.partial(source.read, rng=np.random.default_rng(0))
    batch = {"data": jnp.asarray(np.stack([read(i)["data"] for i in range(8)]))}
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state, key):
        (_, metrics), gradients = jax.value_and_grad(system.loss, has_aux=True)(params, batch, key)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, metrics

    params = system.init(jax.random.key(0))
    state, seen = optimizer.init(params), []
    for i in range(30):
        params, state, metrics = step(params, state, jax.random.key(i))
        seen.append(float(metrics["reconstruction"]))
    assert seen[-1] < 0.6 * seen[0]
    made = system.reconstruct(params, np.asarray(batch["data"]))
    assert made.shape == batch["data"].shape and np.abs(made).max() <= 1
    error = np.abs(made - batch["data"]).mean()
    assert error < 0.6 * seen[0]
    drawn = system.reconstruct(params, batch["data"], jax.random.key(0))
    assert not np.array_equal(made, drawn)
