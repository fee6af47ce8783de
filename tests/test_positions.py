"""Where tokens are: rotary embeddings of any number of coordinates, and maps that are resized."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.core.plan import block, scale, token
from jaxar.core.resize import resize_area, resize_bicubic, resize_bilinear
from jaxar.nn.positions import resized_positions
from jaxar.nn.rope import rotary_at, rotary_table, rotate

RNG = np.random.default_rng(0)
PAIRINGS = ("interleaved", "halves")


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def turned(x, positions, pairing="interleaved", **options):
    table = rotary_table(np.asarray(positions), x.shape[-1], pairing=pairing, **options)
    return np.asarray(rotate(x, jnp.asarray(table), pairing=pairing))


def pairs_of(x, pairing):
    """The complex numbers that a rotation multiplies."""
    if pairing == "interleaved":
        return x[..., 0::2] + 1j * x[..., 1::2]
    first, second = np.split(x, 2, -1)
    return first + 1j * second


# One coordinate.


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("theta", [1e4, 500.0, 5e5])
def test_one_coordinate_is_the_textbook_embedding(pairing, theta):
    """Pair i of position m is multiplied by exp(1j m theta^(-2i/e)), arXiv 2104.09864 (13)."""
    x, places, e = normal(2, 6, 3, 16), np.array([[0], [1], [2], [3], [17], [900]]), 16
    angle = places * theta ** (-2 * np.arange(e // 2) / e)
    wanted = pairs_of(np.asarray(x), pairing) * np.exp(1j * angle)[None, :, None]
    given = pairs_of(turned(x, places, pairing, theta=theta), pairing)
    np.testing.assert_allclose(given, wanted, atol=3e-4)


def test_the_pairings_are_one_rotation_of_reordered_dimensions():
    """So weights of one convention serve the other, with queries and keys reordered."""
    x, places = normal(2, 5, 3, 12), RNG.normal(size=(5, 2)) * 9
    order = np.arange(12).reshape(2, 6).T.reshape(-1)  # 0 6 1 7 2 8 ...
    interleaved = turned(x[..., order], places)
    np.testing.assert_array_equal(turned(x, places, "halves")[..., order], interleaved)
    assert np.abs(turned(x, places, "halves") - turned(x, places)).max() > 0.1


# Several coordinates.

SHARES = {1: [None, (8,)], 2: [None, (4, 12)], 3: [None, (4, 12, 8)]}
CASES = [(a, shares, p) for a, some in SHARES.items() for shares in some for p in PAIRINGS]


@pytest.mark.parametrize(("axes", "shares", "pairing"), CASES)
def test_scores_depend_on_offsets_alone(axes, shares, pairing):
    features = sum(shares) if shares else 8 * axes
    q, k = normal(1, 5, 2, features), normal(1, 5, 2, features)
    here, there = RNG.integers(0, 9, (2, 5, axes))

    def scores(here, there):
        options = dict(shares=shares, theta=100.0)
        sides = (turned(x, p, pairing, **options) for x, p in ((q, here), (k, there)))
        return np.einsum("bnke,bnke->nk", *sides)

    plain = scores(here, there)
    move = RNG.integers(1, 9, axes) + 0.5  # each axis by its own amount
    np.testing.assert_allclose(scores(here + move, there + move), plain, atol=1e-4)
    for step in np.eye(axes, dtype=int):
        assert np.abs(scores(here + step, there) - plain).min() > 1e-3


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_a_coordinate_turns_its_share_by_its_own_base(pairing):
    """Each share is the embedding of its coordinate alone, in pairs of the whole head."""
    shares, theta, places = (4, 12, 8), (100.0, 1e4, 7.0), RNG.normal(size=(5, 3)) * 9
    x = normal(1, 5, 2, 24)
    given = pairs_of(turned(x, places, pairing, theta=theta, shares=shares), pairing)
    ends = np.cumsum(shares) // 2
    for axis, (share, base, end) in enumerate(zip(shares, theta, ends, strict=True)):
        own = slice(end - share // 2, end)
        angle = places[:, [axis]] * base ** (-2 * np.arange(share // 2) / share)
        wanted = pairs_of(np.asarray(x), pairing)[..., own] * np.exp(1j * angle)[None, :, None]
        np.testing.assert_allclose(given[..., own], wanted, atol=1e-4)


def test_equal_shares_are_the_default():
    places = RNG.normal(size=(5, 3))
    given = rotary_table(places, 24, shares=(8, 8, 8), theta=(1e4, 1e4, 1e4))
    np.testing.assert_array_equal(given, rotary_table(places, 24))


# Tables in programs.


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_positions_may_be_traced_and_differ_from_row_to_row(pairing):
    """As the slots of a batcher do, which begin at different places."""
    starts, options = jnp.array([0, 40, 7]), dict(shares=(12, 4), pairing=pairing)
    x, own = normal(3, 5, 2, 16), np.asarray(token((1, 5)).positions)

    @jax.jit
    def run(x, starts):
        places = own + jnp.stack([starts, 2 * starts], -1)[:, None]
        return rotate(x, rotary_table(places, 16, **options), pairing=pairing)

    given = run(x, starts)
    for row, start in enumerate(np.asarray(starts)):
        wanted = turned(x[row : row + 1], own + start * np.array([1, 2]), **options)
        np.testing.assert_allclose(given[row], wanted[0], atol=1e-4)


def test_a_table_of_traced_positions_is_no_constant():
    def program(places):
        return rotary_table(places, 16).sum()

    closed = jax.make_jaxpr(program)(jnp.zeros((4096, 2)))
    assert max((np.size(value) for value in closed.consts), default=0) < 100


def test_places_pick_rows_of_the_table():
    plan = block((4, 6), shape=2)
    place = jnp.array([3, 0, 23])
    rows = rotary_table(plan.positions[np.asarray(place)], 16)
    np.testing.assert_array_equal(rotary_at(plan.positions, 16, place), rows)


def test_a_plan_of_another_size_turns_alike_where_places_coincide():
    small, large = token((2, 4, 4)), token((4, 8, 8))
    known = rotary_table(small.positions, 24)
    resized = rotary_table(large.positions_in(small.grid), 24)
    same = (large.positions % 2 == 0).all(-1)
    np.testing.assert_array_equal(resized[:, same], known)
    assert np.abs(resized[:, ~same][:, :1] - known[:, :1]).max() > 1e-3


@pytest.mark.parametrize(
    ("axes", "options", "words"),
    [
        (2, {}, "2 coordinates .* multiple of 4, not 18"),
        (2, dict(shares=(18,)), r"2 even numbers .* 18, not \(18,\)"),
        (2, dict(shares=(9, 9)), r"2 even numbers .* 18, not \(9, 9\)"),
        (2, dict(shares=(8, 8)), r"2 even numbers .* 18, not \(8, 8\)"),
        (2, dict(shares=(18, 0)), r"2 even numbers .* 18, not \(18, 0\)"),
        (3, dict(theta=(1e4, 1e3)), r"3 rotary coordinates .* not \[10000.0, 1000.0\]"),
    ],
)
def test_what_does_not_fit_a_head_is_refused(axes, options, words):
    with pytest.raises(ValueError, match=words):
        rotary_table(np.zeros((4, axes)), 18, **options)


# Learned maps.

GRIDS = [(12,), (4, 6), (2, 4, 6)]


@pytest.mark.parametrize("resize", [resize_area, resize_bicubic, resize_bilinear])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_map_of_the_same_grid_stays(grid, resize):
    table = normal(*grid, 5)
    given = resized_positions(table, token(grid), resize=resize)
    np.testing.assert_array_equal(given, table.reshape(-1, 5))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_vectors_follow_the_order_of_the_plan(grid):
    table, plan = normal(*grid, 5), block(grid, shape=2, shuffle=1)
    places = tuple(plan.positions.astype(int).T)
    np.testing.assert_array_equal(resized_positions(table, plan), table[places])


def test_every_level_reads_the_mean_of_what_it_covers():
    table, plan = normal(8, 8, 5), scale((4, 4), sizes=[1, 2, 4])
    given = np.split(np.asarray(resized_positions(table, plan)), plan.offsets[1:-1])
    for (h, w), vectors in zip(plan.levels, given, strict=True):
        for (i, j), vector in zip(itertools.product(range(h), range(w)), vectors, strict=True):
            own = table[i * 8 // h : (i + 1) * 8 // h, j * 8 // w : (j + 1) * 8 // w]
            np.testing.assert_allclose(vector, own.mean((0, 1)), atol=1e-6)


def test_gradients_reach_the_whole_map_from_levels_never_trained_with():
    table, plan = normal(6, 6, 3), scale((5, 5), sizes=[(2, 3), 5])
    slopes = jax.grad(lambda table: resized_positions(table, plan).sum())(table)
    assert (slopes > 0).all()


def test_a_finer_plan_reads_a_smooth_map_between_its_places():
    """A ramp, to 0.05 of a step as the cubic rule has it; centres lie at (i + 1/2) / size."""
    ramp = jnp.arange(8.0)[:, None]
    given = resized_positions(ramp, token((16,)), resize=resize_bicubic)[:, 0]
    np.testing.assert_allclose(given[4:12], (np.arange(4, 12) + 0.5) / 2 - 0.5, atol=0.06)


def test_a_map_of_another_rank_is_refused():
    with pytest.raises(ValueError, match=r"\(4, 4\) .* \(4,\)"):
        resized_positions(jnp.zeros((4, 4, 2)), token((4,)))
