"""The discrete diffusion of MAR's head: its laws are Gaussian algebra, its sampler hits them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.core import plan
from jaxar.core.random import Draws
from jaxar.flow.diffusion import Diffusion
from jaxar.flow.guidance import Guidance, Guide
from jaxar.heads.base import Turn
from jaxar.heads.diffusion import Denoising, DiffusionHead
from jaxar.nn.compute import Compute

CHAINS = [Diffusion(1000).respaced(12), Diffusion(40).respaced(40), Diffusion(40).respaced(2)]


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: f"{len(chain.steps)}")
def test_posterior_is_bayes(chain):
    """q(x_{t-1} | x_t, x) from the product of two normal laws: precisions add up."""
    x, x_t = normal(0, 5, 3), normal(1, 5, 3)
    alphas = 1 - chain.betas
    products = np.cumprod(alphas)
    for t in range(1, len(chain.steps)):
        prior_mean, prior_variance = np.sqrt(products[t - 1]) * x, 1 - products[t - 1]
        precision = 1 / prior_variance + alphas[t] / chain.betas[t]
        weighted = prior_mean / prior_variance + np.sqrt(alphas[t]) * x_t / chain.betas[t]
        mean, log_variance = chain.posterior(x, x_t, t)
        np.testing.assert_allclose(mean, weighted / precision, atol=1e-5)
        np.testing.assert_allclose(np.exp(log_variance), 1 / precision, rtol=1e-5)
    np.testing.assert_allclose(chain.posterior(x, x_t, 0)[0], x, atol=1e-5)
    np.testing.assert_array_equal(chain.posterior(x, x_t, 0)[1], chain.posterior(x, x_t, 1)[1])


@pytest.mark.parametrize("steps", [1000, 100, 12, 2])
def test_a_chain_has_the_levels_of_the_steps_it_visits(steps):
    """cos^2 of the time, whatever steps are left out; the last beta alone is held at 0.999."""
    chain = Diffusion(1000).respaced(steps)
    level = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    wanted = (level / level[0])[1:]
    wanted[-1] = wanted[-2] * 0.001
    np.testing.assert_allclose(chain.products, wanted[chain.steps], rtol=1e-6)
    assert (chain.betas > 0).all() and (chain.betas < 1).all()


def test_noised_data_have_the_level_of_their_step():
    diffusion, x, noise = Diffusion(50), normal(0, 4, 3), normal(1, 4, 3)
    t = jnp.asarray([0, 1, 20, 49])
    a = np.cumprod(1 - diffusion.betas)[np.asarray(t)][:, None]
    expected = np.sqrt(a) * x + np.sqrt(1 - a) * noise
    np.testing.assert_allclose(diffusion.noised(x, t, noise), expected, atol=1e-6)


def test_respaced_steps():
    """By hand: 999 / 11 = 90.818, 999 / 99 = 10.0909."""
    few = [0, 91, 182, 272, 363, 454, 545, 636, 727, 817, 908, 999]
    assert Diffusion().respaced(12).steps.tolist() == few
    hundred = Diffusion().respaced(100).steps
    assert hundred[[0, 1, 5, 6, 50, 98, 99]].tolist() == [0, 10, 50, 61, 505, 989, 999]
    for total, steps in [(1000, 250), (1000, 999), (1000, 1000), (7, 3), (9, 2), (40, 37)]:
        chosen = Diffusion(total).respaced(steps).steps
        assert len(set(chosen)) == len(chosen) == steps
        assert (chosen[0], chosen[-1]) == (0, total - 1)
        assert np.ptp(np.diff(chosen)) <= 1
    assert Diffusion().respaced(1).steps.tolist() == [0]


@pytest.mark.parametrize("steps", [0, -1, 41])
def test_steps_that_are_not_there_are_refused(steps):
    with pytest.raises(ValueError, match="1 to 40 steps"):
        Diffusion(40).respaced(steps)


@pytest.mark.parametrize(
    "setting", [{"steps": 0}, {"temperature": -0.1}, {"temperature": float("nan")}]
)
def test_bad_settings_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        Denoising(**setting)


MEAN, DEVIATION = jnp.asarray([1.5, -0.5]), jnp.asarray([0.5, 1.3])


def exact(chain):
    """Noise and variance of data N(MEAN, DEVIATION^2), as a perfect network would predict them.

    p(x_{t-1} | x_t) is q(x_{t-1} | x_t, x), its mean linear in x, over the law of x given x_t.
    """

    def network(x_t, step):
        t = jnp.searchsorted(jnp.asarray(chain.steps), step)
        a, beta = jnp.asarray(chain.products)[t], jnp.asarray(chain.betas)[t]
        before = jnp.asarray(np.append(1.0, chain.products[:-1]))[t]
        total = a * DEVIATION**2 + 1 - a
        noise = jnp.sqrt(1 - a) * (x_t - jnp.sqrt(a) * MEAN) / total
        of_x = DEVIATION**2 * (1 - a) / total
        low = beta * (1 - before) / (1 - a)
        variance = low + (beta * jnp.sqrt(before) / (1 - a)) ** 2 * of_x
        share = (jnp.log(variance) - jnp.log(low)) / (jnp.log(beta) - jnp.log(low))
        share = jnp.where(t == 0, 0.0, share)  # the last step adds no noise
        return jnp.concatenate([noise, jnp.broadcast_to(2 * share - 1, noise.shape)], -1)

    return network


@pytest.mark.parametrize("chain", CHAINS[:2], ids=["12 of 1000", "40 of 40"])
def test_ancestral_sampling_gives_the_law_of_the_data(chain):
    count = 20_000
    made = jax.jit(lambda: chain.sample(exact(chain), lambda i: draws(3, i, count)))()
    np.testing.assert_allclose(made.mean(0), MEAN, atol=5 * DEVIATION.max() / count**0.5)
    np.testing.assert_allclose(made.std(0), DEVIATION, rtol=5 / (2 * count) ** 0.5)
    cross = np.corrcoef(made.T)[0, 1]
    assert abs(cross) < 5 / count**0.5


def draws(seed, number, count):
    return jax.random.normal(jax.random.fold_in(jax.random.key(seed), number), (count, 2))


def test_only_the_start_is_random_at_temperature_zero():
    chain, start = CHAINS[0], draws(0, 0, 8)

    def sample(seed, temperature):
        noise = lambda i: jnp.where(i == 0, start, draws(seed, i, 8))  # noqa: E731
        return chain.sample(exact(chain), noise, temperature)

    np.testing.assert_array_equal(sample(1, 0.0), sample(2, 0.0))
    warm, hot = sample(1, 0.5), sample(1, 1.0)
    assert not np.allclose(sample(2, 0.5), warm)
    cold = sample(1, 0.0)
    assert jnp.abs(hot - cold).mean() > jnp.abs(warm - cold).mean() > 0


def test_one_step_works():
    chain = Diffusion(10).respaced(1)
    made = chain.sample(exact(chain), lambda i: draws(0, i, 5))
    assert made.shape == (5, 2) and np.isfinite(made).all()


def test_the_variational_term_moves_the_variance_alone():
    diffusion, count = Diffusion(30), 64
    x, noise, predicted = (normal(i, count, 3) for i in range(3))
    between, t = 0.5 * normal(3, count, 3), jnp.arange(count) % 30
    x_t = diffusion.noised(x, t, noise)

    def loss(predicted, between):
        output = jnp.concatenate([predicted, between], -1)
        return diffusion.loss(output, x, x_t, t, noise).sum()

    def plain(predicted):
        return jnp.mean(jnp.square(noise - predicted), -1).sum()

    of_noise, of_between = jax.grad(loss, (0, 1))(predicted, between)
    np.testing.assert_allclose(of_noise, jax.grad(plain)(predicted), rtol=1e-5)
    assert (jnp.abs(of_between[t > 0]) > 0).all()
    assert loss(predicted, between) > plain(predicted)


def test_a_perfect_prediction_costs_nothing_but_the_last_step():
    """The noise itself and the variance of the posterior: the two laws of the bound agree."""
    diffusion = Diffusion(30)
    x, noise, t = normal(0, 30, 3), normal(1, 30, 3), jnp.arange(30)
    output = jnp.concatenate([noise, -jnp.ones_like(noise)], -1)
    loss = diffusion.loss(output, x, diffusion.noised(x, t, noise), t, noise)
    np.testing.assert_allclose(loss[1:], 0, atol=1e-5)
    assert loss[0] > 0


@pytest.mark.parametrize("x", [-1.0, -0.4, 0.3, 1.0])
def test_the_last_step_is_the_likelihood_of_a_bin(x):
    """In bits; the outer bins reach to infinity."""
    from scipy.stats import norm

    diffusion = Diffusion(30)
    chain = diffusion.chain(np.arange(30))
    data, t = jnp.full((1, 1), x), jnp.zeros(1, int)
    noise, between = jnp.full((1, 1), 0.7), jnp.full((1, 1), 0.2)
    x_t = diffusion.noised(data, t, noise)
    mean, log_variance = (float(v[0, 0]) for v in chain.backward(noise, between, x_t, t))
    low = -np.inf if x < -0.999 else x - 1 / 255
    high = np.inf if x > 0.999 else x + 1 / 255
    law = norm(mean, np.exp(0.5 * log_variance))
    bits = -np.log2(law.cdf(high) - law.cdf(low))
    output = jnp.concatenate([noise, between], -1)
    np.testing.assert_allclose(diffusion.loss(output, data, x_t, t, noise)[0], bits, rtol=5e-3)


# The head.


@pytest.fixture(scope="module")
def head():
    """A head with values in the parts that start at zero."""
    return made_head()


def made_head(kind=DiffusionHead, **options):
    head = kind(
        plan.token((2, 2)), 6, 3, width=8, depth=2, steps=20, key=jax.random.key(0), **options
    )
    for i, part in enumerate([head.blocks.modulation, head.modulation, head.predict]):
        part.kernel[...] = 0.3 * normal(i, *part.kernel.shape)
    return head


def turn(guide=None, **settings):
    keys = jax.random.split(jax.random.key(5), 2)
    return Turn(jnp.arange(4), 1.0, guide, Draws(keys), Denoising(**settings), None)


def test_a_new_head_predicts_zero():
    head = DiffusionHead(plan.token((2, 2)), 6, 3, width=8, depth=2, key=jax.random.key(0))
    assert (head(normal(0, 2, 4, 3), jnp.zeros((2, 4), int), normal(1, 2, 4, 6)) == 0).all()


def test_tokens_are_drawn_each_by_itself(head):
    """Loss and drawing of one token do not depend on the conditions of the others."""
    hidden = normal(0, 2, 4, 6)
    other = hidden.at[:, 1:].set(normal(1, 2, 3, 6))
    a, b = (head.draw(h, turn(steps=5)) for h in (hidden, other))
    np.testing.assert_allclose(a[:, 0], b[:, 0], atol=1e-6)
    assert not np.allclose(a[:, 1:], b[:, 1:])


def test_the_loss_is_a_mean_over_the_uses_of_a_token(head):
    hidden, tokens, where = normal(0, 2, 4, 6), normal(1, 2, 4, 3), plan.token((2, 2))
    noise = head.noise(jax.random.key(2), tokens, where)
    assert noise.steps.shape == (4, 2, 4) and noise.noise.shape == (4, 2, 4, 3)
    single = [
        head.loss(hidden, tokens, jax.tree.map(lambda a, i=i: a[i : i + 1], noise), where)
        for i in range(4)
    ]
    whole = head.loss(hidden, tokens, noise, where)
    np.testing.assert_allclose(whole, np.mean(single, 0), rtol=1e-5)


def test_guidance_mixes_the_noise(head):
    """At weight 1 nothing of the unconditional half is left; one step shows the mixture."""
    hidden, null = normal(0, 2, 4, 6), normal(1, 2, 4, 6)
    both = jnp.concatenate([hidden, null])
    alone = head.draw(hidden, turn(steps=5))
    guided = head.draw(both, turn(Guide(Guidance(), 1.0), steps=5))
    np.testing.assert_allclose(guided, alone, rtol=1e-5)

    # One step is linear in the noise, and of its variance nothing is drawn.
    ends = [head.draw(h, turn(steps=1)) for h in (null, hidden)]
    guided = head.draw(both, turn(Guide(Guidance(), 2.5), steps=1))
    np.testing.assert_allclose(guided, ends[0] + 2.5 * (ends[1] - ends[0]), atol=1e-5)


def test_the_variance_is_the_conditional_one(head):
    """An unconditional half of the same noise but other variances changes nothing."""
    hidden = normal(0, 2, 4, 6)
    guide = Guide(Guidance(), 3.0)

    class Halves(DiffusionHead):
        """Whose unconditional half has the noise of the conditional one."""

        def __call__(self, x, steps, hidden):
            out = super().__call__(x, steps, hidden)
            half = len(out) // 2
            return out if half < 2 else out.at[half:, :, :3].set(out[:half, :, :3])

    halves = made_head(kind=Halves)
    both = jnp.concatenate([hidden, normal(1, 2, 4, 6)])
    expected = head.draw(hidden, turn(steps=5))
    np.testing.assert_allclose(halves.draw(both, turn(guide, steps=5)), expected, rtol=1e-5)


def test_compute_type_and_rematerialisation_keep_the_numbers(head):
    hidden, tokens, where = normal(0, 2, 4, 6), normal(1, 2, 4, 3), plan.token((2, 2))
    noise = head.noise(jax.random.key(2), tokens, where)
    expected = head.loss(hidden, tokens, noise, where)
    again = made_head(compute=Compute(remat="blocks")).loss(hidden, tokens, noise, where)
    np.testing.assert_allclose(again, expected, rtol=1e-6)
    half = made_head(compute=Compute("bfloat16")).loss(hidden, tokens, noise, where)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, expected, rtol=0.05, atol=0.05)
