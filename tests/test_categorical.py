"""Codes and their law: what may be drawn, how often, mixtures; and the walk that predicts them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxar.core import plan
from jaxar.core.condition import Label
from jaxar.core.known import Known
from jaxar.core.random import Draws
from jaxar.flow.guidance import Guidance, Guide, share_of
from jaxar.heads.base import Turn
from jaxar.heads.categorical import Categorical, Choosing, top_k, top_p
from jaxar.nn.module import bind
from jaxar.schemes.base import BackboneWithHead, Settings
from jaxar.schemes.shifted import Shifted
from jaxar.system import System
from jaxar.systems.image.var import VAR
from jaxar.tokenizers.adapters.features import FeatureMap
from jaxar.tokenizers.quantizers.residual import MultiScaleQuantizer
from jaxar.tokenizers.quantizers.vector import VectorQuantizer
from jaxar.tokenizers.tokens import Codes
from tests.given import Given, loss_given, sample_given

LEVELS = (1, 2, (2, 3), (3, 4))
SCALES = plan.scale((3, 4), sizes=LEVELS)
VOCABULARY, CHANNELS, CLASSES, WIDTH = 11, 3, 5, 16
KEY = jax.random.key(0)


def normal(*shape, seed=1, scale=1.0):
    return scale * jax.random.normal(jax.random.key(seed), shape)


def of(logits):
    """A head whose logits are its input."""
    head = Categorical(SCALES, logits.shape[-1], logits.shape[-1], key=KEY)
    head.logits.kernel[...] = jnp.eye(logits.shape[-1])
    return head


def turn(draws, *, share=0.5, guide=None, known=None, **settings):
    return Turn(None, share, guide, draws, Choosing(**settings), known)


def keys(count, seed=3):
    return Draws(jax.random.split(jax.random.key(seed), count))


# What may be drawn.


def test_top_k_keeps_the_largest_and_what_ties_with_the_last_of_them():
    logits = jnp.asarray([[3.0, 1.0, 2.0, 2.0, 0.0], [0.0, 4.0, 1.0, 2.0, 3.0]])
    kept = np.isfinite(top_k(logits, 2))
    np.testing.assert_array_equal(kept, [[1, 0, 1, 1, 0], [0, 1, 0, 0, 1]])
    for count in (0, 5, 9):
        np.testing.assert_array_equal(top_k(logits, count), logits)


@pytest.mark.parametrize("mass", [0.05, 0.3, 0.9, 0.999])
def test_top_p_keeps_the_fewest_that_make_up_the_mass(mass):
    logits = normal(40, VOCABULARY, scale=2.0)
    kept = np.isfinite(top_p(logits, mass))
    shares = special.softmax(np.asarray(logits, np.float64), -1)
    held = np.where(kept, shares, np.inf)
    assert kept[np.arange(40), shares.argmax(-1)].all()
    assert (np.where(kept, shares, 0).sum(-1) >= mass - 1e-6).all()
    without_last = np.where(kept, shares, 0).sum(-1) - held.min(-1)
    assert (without_last < mass + 1e-6).all()
    assert (held.min(-1) > np.where(kept, 0, shares).max(-1)).all()


def test_top_p_empties_nothing_and_none_takes_all():
    logits = jnp.stack([jnp.zeros(VOCABULARY), normal(VOCABULARY)])
    assert np.isfinite(top_p(logits, 1e-6))[0].all()  # they tie
    assert np.isfinite(top_p(logits, 1e-6))[1].sum() == 1
    np.testing.assert_array_equal(top_p(logits, 0.0), logits)
    cut = top_k(logits, 3)
    np.testing.assert_array_equal(top_p(cut, 1.0), cut)


@pytest.mark.parametrize("wrong", [{"top_k": -1}, {"top_p": 1.5}, {"top_p": -0.1}])
def test_bad_settings_name_the_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Choosing(**wrong)


# How often.


def follows(codes, probabilities):
    """Whether codes come as often as they should, by a chi-square test at the level of 0.001.

    Those that should come less than five times are counted together, for the law of the test.
    """
    expected = codes.size * probabilities
    seen = np.bincount(np.ravel(codes), minlength=len(probabilities))
    rare = expected < 5
    groups = [np.append(x[~rare], x[rare].sum()) for x in (seen, expected)]
    if groups[1][-1] == 0:  # what is impossible did not come
        groups = [x[:-1] for x in groups]
        assert groups[0].sum() == codes.size
    return stats.chisquare(*groups).pvalue > 1e-3


@pytest.mark.parametrize("rule", [{}, {"top_k": 4}, {"top_p": 0.7}, {"top_k": 6, "top_p": 0.9}])
def test_codes_come_as_often_as_their_probabilities_say(rule):
    logits, count = normal(VOCABULARY), 20_000
    allowed = top_p(top_k(logits, rule.get("top_k", 0)), rule.get("top_p", 0.0))
    hidden = jnp.broadcast_to(logits, (count, 1, VOCABULARY))
    codes = of(logits).draw(hidden, turn(keys(count), **rule))
    assert follows(codes, special.softmax(np.asarray(allowed, np.float64)))


def test_guidance_acts_on_the_logits():
    """The law is that of u + w (c - u); with the weight 1 it is that of c."""
    conditional, other, count = normal(VOCABULARY), normal(VOCABULARY, seed=2), 20_000
    hidden = jnp.concatenate(
        [jnp.broadcast_to(x, (count, 1, VOCABULARY)) for x in (conditional, other)]
    )
    head = of(conditional)
    for weight in (1.0, 2.5):
        guide = Guide(Guidance(), weight)
        codes = head.draw(hidden, turn(keys(count), guide=guide))
        mixed = np.asarray(other + weight * (conditional - other), np.float64)
        assert follows(codes, special.softmax(mixed))


def test_tokens_are_drawn_independently():
    codes = of(jnp.zeros(2)).draw(jnp.zeros((4000, 2, 2)), turn(keys(4000)))
    table = np.zeros((2, 2))
    np.add.at(table, tuple(codes.T), 1)
    assert stats.chisquare(table.ravel()).pvalue > 1e-3


# Mixtures.


def test_smooth_weights_are_a_mixture_that_sharpens():
    logits = normal(500, 2, VOCABULARY)
    largest = []
    for share in (0.0, 0.5, 0.9, 1.0):
        weights = of(logits).draw(logits, turn(keys(500), share=share, smooth=True))
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
        largest.append(float(weights.max(-1).mean()))
    assert sorted(largest) == largest and largest[-1] > 0.95 > largest[0]
    cut = of(logits).draw(logits, turn(keys(500), smooth=True, top_k=3))
    assert (np.sum(np.asarray(cut) > 0, -1) <= 3).all()


def test_certain_weights_stand_for_what_their_codes_do(system):
    entities = system.entities
    codes = jax.random.randint(KEY, (2, SCALES.tokens), 0, VOCABULARY)
    weights = jax.nn.one_hot(codes, VOCABULARY)
    np.testing.assert_allclose(entities.paste(weights), entities.paste(codes), atol=1e-5)


def test_known_codes_are_kept():
    logits = normal(2, 4, VOCABULARY)
    known = Known(jnp.full((2, 4), 7), jnp.asarray([[True, False] * 2] * 2))
    head = of(logits)
    codes = head.draw(logits, turn(keys(2), known=known))
    free = head.draw(logits, turn(keys(2)))
    np.testing.assert_array_equal(codes, jnp.where(known.mask, 7, free))
    weights = head.draw(logits, turn(keys(2), known=known, smooth=True))
    np.testing.assert_array_equal(weights[known.mask].argmax(-1), 7)
    np.testing.assert_array_equal(weights[known.mask].max(-1), 1)


def test_the_loss_is_minus_the_logarithm_of_the_probability():
    logits = normal(3, SCALES.tokens, VOCABULARY, scale=3.0)
    codes = jax.random.randint(KEY, (3, SCALES.tokens), 0, VOCABULARY)
    loss = of(logits).loss(logits, codes, (), SCALES)
    probability = special.softmax(np.asarray(logits, np.float64), -1)
    expected = -np.log(np.take_along_axis(probability, np.asarray(codes)[..., None], -1)[..., 0])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


# The walk.


@pytest.fixture(scope="module", params=["each", "shared", "plain"])
def system(request):
    """A system of codes on scales that are not square, by each kind of the network."""
    quantizer = MultiScaleQuantizer(
        VectorQuantizer(vocabulary=VOCABULARY, channels=CHANNELS, key=KEY), levels=LEVELS, key=KEY
    )
    quantizer.quantizer.codebook[...] = normal(VOCABULARY, CHANNELS, seed=7)
    entities = Codes(FeatureMap(), quantizer, SCALES)
    make = functools.partial(network, request.param)
    template = jax.eval_shape(make, KEY)
    return System(template, make, Shifted(entities), Label(CLASSES, 0.1), (3, 4, CHANNELS))


def network(kind, key):
    options = dict(cosine=kind != "plain", shared_modulation=kind == "shared", gate_init=0.5)
    backbone = VAR(
        SCALES, CHANNELS, Label(CLASSES), width=WIDTH, depth=2, heads=2, **options, key=key
    )
    return BackboneWithHead(backbone, Categorical(SCALES, WIDTH, VOCABULARY, key=key))


@pytest.fixture(scope="module")
def params(system):
    """Parameters of which every one matters: none stands near zero."""
    leaves, tree = jax.tree.flatten(system.init(KEY))
    drawn = [leaf + normal(*leaf.shape, seed=i, scale=0.3) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(tree, drawn)


def test_hidden_vectors_see_no_later_level(system, params):
    """By gradient: a level depends on its own input and on those before, on none after it."""
    inputs, labels = normal(1, SCALES.tokens - 1, CHANNELS), jnp.asarray([2])

    @jax.jit
    def influence(inputs):
        backbone = bind(system.network, params).backbone

        def hidden(inputs):
            return backbone(inputs, labels, SCALES.layout())[0][0]

        return jnp.abs(jax.jacobian(hidden)(inputs)[:, :, 0]).sum((1, 3))

    table = np.pad(np.asarray(influence(inputs)), ((0, 0), (1, 0)))  # the first level has no input
    seen = SCALES.entity[:, None] >= SCALES.entity[None, :]
    seen[:, 0] = False
    np.testing.assert_array_equal(table > 0, seen)


@pytest.mark.parametrize("schedule", ["constant", pytest.param("linear", marks=pytest.mark.slow)])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_cached_sampling_is_one_block_causal_pass(system, params, guidance, schedule):
    """What each level saw through the cache, it sees in one pass over the codes that were drawn."""
    labels = jnp.asarray([3, 1])
    noise = jax.random.gumbel(jax.random.key(9), (2, SCALES.tokens, VOCABULARY))

    def gumbel(entity, number, shape):
        return noise[:, SCALES.offsets[entity] : SCALES.offsets[entity + 1]]

    rule = Settings(Choosing(), guidance=Guidance(schedule), guided=guidance != 1)
    codes = sample_given(system, params, labels, guidance, rule, Given(gumbel_of=gumbel))
    assert len(np.unique(codes)) > 3

    @jax.jit
    def logits(codes, labels):
        made = bind(system.network, params)
        hidden, _ = made.backbone(system.entities.inputs(codes), labels, SCALES.layout())
        return made.head.logits(hidden)

    conditional, other = (logits(codes, of) for of in (labels, jnp.full(2, CLASSES)))
    share = share_of(jnp.asarray(SCALES.entity), SCALES.entities)[:, None]
    weight = rule.guidance.weight(guidance, share)
    score = other + weight * (conditional - other) + noise
    np.testing.assert_array_equal(codes, score.argmax(-1))


def test_an_image_depends_on_its_key_alone(system, params):
    drawn, labels = jax.random.split(jax.random.key(1), 3), jnp.asarray([0, 1, 1])
    sample = jax.jit(functools.partial(system.sample, settings=Settings(Choosing(top_k=5))))
    together = sample(params, drawn, labels, 2.0)
    alone = sample(params, drawn[1:2], labels[1:2], 2.0)
    np.testing.assert_allclose(alone[0], together[1], atol=1e-5)
    assert not np.allclose(together[1], together[2])


def test_codes_of_data_are_what_the_loss_is_of(system, params):
    """The loss of data is that of their codes, given what the coarser codes stand for."""
    data, labels = normal(2, 3, 4, CHANNELS, seed=4), jnp.asarray([0, 4])
    codes = system.entities.cut(data, KEY)
    made = bind(system.network, params)
    hidden, _ = made.backbone(system.entities.inputs(codes), labels, SCALES.layout())
    expected = made.head.loss(hidden, codes, (), SCALES).mean()
    np.testing.assert_allclose(loss_given(system, params, codes, labels, ()), expected, rtol=1e-6)
    batch = {"data": data, "condition": labels}
    found, _ = jax.jit(system.loss)(params, {}, batch, KEY)
    assert np.isfinite(found)
