"""Every way to cut a grid is an order, a mask and a way back, whatever the rank of the grid."""

import hashlib
import itertools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError, read_spec, spec
from jaxar.core.plan import (
    Plan,
    block,
    cell,
    clip,
    frame,
    image,
    row,
    scale,
    shuffled,
    subsample,
    token,
)
from jaxar.core.resize import (
    area_weights,
    bicubic_weights,
    bilinear_weights,
    resize_area,
    resize_bicubic,
    resize_bilinear,
)
from jaxar.registry import build

RNG = np.random.default_rng(0)

PERMUTATIONS = {
    "token": token((3, 5)),
    "token-shuffled": token((4, 3), shuffle=1),
    "cell": cell((4, 6), height=2, width=3),
    "cell-shuffled": cell((6, 4), height=3, width=1, shuffle=2),
    "subsample": subsample((4, 6), height=2, width=3),
    "subsample-shuffled": subsample((6, 4), height=3, width=2, shuffle=3),
    "image": image((3, 4)),
    "text": token((7,)),
    "sound": block((12,), shape=4, shuffle=1),
    "video": block((4, 2, 6), shape=(2, 1, 3), shuffle=2),
    "video-strided": subsample((2, 4, 3), stride=(2, 2, 1)),
    "clips": clip((4, 2, 3), frames=2),
    "rank-4": block((2, 1, 2, 4), shape=(1, 1, 2, 2)),
    "unequal": shuffled(Plan(((5,),), (4, 3, 2, 1, 0), (1, 3, 1)), 1),
}
PLANS = PERMUTATIONS | {
    "scale": scale((4, 4), sizes=[1, 2, 4]),
    "scale-rectangular": scale((5, 4), sizes=[1, (2, 3), (3, 2), (5, 4)]),
    "there-and-back": Plan(((1, 1), (2, 2), (1, 1), (3, 3)), tuple(range(15)), (1, 4, 1, 9)),
    "scale-repeated": scale((2, 2), sizes=[1, 1, 1, 2, 2, 2, 2]),
    "scale-of-sound": scale((8,), sizes=[1, 2, (5,), 8]),
    "scale-of-video": scale((2, 4, 3), sizes=[1, (1, 2, 3), (2, 4, 3)]),
}
GRIDS = [
    tuple(int(n) for n in RNG.choice([1, 2, 3, 4, 6], rank)) for rank in (1, 2, 3) for _ in range(8)
]


def over(plans):
    return pytest.mark.parametrize("plan", plans.values(), ids=plans.keys())


def data(plan, channels=3):
    return jnp.asarray(RNG.normal(size=(2, *plan.grid, channels)), jnp.float32)


def parts(plan, values):
    """The tokens of each entity, apart."""
    return np.split(np.asarray(values), plan.offsets[1:-1], axis=-2)


# Cut and paste.


@over(PLANS)
def test_paste_undoes_cut(plan):
    x = data(plan)
    np.testing.assert_array_equal(plan.paste(plan.cut(x)), x)


@over(PERMUTATIONS)
def test_cut_undoes_paste(plan):
    tokens = jnp.asarray(RNG.normal(size=(2, plan.tokens, 3)))
    np.testing.assert_array_equal(plan.cut(plan.paste(tokens)), tokens)


@pytest.mark.parametrize("shuffle", [None, 5])
def test_a_cell_is_a_block_of_neighbours(shuffle):
    plan = cell((4, 6), height=2, width=3, shuffle=shuffle)
    x = data(plan)
    corners = itertools.product(range(0, 4, 2), range(0, 6, 3))
    blocks = [x[:, i : i + 2, j : j + 3].reshape(2, 6, 3) for i, j in corners]
    assert_same_parts(parts(plan, plan.cut(x)), blocks, ordered=shuffle is None)


@pytest.mark.parametrize("shuffle", [None, 5])
def test_a_subsample_is_strided_and_far_apart(shuffle):
    plan = subsample((4, 6), height=2, width=3, shuffle=shuffle)
    x = data(plan)
    starts = itertools.product(range(2), range(3))
    pictures = [x[:, i::2, j::3].reshape(2, 4, 3) for i, j in starts]
    assert_same_parts(parts(plan, plan.cut(x)), pictures, ordered=shuffle is None)
    for places in parts(plan, plan.positions):
        apart = np.abs(places[:, None] - places[None, :])
        assert not (apart % (2, 3)).any()


def assert_same_parts(given, wanted, *, ordered):
    assert len(given) == len(wanted)
    if not ordered:
        assert not all(map(np.array_equal, given, wanted))
        given, wanted = (sorted(side, key=lambda part: part.tolist()) for side in (given, wanted))
    for a, b in zip(given, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_token_is_alone_and_an_image_is_whole():
    assert token((3, 5)) == cell((3, 5), height=1, width=1) == subsample((3, 5), height=3, width=5)
    assert token((3, 5)).index == image((3, 5)).index == tuple(range(15))
    assert token((3, 5)).sizes == (1,) * 15 and image((3, 5)).sizes == (15,)


def test_the_seed_of_a_shuffle_decides_its_order():
    orders = {token((3, 5), shuffle=seed) for seed in (None, 0, 0, 1, 2)}
    assert len(orders) == 4


def test_scales_are_averages_of_the_data():
    plan = scale((4, 6), sizes=[1, (2, 3), (4, 6)])
    x = data(plan)
    one, half, whole = parts(plan, plan.cut(x))
    np.testing.assert_allclose(one[:, 0], x.mean((1, 2)), atol=1e-6)
    blocks = x.reshape(2, 2, 2, 3, 2, 3).mean((2, 4))
    np.testing.assert_allclose(half, blocks.reshape(2, 6, 3), atol=1e-6)
    np.testing.assert_array_equal(whole, x.reshape(2, 24, 3))


def divisors(grid):
    """A divisor of each side, at random."""
    return tuple(int(RNG.choice([d for d in range(1, n + 1) if n % d == 0])) for n in grid)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_blocks_and_subsamples_are_slices_of_the_raster(grid):
    part, raster = divisors(grid), np.arange(math.prod(grid)).reshape(grid)
    corners = itertools.product(*(range(0, n, d) for n, d in zip(grid, part, strict=True)))
    starts = itertools.product(*map(range, part))
    blocks = [
        raster[tuple(slice(i, i + d) for i, d in zip(corner, part, strict=True))]
        for corner in corners
    ]
    strided = [
        raster[tuple(slice(i, None, d) for i, d in zip(start, part, strict=True))]
        for start in starts
    ]
    for plan, wanted in (block(grid, shape=part), blocks), (subsample(grid, stride=part), strided):
        given = np.split(np.array(plan.index), plan.offsets[1:-1])
        assert_same_parts(given, [entity.reshape(-1) for entity in wanted], ordered=True)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_shuffle_moves_whole_entities(grid):
    part, seed = divisors(grid), int(RNG.integers(100))
    plain = block(grid, shape=part)
    mixed = block(grid, shape=part, shuffle=seed)
    assert mixed == shuffled(plain, seed)
    entities = [[plan.index[slice(*span)] for span in plan.spans()] for plan in (plain, mixed)]
    assert sorted(entities[0]) == sorted(entities[1])


def test_names_are_blocks_of_certain_shapes():
    sound, picture, video = (6,), (4, 6), (4, 6, 2)
    for grid in (sound, picture, video):
        assert token(grid, shuffle=3) == block(grid, shape=1, shuffle=3)
        assert image(grid) == block(grid, shape=grid)
        assert clip(grid, frames=2) == block(grid, shape=(2, *grid[1:]))
        assert frame(grid) == block(grid, shape=(1, *grid[1:])) == clip(grid, frames=1)
    assert row(sound) == image(sound) and frame(sound) == token(sound)
    assert row(picture) == frame(picture) == block(picture, shape=(1, 6))
    assert row(video) == block(video, shape=(1, 1, 2))
    assert cell(picture, height=2, width=3, shuffle=1) == block(picture, shape=(2, 3), shuffle=1)
    assert block(picture, shape=2) == cell(picture, height=2, width=2)
    for seed in (None, 1):
        strided = subsample(picture, stride=(2, 3), shuffle=seed)
        assert strided == subsample(picture, height=2, width=3, shuffle=seed)
    assert scale(video, sizes=[1, video]) == scale(video, sizes=[(1, 1, 1), list(video)])


PLAN_WORDS = {
    "block(shape=(1, 16, 16))": frame((4, 16, 16)),
    "block(shape=2, shuffle=1)": block((4, 16, 16), shape=(2, 2, 2), shuffle=1),
    "row": row((4, 16, 16)),
    "frame": frame((4, 16, 16)),
    "clip(frames=2)": clip((4, 16, 16), frames=2),
    "token": token((4, 16, 16)),
    "image": image((4, 16, 16)),
    "subsample(stride=(1, 4, 4))": subsample((4, 16, 16), stride=(1, 4, 4)),
    "scale(sizes=(1, (2, 4, 4), (4, 16, 16)))": scale(
        (4, 16, 16), sizes=[1, (2, 4, 4), (4, 16, 16)]
    ),
}


@pytest.mark.parametrize("words", PLAN_WORDS)
def test_a_config_names_plans_of_any_rank(words):
    part = read_spec("config.plan", words, spec("token"))
    assert build("plan", part, (4, 16, 16)) == PLAN_WORDS[words]


@pytest.mark.parametrize("words", ["clip(frames=3)", "cell(height=2, width=2)", "subsample"])
def test_a_config_with_an_impossible_plan_is_refused(words):
    part = read_spec("config.plan", words, spec("token"))
    with pytest.raises(ConfigError, match=r"config\.plan: "):
        build("plan", part, (4, 16, 16))


STORED = {
    "801a68833dcb428a": token((16, 16)),
    "b24978ec86811066": token((16, 16), shuffle=7),
    "d40def0cf624895a": cell((16, 16), height=8, width=8),
    "b78c82c24546dc35": cell((8, 12), height=2, width=3, shuffle=3),
    "073c5d2d1ef384b9": subsample((16, 16), height=4, width=4),
    "dcfffbe43d03c642": subsample((8, 12), height=2, width=3, shuffle=3),
    "02d1e937df95ad5c": image((16, 16)),
    "06f0bc9d7b265867": scale((16, 16), sizes=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16)),
    "ffd30e05cd1d66c9": scale((6, 4), sizes=(1, (2, 3), (6, 4))),
}
"""Plans and what the first release of them gave: weights hold one learned vector a place."""


@pytest.mark.parametrize("known", STORED)
def test_orders_stay_those_that_weights_were_trained_with(known):
    plan, digest = STORED[known], hashlib.sha256()
    for values in (np.int64(plan.index), np.int64(plan.sizes), plan.positions):
        digest.update(values.tobytes())
    assert digest.hexdigest()[:16] == known


def test_codes_are_cut_as_vectors_are():
    plan = block((4, 4), shape=2, shuffle=1)
    codes = jnp.arange(32).reshape(2, 4, 4, 1)
    np.testing.assert_array_equal(plan.cut(codes), plan.cut(codes.astype(float)))
    np.testing.assert_array_equal(plan.paste(plan.cut(codes)), codes)
    with pytest.raises(ValueError, match=r"averages .* int32"):
        scale((4, 4), sizes=[2, 4]).cut(codes)


@over(PLANS)
def test_a_spot_touches_the_tokens_that_cover_it(plan):
    mask = np.zeros((1, *(2 * n for n in plan.grid)), np.float32)  # twice as fine as the plan
    spot = [int(RNG.integers(2 * n)) for n in plan.grid]
    mask[0, *spot] = 1
    wanted = []
    for level in plan.levels:
        covers = np.ones(())
        for place, n, m in zip(spot, plan.grid, level, strict=True):
            covers = np.multiply.outer(covers, area_weights(n, m)[:, place // 2] > 0)
        wanted.append(covers.reshape(-1) > 0)
    wanted = np.concatenate(wanted)[list(plan.index)]
    assert wanted.any()
    np.testing.assert_array_equal(plan.touched(jnp.asarray(mask))[0], wanted)


# Order.


@over(PLANS)
def test_entities_offsets_and_sizes_tell_one_story(plan):
    assert len(plan.entity) == len(plan.index) == plan.tokens == plan.offsets[-1]
    assert plan.entities == len(plan.sizes) == len(plan.offsets) - 1
    assert (np.diff(plan.entity) >= 0).all()
    for i, (first, last) in enumerate(itertools.pairwise(plan.offsets)):
        assert last - first == plan.sizes[i]
        assert (plan.entity[first:last] == i).all()


@over(PERMUTATIONS)
def test_positions_are_where_the_tokens_come_from(plan):
    places = np.stack(np.indices(plan.grid), -1)
    np.testing.assert_array_equal(plan.cut(jnp.asarray(places[None], float))[0], plan.positions)
    assert plan.positions.shape == (plan.tokens, len(plan.grid))


def test_every_level_spans_the_grid():
    plan = scale((6, 4), sizes=[1, (2, 3), (3, 4), (6, 4)])
    for (h, w), places in zip(plan.levels, parts(plan, plan.positions), strict=True):
        rows, columns = places.reshape(h, w, 2)[:, 0, 0], places.reshape(h, w, 2)[0, :, 1]
        np.testing.assert_allclose(rows, np.linspace(0, 6, h, endpoint=False))
        np.testing.assert_allclose(columns, np.linspace(0, 4, w, endpoint=False))
    sound = scale((8,), sizes=[2, 4, 8])
    np.testing.assert_array_equal(sound.positions[:6, 0], [0, 4, 0, 2, 4, 6])


@over(PLANS)
def test_positions_in_another_grid_span_it(plan):
    np.testing.assert_array_equal(plan.positions_in(plan.grid), plan.positions)
    finer = tuple(3 * n for n in plan.grid)
    np.testing.assert_array_equal(plan.positions_in(finer), 3 * plan.positions)
    other = tuple(range(5, 5 + len(plan.grid)))
    np.testing.assert_allclose(
        plan.positions_in(other) / np.array(other), plan.positions / np.array(plan.grid)
    )


def test_a_larger_plan_lies_between_the_places_of_a_smaller_one():
    small, large = token((2, 4)), token((4, 8))
    inside = {tuple(place) for place in large.positions_in((2, 4))}
    assert {tuple(place) for place in small.positions} < inside
    assert max(inside) == (1.5, 3.5)


@over(PLANS)
def test_runs_are_the_longest_loops_with_one_shape_to_carry(plan):
    """A loop carries the entity before, so that one too must have the size of the run.

    What is carried between scales depends on their grids: each stands alone.
    """

    def one_size(first, last):
        return len(plan.levels) == 1 and len(set(plan.sizes[first - 1 : last])) == 1

    runs = plan.runs()
    assert runs[0] == (0, 1)
    assert [i for run in runs for i in range(*run)] == list(range(plan.entities))
    assert all(last - first == 1 or one_size(first, last) for first, last in runs)
    for (first, middle), (_, last) in itertools.pairwise(runs[1:]):
        assert not one_size(first, min(middle + 1, last))


# Masks.


@over(PLANS)
def test_a_token_sees_its_entity_and_earlier_ones(plan):
    layout = plan.layout()
    mask = np.asarray(layout.sees.dense())
    for i, j in np.ndindex(plan.tokens, plan.tokens):
        assert mask[i, j] == (plan.entity[j] <= plan.entity[i])
    assert mask.shape == (plan.tokens,) * 2
    assert list(layout.place) == list(range(plan.tokens)) and layout.sizes == plan.sizes


@over(PLANS)
def test_a_noised_token_sees_the_clean_past_and_its_own_entity(plan):
    n, layout = plan.tokens, plan.two_streams()
    mask = np.asarray(layout.sees.dense())
    for i, j in np.ndindex(2 * n, 2 * n):
        query, key = plan.entity[i % n], plan.entity[j % n]
        if i < n and j < n:  # clean looks at clean
            sees = key <= query
        elif i < n:  # clean looks at noised
            sees = False
        elif j < n:  # noised looks at clean
            sees = key < query
        else:  # noised looks at noised
            sees = key == query
        assert mask[i, j] == sees, (i, j)
    assert mask.shape == (2 * n,) * 2
    assert list(layout.place) == [*range(n), *range(n)] and layout.sizes == plan.sizes * 2


# Static data.


def test_equal_plans_compile_once():
    traced = []

    def cut(plan, x):
        traced.append(plan)
        return plan.cut(x)

    jitted = jax.jit(cut, static_argnums=0)
    x = jnp.zeros((1, 4, 4, 1))
    one, same = cell((4, 4), height=2, width=2), cell((4, 4), height=2, width=2)
    assert one.entity.size == 16  # what is remembered must not change what is equal
    assert one == same and hash(one) == hash(same) and one is not same
    jitted(one, x), jitted(same, x)
    assert len(traced) == 1
    jitted(cell((4, 4), height=2, width=2, shuffle=0), x)
    assert len(traced) == 2


def test_a_long_plan_is_hashed_once():
    """A call of a jitted function hashes its static arguments: 65,536 tokens take 0.5 ms a time."""
    long = token((65_536,))
    hash(long)
    start = time.perf_counter()
    for _ in range(2000):
        hash(long)
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize(
    ("make", "numbers"),
    [
        (lambda: block((4, 6, 8), shape=(2, 4, 2)), ["A block of 2 x 4 x 2", "4 x 6 x 8 tokens"]),
        (lambda: block((4, 6), shape=(1, 2, 3)), ["1 x 2 x 3 has 3 axes", "4 x 6 tokens has 2"]),
        (lambda: block((4, 6), shape=(2,)), ["2 has 1 axes", "4 x 6 tokens has 2"]),
        (lambda: block((4,), shape=5), ["5", "4 tokens"]),
        (lambda: clip((4, 2, 2), frames=3), ["A clip of 3 x 2 x 2", "4 x 2 x 2 tokens"]),
        (lambda: cell((4, 4, 4), height=2, width=2), ["A cell of 2 x 2 has 2 axes", "has 3"]),
        (lambda: subsample((4, 6)), ["a stride, or a height and a width"]),
        (lambda: subsample((4, 6), height=2), ["a stride, or a height and a width"]),
        (lambda: subsample((4, 6), stride=2, width=2), ["a stride, or a height and a width"]),
        (lambda: subsample((4,), stride=(2, 2)), ["2 x 2 has 2 axes", "has 1"]),
        (lambda: scale((4, 4, 4), sizes=[(2, 2), 4]), ["A scale of 2 x 2 has 2 axes", "has 3"]),
        (lambda: shuffled(scale((4,), sizes=[2, 4]), 1), ["coarse to fine"]),
        *[
            (lambda make=make: make((4, 0)), ["at least one token", "(4, 0)"])
            for make in (token, image, row, frame, lambda grid: scale(grid, sizes=[1]))
        ],
        (lambda: token(()), ["axes", "()"]),
        (lambda: Plan(((2,), (1, 4)), tuple(range(6)), (2, 4)), ["one rank", "((2,), (1, 4))"]),
        (lambda: Plan((), (), ()), ["()"]),
        (lambda: token((2, 3)).positions_in((4,)), ["4 has 1 axes", "2 x 3"]),
        (lambda: frame((2, 1, 3)).cut(jnp.zeros((1, 2, 3, 1))), ["(2, 1, 3)", "(2, 3)"]),
        (lambda: cell((4, 6), height=3, width=2), ["3 x 2", "4 x 6"]),
        (lambda: cell((4, 6), height=2, width=4), ["2 x 4", "4 x 6"]),
        (lambda: cell((4, 6), height=0, width=2), ["0 x 2", "4 x 6"]),
        (lambda: subsample((4, 6), height=2, width=5), ["2 x 5", "4 x 6"]),
        (lambda: scale((4, 6), sizes=[1, 4]), ["(4, 6)", "(4, 4)"]),
        (lambda: scale((4, 6), sizes=[]), ["(4, 6)"]),
        (lambda: scale((4, 6), sizes=[5, (4, 6)]), ["(4, 6)", "(5, 5)"]),
        (lambda: scale((4, 6), sizes=[0, (4, 6)]), ["(4, 6)", "(0, 0)"]),
        (lambda: scale((4, 6), sizes=[3, 2, (4, 6)]), ["(3, 3), (2, 2)"]),
        (lambda: Plan(((2, 2),), (0, 1, 2, 2), (4,)), ["4"]),
        (lambda: Plan(((2, 2),), (0, 1, 2, 3), (3,)), ["4"]),
        (lambda: token((2, 3)).cut(jnp.zeros((1, 3, 2, 1))), ["(2, 3)", "(3, 2)"]),
    ],
)
def test_an_impossible_plan_names_its_numbers(make, numbers):
    with pytest.raises(ValueError) as error:
        make()
    assert all(number in str(error.value) for number in numbers)


# Resizing.


@pytest.mark.parametrize(("size", "target"), [(7, 3), (5, 4), (9, 2), (6, 3), (5, 1), (3, 3)])
def test_area_weights_are_the_adaptive_average(size, target):
    row = RNG.normal(size=size)
    wanted = []
    for i in range(target):
        first, last = int(np.floor(i * size / target)), int(np.ceil((i + 1) * size / target))
        wanted.append(sum(row[first:last]) / (last - first))
    np.testing.assert_allclose(area_weights(size, target) @ row, wanted, atol=1e-6)


def test_area_averages_rows_and_columns_each_by_its_own_rule():
    x = RNG.normal(size=(2, 5, 7, 3)).astype(np.float32)
    small = np.asarray(resize_area(jnp.asarray(x), (3, 2)))
    assert small.shape == (2, 3, 2, 3)
    for i, rows in enumerate([slice(0, 2), slice(1, 4), slice(3, 5)]):
        for j, columns in enumerate([slice(0, 4), slice(3, 7)]):
            mean = x[:, rows, columns].mean((1, 2))
            np.testing.assert_allclose(small[:, i, j], mean, atol=1e-6)


@pytest.mark.parametrize("grid", [(3, 2), (4, 5), (1, 7), (5, 7)])
def test_area_is_what_torch_does(grid):
    torch = pytest.importorskip("torch")
    x = RNG.normal(size=(2, 5, 7, 3)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(x).permute(0, 3, 1, 2), size=grid, mode="area"
    )
    ours = resize_area(jnp.asarray(x), grid)
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), atol=1e-6)


RULES = {
    "area": (resize_area, area_weights),
    "bicubic": (resize_bicubic, bicubic_weights),
    "bilinear": (resize_bilinear, bilinear_weights),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("grid", "target"),
    [((6,), (4,)), ((6, 5), (3, 8)), ((4, 6, 5), (2, 3, 7)), ((2,) * 4, (3,) * 4)],
)
def test_each_axis_is_resized_by_its_own_matrix(rule, grid, target):
    resize, weights = RULES[rule]
    x = RNG.normal(size=(2, *grid, 3)).astype(np.float32)
    wanted = x
    for axis, (size, count) in enumerate(zip(grid, target, strict=True), 1):
        wanted = np.moveaxis(np.tensordot(weights(size, count), wanted, (1, axis)), 0, axis)
    given = resize(jnp.asarray(x), target)
    assert given.shape == (2, *target, 3)
    np.testing.assert_allclose(given, wanted, atol=1e-5)
    flat = resize(jnp.ones((1, *grid, 1)), target)
    np.testing.assert_allclose(flat, 1, atol=1e-5)  # what is constant stays so


@pytest.mark.parametrize("rule", RULES)
def test_a_grid_of_another_rank_is_refused(rule):
    with pytest.raises(ValueError, match=r"\(2, 3\) .* \(4,\)"):
        RULES[rule][0](jnp.zeros((1, 2, 3, 1)), (4,))
