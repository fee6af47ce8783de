"""Quantizers, their levels, the autoencoder around them, its table and its training."""

import functools
import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxar.core.resize import bicubic_weights, resize_bicubic
from jaxar.data.glyphs import Glyphs
from jaxar.nn.module import bind, params_of
from jaxar.objectives.quantized import QuantizedAutoencoding
from jaxar.tokenizers.autoencoders import vq as table
from jaxar.tokenizers.autoencoders.vq import VQAutoencoder
from jaxar.tokenizers.quantizers.implicit import FiniteScalar, LookupFree
from jaxar.tokenizers.quantizers.residual import MultiScaleQuantizer, phi_indices
from jaxar.tokenizers.quantizers.vector import Quantizer, VectorQuantizer, perplexity, usage
from jaxar.tree import count, paths
from jaxar.weights.tables import WeightsError

RELEASED = json.loads((Path(__file__).parent / "goldens" / "var_d16_keys.json").read_text())
KEY = jax.random.key(0)
TINY = dict(image_channels=1, width=8, multipliers=(1, 2), blocks=1, attention=(1,))


def normal(*shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape)


def vector(vocabulary=11, channels=3, *, codebook=None, **options):
    """A vector quantizer with a codebook worth choosing from."""
    made = VectorQuantizer(vocabulary=vocabulary, channels=channels, **options, key=KEY)
    made.codebook[...] = normal(vocabulary, channels, seed=7) if codebook is None else codebook
    return made


QUANTIZERS = {
    "euclidean": vector,
    "cosine": functools.partial(vector, distance="cosine"),
    "finite_scalar": lambda: FiniteScalar(levels=(5, 4, 3), key=KEY),
    "lookup_free": lambda: LookupFree(bits=3, key=KEY),
}
every_quantizer = pytest.mark.parametrize("make", QUANTIZERS.values(), ids=QUANTIZERS)


# Enlarging.


def enlarged_naively(x, height, width, a=-0.75):
    """One pixel at a time, by the definition of cubic convolution."""

    def kernel(d):
        d = abs(d)
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0

    h, w, _ = x.shape
    out = np.zeros((height, width, x.shape[-1]))
    for i, j in np.ndindex(height, width):
        y, z = (i + 0.5) * h / height - 0.5, (j + 0.5) * w / width - 0.5
        for m in range(int(np.floor(y)) - 1, int(np.floor(y)) + 3):
            for n in range(int(np.floor(z)) - 1, int(np.floor(z)) + 3):
                pixel = x[min(max(m, 0), h - 1), min(max(n, 0), w - 1)]
                out[i, j] += kernel(y - m) * kernel(z - n) * pixel
    return out


SIZES = [((1, 1), (4, 5)), ((2, 3), (8, 8)), ((4, 3), (5, 7)), ((13, 10), (16, 16))]


@pytest.mark.parametrize(("size", "grid"), SIZES)
def test_bicubic_is_cubic_convolution(size, grid):
    x = np.asarray(normal(2, *size, 3))
    ours = resize_bicubic(jnp.asarray(x), grid)
    np.testing.assert_allclose(ours[1], enlarged_naively(x[1], *grid), atol=1e-5)


@pytest.mark.parametrize(("size", "grid"), SIZES)
def test_bicubic_is_what_torch_does(size, grid):
    torch = pytest.importorskip("torch")
    x = np.array(normal(2, *size, 3))
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(x).permute(0, 3, 1, 2), size=grid, mode="bicubic"
    )
    ours = resize_bicubic(jnp.asarray(x), grid)
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), atol=2e-6)


def test_bicubic_keeps_sizes_and_constants():
    np.testing.assert_array_equal(bicubic_weights(5, 5), np.eye(5))
    np.testing.assert_allclose(bicubic_weights(3, 8).sum(1), 1, atol=1e-6)


# Quantizers.


@every_quantizer
def test_every_code_stands_for_itself(make):
    """Codes and vectors are one to one, each vector its own nearest."""
    quantizer = make()
    assert isinstance(quantizer, Quantizer)
    codes = jnp.arange(quantizer.vocabulary)
    vectors = quantizer.embed(codes)
    assert vectors.shape == (quantizer.vocabulary, quantizer.channels)
    assert len(np.unique(vectors, axis=0)) == quantizer.vocabulary
    if isinstance(quantizer, FiniteScalar):  # before the squashing
        halves = np.asarray([level // 2 for level in quantizer.levels])
        half = (np.asarray(quantizer.levels) - 1) * (1 - quantizer.margin) / 2
        offset = np.where(np.asarray(quantizer.levels) % 2, 0, 0.5)
        inside = np.clip((np.asarray(vectors) * halves + offset) / half, -0.9999, 0.9999)
        vectors = jnp.asarray(np.arctanh(inside) - np.tan(offset / half), jnp.float32)
    np.testing.assert_array_equal(quantizer.nearest(vectors), codes)
    grid = quantizer.nearest(vectors.reshape(1, -1, 1, quantizer.channels))
    assert grid.shape == (1, quantizer.vocabulary, 1) and grid.dtype == jnp.int32


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_the_nearest_code_is_nearest(distance):
    quantizer, x = vector(distance=distance), normal(50, 3)
    codes, a, b = quantizer.nearest(x), np.asarray(x), np.asarray(quantizer.codebook[...])
    if distance == "cosine":
        a, b = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (a, b))
    apart = np.linalg.norm(a[:, None] - b, axis=-1)
    np.testing.assert_array_equal(codes, apart.argmin(1))
    np.testing.assert_array_equal(quantizer.embed(codes), quantizer.codebook[...][codes])


@every_quantizer
def test_the_gradient_goes_straight_through(make):
    """As if nothing had been rounded; of finite scalars only the squashing is felt."""
    quantizer, x, weight = make(), normal(2, 4, 3), normal(2, 4, 3, seed=2)

    def value(x):
        return (weight * quantizer.quantize(x)[1]).sum()

    def smooth(x):
        if isinstance(quantizer, FiniteScalar):
            x = quantizer.bound(x) / np.asarray([2, 2, 1])
        return (weight * x).sum()

    np.testing.assert_allclose(jax.grad(value)(x), jax.grad(smooth)(x), rtol=1e-5)
    codes, quantized, loss = quantizer.quantize(x)
    np.testing.assert_allclose(quantized, quantizer.embed(codes), atol=1e-6)
    assert loss.shape == ()


def test_beta_weighs_the_commitment_alone():
    """The codebook moves as without it, the features by its measure."""
    x = normal(20, 3)
    gradients = []
    for beta in (0.0, 0.5):
        template = vector(beta=beta)

        def loss(params, x, template=template):
            return bind(template, params).quantize(x)[2]

        gradients.append(jax.grad(loss, (0, 1))(params_of(template), x))
    (own, none), (same, some) = gradients
    np.testing.assert_allclose(own["codebook"], same["codebook"], rtol=1e-6)
    quantized = template.embed(template.nearest(x))
    np.testing.assert_array_equal(none, jnp.zeros_like(x))
    np.testing.assert_allclose(some, 0.5 * 2 * (x - quantized) / x.size, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("learning", ["gradient", "average"])
def test_a_codebook_fits_and_dead_codes_come_back(learning):
    """Started far away but for one code, only restarts bring the others into use."""
    x = normal(200, 2)
    start = jnp.concatenate([jnp.zeros((1, 2)), 9 + normal(15, 2, seed=3)])
    used, errors = [], []
    for restart in (0.0, 0.5):
        template = vector(16, 2, learning=learning, restart=restart, decay=0.9)
        optimizer = optax.adam(0.1)

        @jax.jit
        def step(params, state, key, template=template, optimizer=optimizer):
            slope = jax.grad(lambda p: bind(template, p).quantize(x)[2])(params)
            updates, state = optimizer.update(slope, state)
            network = bind(template, optax.apply_updates(params, updates))
            network.settle([x], key)
            return params_of(network), state

        params = {**params_of(template), "codebook": start}
        if learning == "average":
            params["sums"] = start * params["counts"][:, None]
        state = optimizer.init(params)
        for i in range(300):
            params, state = step(params, state, jax.random.key(i))
        fitted = bind(template, params)
        codes = fitted.nearest(x)
        used.append(float(usage(codes, 16)))
        errors.append(float(jnp.mean(jnp.square(fitted.embed(codes) - x))))
    assert used[0] < 0.2 and used[1] == 1
    assert errors[1] < 0.25 * errors[0]


def test_an_averaged_code_is_the_mean_of_the_vectors_that_chose_it():
    """With a short memory it is the mean of the batch, and no gradient moves it."""
    quantizer, x = vector(8, 3, learning="average", decay=0.0), normal(400, 3)
    codes = np.asarray(quantizer.nearest(x))
    quantizer.settle([x[:100], x[100:]], jax.random.key(0))
    for code in np.unique(codes):
        mean = np.asarray(x)[codes == code].mean(0)
        np.testing.assert_allclose(quantizer.codebook[...][code], mean, rtol=1e-4, atol=1e-5)
    slope = jax.grad(lambda p: bind(quantizer, p).quantize(x)[2])(params_of(quantizer))
    assert all((leaf == 0).all() for leaf in slope.values())


def test_restarts_reach_every_level():
    """Few vectors far away at one level, many at the other: both get codes."""
    few, many = 50 + normal(4, 2), normal(4000, 2)
    quantizer = vector(32, 2, restart=0.5, decay=0.0, codebook=jnp.full((32, 2), -9.0))
    for i in range(3):
        quantizer.settle([few, many], jax.random.key(i))
    far = (quantizer.codebook[...] > 25).all(1).sum()
    assert 1 <= far <= 31


def test_the_entropy_penalty_wants_sure_vectors_and_all_codes():
    quantizer = LookupFree(bits=3, entropy=1.0, key=KEY)
    corners = quantizer.embed(jnp.arange(8))
    np.testing.assert_allclose(quantizer.penalty(20 * corners), -np.log(8), rtol=1e-4)
    np.testing.assert_allclose(quantizer.penalty(20 * corners[:1]), 0, atol=1e-4)
    np.testing.assert_allclose(quantizer.penalty(0 * corners), 0, atol=1e-4)


def test_use_of_codes():
    codes = jnp.asarray([[0, 1], [1, 0], [0, 1]])
    np.testing.assert_allclose(usage(codes, 8), 0.25)
    np.testing.assert_allclose(perplexity(codes, 8), 2, rtol=1e-6)
    np.testing.assert_allclose(perplexity(jnp.arange(8), 8), 8, rtol=1e-5)
    np.testing.assert_allclose(perplexity(jnp.zeros(5, int), 8), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vector(distance="manhattan"), "manhattan"),
        (lambda: VectorQuantizer(vocabulary=0, key=KEY), "vocabulary=0"),
        (lambda: FiniteScalar(levels=(3, 1), key=KEY), "at least 2"),
        (lambda: FiniteScalar(levels=(2,) * 31, key=KEY), "below 2"),
        (lambda: LookupFree(bits=31, key=KEY), "bits=31"),
        (lambda: multi_scale(levels=(3, 2)), "between 1 and the last"),
        (lambda: multi_scale(levels=()), "between 1 and the last"),
        (lambda: multi_scale(phis=-1), "phis=-1"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Levels.


def multi_scale(quantizer=None, *, levels=(1, 2, 3, 5), phis=4, **options):
    quantizer = vector() if quantizer is None else quantizer
    return MultiScaleQuantizer(quantizer, levels=levels, phis=phis, **options, key=KEY)


LEVELS = [(1, 2, 3, 5), (4,), ((1, 2), (3, 2), (3, 5)), (3, 3, 3), ((2, 3), 1, (4, 3)), (7, 8)]


@every_quantizer
@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_levels_of_any_sizes(levels, make):
    quantizer = multi_scale(make(), levels=levels, phis=2)
    x = normal(2, *quantizer.grid, 3)
    codes, quantized, loss = quantizer.quantize(x)
    assert [own.shape[1:] for own in codes] == list(quantizer.grids)
    chex.assert_trees_all_equal(codes, quantizer.encode(x))
    np.testing.assert_allclose(quantizer.decode(codes), quantized, atol=1e-5)
    assert np.isfinite(loss)
    chex.assert_trees_all_equal(quantizer.split(quantizer.join(codes)), codes)
    assert quantizer.join(codes).shape == (2, sum(h * w for h, w in quantizer.grids))


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_teacher_forcing_is_the_walk_of_the_sampler(levels):
    quantizer = multi_scale(levels=levels, phis=3)
    codes = quantizer.encode(normal(2, *quantizer.grid, 3))
    total, inputs = jnp.zeros((2, *quantizer.grid, 3)), [jnp.zeros((2, 0, 3))]
    for level, own in enumerate(codes):
        total = total + quantizer.contribution(own, level)
        following = quantizer.input_of(min(level + 1, len(codes) - 1), total)
        if level + 1 < len(codes):
            assert following.shape[1:3] == quantizer.grids[level + 1]
            inputs.append(following.reshape(2, -1, 3))
    forced = quantizer.teacher_forcing(codes)
    np.testing.assert_allclose(forced, jnp.concatenate(inputs, 1), atol=1e-6)
    np.testing.assert_allclose(total, quantizer.decode(codes), atol=1e-6)
    np.testing.assert_allclose(following, total, atol=1e-6)


def test_codes_of_what_was_decoded_are_the_codes():
    """On one level, or where each level has a codebook's worth of its own."""
    single = multi_scale(levels=(4,), phis=0)
    codes = single.encode(normal(2, 4, 4, 3))
    chex.assert_trees_all_equal(single.encode(single.decode(codes)), codes)

    # Binary digits: level k adds or takes 2^-k, so that no level can undo another.
    digits = LookupFree(bits=3, key=KEY)
    quantizer = multi_scale(digits, levels=(4,) * 3, phis=3)
    for i, phi in enumerate(quantizer.phis):  # phi(h) = 2^-i h
        scale = 2 * 2.0**-i - 1
        phi.kernel[...] = jnp.zeros((3, 3, 3, 3)).at[1, 1].set(scale * jnp.eye(3))
        phi.bias[...] = jnp.zeros(3)
    quantizer.which = (0, 1, 2)
    codes = quantizer.encode(2 * normal(2, 4, 4, 3))
    chex.assert_trees_all_equal(quantizer.encode(quantizer.decode(codes)), codes)


@pytest.mark.parametrize("levels", [(8, 8, 8, 8), (1, 2, 4, 8)], ids=str)
def test_the_error_falls_with_each_level_of_a_fitted_codebook(levels):
    """Fitted by the loss alone; smooth maps, so that coarse levels say something."""
    x = resize_bicubic(normal(64, 3, 3, 2), (8, 8)) + 0.3 * normal(64, 8, 8, 2, seed=5)
    template = multi_scale(vector(64, 2, restart=0.5, decay=0.9), levels=levels, phis=4)
    params, optimizer = params_of(template), optax.adam(0.02)

    @jax.jit
    def step(params, state, key):
        slope = jax.grad(lambda p: bind(template, p).quantize(x)[2])(params)
        updates, state = optimizer.update(slope, state)
        network = bind(template, optax.apply_updates(params, updates))
        network.settle(x, key)
        return params_of(network), state

    state = optimizer.init(params)
    for i in range(150):
        params, state = step(params, state, jax.random.key(i))
    quantizer = bind(template, params)
    codes = quantizer.encode(x)
    errors = [jnp.mean(jnp.square(x - total)) for total in quantizer.partial(codes)]
    errors = np.asarray([jnp.mean(jnp.square(x)), *errors])
    assert (np.diff(errors) < 0).all(), errors
    assert errors[-1] < 0.2 * errors[0]


def test_what_does_not_fit_is_named():
    quantizer = multi_scale()
    codes = quantizer.encode(normal(1, 5, 5, 3))
    with pytest.raises(ValueError, match=r"must be \(5, 5, 3\), not \(5, 4, 3\)"):
        quantizer.encode(normal(1, 5, 4, 3))
    for wrong in ((), (*codes, codes[-1])):
        with pytest.raises(ValueError, match="1 to 4 levels"):
            quantizer.decode(wrong)
    with pytest.raises(ValueError, match="39 codes, not 38"):
        quantizer.split(jnp.zeros((1, 38), int))


def test_released_levels_share_four_phis():
    assert phi_indices(10, 4) == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)


@pytest.mark.parametrize("phis", [1, 2, 3, 4, 5, 8, 10, 12])
@pytest.mark.parametrize("levels", range(1, 13))
def test_each_level_takes_the_phi_whose_tick_is_nearest(levels, phis):
    """Ticks from 1/(2P) in equal steps to 1 - 1/(2P); four start at 1/(3P)."""
    start = 1 / 12 if phis == 4 else 1 / (2 * phis)
    ticks = [start + (1 - 2 * start) * j / max(phis - 1, 1) for j in range(phis)]
    chosen = phi_indices(levels, phis)
    assert len(chosen) == levels and list(chosen) == sorted(chosen)
    for level, phi in enumerate(chosen):
        place = level / max(levels - 1, 1)
        apart = [abs(tick - place) for tick in ticks]
        assert 0 <= phi < phis and apart[phi] <= min(apart) + 1e-12
    if levels == phis:
        assert chosen == tuple(range(phis))


# The autoencoder.


def make(key, quantizer=None, **changes):
    quantizer = VectorQuantizer(vocabulary=32, channels=4, key=key)
    return VQAutoencoder(quantizer, **{**TINY, "levels": (1, 2, 4), **changes}, key=key)


@pytest.mark.parametrize(
    ("levels", "shape"), [((1, 2, 4), (8, 8, 1)), ((1, (2, 3), (3, 5)), (6, 10, 1))]
)
def test_any_image_comes_back_in_its_size(levels, shape):
    network = make(KEY, levels=levels)
    images = jnp.tanh(normal(2, *shape))

    @jax.jit
    def run(images):
        codes = network.encode(images)
        decode = lambda codes: network.decode(network.quantizer.decode(codes))  # noqa: E731
        return decode(codes), network.reconstruct(images), decode(codes[:1])

    made, again, coarse = run(images)
    assert made.shape == coarse.shape == images.shape and np.abs(made).max() <= 1
    np.testing.assert_allclose(made, again, atol=1e-6)
    assert not np.allclose(made, coarse)


def test_images_that_do_not_fit_and_wrong_dtypes_are_named():
    with pytest.raises(ValueError, match=r"must be \(8, 8, 1\).*not \(8, 6, 1\)"):
        make(KEY).features(jnp.zeros((1, 8, 6, 1)))
    with pytest.raises(ValueError, match="float16"):
        make(KEY, dtype="float16")


def test_bfloat16_keeps_the_quantizer_in_float32():
    network, images = make(KEY, dtype="bfloat16"), jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    assert jax.eval_shape(network.features, images).dtype == jnp.float32
    assert jax.eval_shape(network.reconstruct, images).dtype == jnp.float32


@pytest.fixture(scope="module")
def released():
    shapes = {key: tuple(shape) for key, shape in RELEASED["vae_state_dict"].items()}
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}


def test_every_released_key_has_its_place(released):
    def full(key):
        return VQAutoencoder(VectorQuantizer(key=key), key=key)

    template = params_of(jax.eval_shape(full, KEY))
    assert count(template) == RELEASED["vae_num_parameters"]
    buffers = {"quantize.ema_vocab_hit_SV": np.zeros((10, 4096))}
    table.from_state_dict({**released, **buffers}, template)
    parameters = {key for key in released if "ema_vocab" not in key}
    assert {row.theirs for row in table.rows(template)} == parameters
    without = {key: array for key, array in released.items() if "mid.attn_1.qkv.b" not in key}
    with pytest.raises(WeightsError) as error:
        table.from_state_dict({**without, "more": np.zeros(1)}, template)
    lines = str(error.value).split("\n  ")[1:]
    missing = [f"missing key {part}.mid.attn_1.qkv.bias" for part in ("decoder", "encoder")]
    assert sorted(lines) == [*missing, "unused key more"]


def test_a_fused_map_comes_apart_in_its_order():
    template = params_of(jax.eval_shape(make, KEY))
    shapes = {}
    for row in table.rows(template):
        shape = paths(template)[row.ours].shape
        square = (max(shape), max(shape), 1, 1)
        theirs = {1: shape, 2: shape[1:], 3: square, 4: (*shape[:1:-1], *shape[:2])}
        theirs = shape if row.theirs.endswith("embedding.weight") else theirs[len(shape)]
        fused = ".qkv." in row.theirs
        shapes[row.theirs] = (3 * theirs[0], *theirs[1:]) if fused else theirs
    rng = np.random.default_rng(0)
    state = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    params = table.from_state_dict(state, template)
    weight = state["encoder.mid.attn_1.qkv.weight"][:, :, 0, 0]
    bias = state["encoder.mid.attn_1.qkv.bias"]
    own = params["encoder"]["middle"]["attention"]
    x = rng.normal(size=16).astype(np.float32)
    mapped = [x @ own[part]["kernel"][:, 0] + own[part]["bias"][0] for part in "qkv"]
    np.testing.assert_allclose(np.concatenate(mapped), weight @ x + bias, rtol=1e-4, atol=1e-5)


# Training.


def training(**options):
    shape = (16, 16, 1)
    options = {"discriminator_width": 8, "discriminator_layers": 2, **options}
    return QuantizedAutoencoding(functools.partial(make, levels=(1, 2, 8)), shape, **options)


def test_metrics_hold_every_term_and_add_up():
    system = training(quantization_weight=0.5)
    params = system.init(KEY)
    batch = {"data": jnp.tanh(normal(2, *system.shape))}
    loss, metrics = jax.jit(system.loss)(params, {}, batch, KEY)
    use = {f"{name}_{level}" for name in ("usage", "perplexity") for level in (1, 2, 3)}
    assert set(metrics) == {"loss", "reconstruction", "quantization"} | use
    total = metrics["reconstruction"] + 0.5 * metrics["quantization"]
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    assert all(0 < metrics[f"usage_{level}"] <= 1 for level in (1, 2, 3))


def test_the_adversarial_game_is_played():
    system = training(adversarial_weight=0.5)
    params = jax.eval_shape(system.init, KEY)
    batch = {"data": jax.ShapeDtypeStruct((2, *system.shape), jnp.float32)}
    _, metrics = jax.eval_shape(system.loss, params, {}, batch, KEY)
    assert {"generator", "discriminator", "ratio", "quantization"} <= set(metrics)


def test_images_and_weights_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="at least 0"):
        training(quantization_weight=-1.0)
    with pytest.raises(ValueError, match=r"must be \(16, 16, 1\)"):
        QuantizedAutoencoding(functools.partial(make, levels=(1, 8)), (16, 8, 1))


def test_every_part_learns_and_the_loss_falls():
    system = training()
    source = Glyphs(size=16, count=32)
    read = functools.partial(source.read, rng=np.random.default_rng(0))
    batch = {"data": jnp.asarray(np.stack([read(i)["data"] for i in range(8)]))}
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state, key):
        (_, metrics), slope = jax.value_and_grad(system.loss, has_aux=True)(params, {}, batch, key)
        updates, state = optimizer.update(slope, state)
        return optax.apply_updates(params, updates), state, metrics, slope

    params = system.init(KEY)
    state, seen = optimizer.init(params), []
    for i in range(30):
        params, state, metrics, slope = step(params, state, jax.random.key(i))
        seen.append(float(metrics["reconstruction"]))
    idle = [path for path, leaf in paths(slope).items() if not np.abs(leaf).max() > 0]
    assert not [path for path in idle if "/phis/" not in path], idle  # three levels, four phis
    assert seen[-1] < 0.7 * seen[0]
    made = system.reconstruct(params, np.asarray(batch["data"]))
    assert np.abs(made - batch["data"]).mean() < 0.7 * seen[0]
