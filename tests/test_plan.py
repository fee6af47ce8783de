"""Laws of the plan: every way to cut a grid is an order, a mask and a way back."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.core.plan import Plan, cell, image, scale, subsample, token
from jaxar.core.resize import area_weights, resize_area

RNG = np.random.default_rng(0)

PERMUTATIONS = {
    "token": token((3, 5)),
    "token-shuffled": token((4, 3), shuffle=1),
    "cell": cell((4, 6), height=2, width=3),
    "cell-shuffled": cell((6, 4), height=3, width=1, shuffle=2),
    "subsample": subsample((4, 6), height=2, width=3),
    "subsample-shuffled": subsample((6, 4), height=3, width=2, shuffle=3),
    "image": image((3, 4)),
}
PLANS = PERMUTATIONS | {
    "scale": scale((4, 4), sizes=[1, 2, 4]),
    "scale-rectangular": scale((5, 4), sizes=[1, (2, 3), (3, 2), (5, 4)]),
    "there-and-back": Plan(((1, 1), (2, 2), (1, 1), (3, 3)), tuple(range(15)), (1, 4, 1, 9)),
    "scale-repeated": scale((2, 2), sizes=[1, 1, 1, 2, 2, 2, 2]),
}


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
    places = np.stack(np.mgrid[: plan.grid[0], : plan.grid[1]], -1)
    np.testing.assert_array_equal(plan.cut(jnp.asarray(places[None], float))[0], plan.positions)


def test_every_level_spans_the_grid():
    plan = scale((6, 4), sizes=[1, (2, 3), (3, 4), (6, 4)])
    for (h, w), places in zip(plan.levels, parts(plan, plan.positions), strict=True):
        rows, columns = places.reshape(h, w, 2)[:, 0, 0], places.reshape(h, w, 2)[0, :, 1]
        np.testing.assert_allclose(rows, np.linspace(0, 6, h, endpoint=False))
        np.testing.assert_allclose(columns, np.linspace(0, 4, w, endpoint=False))


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


@pytest.mark.parametrize(
    ("make", "numbers"),
    [
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


# Resizing by area.


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
