"""Laws of conversion: every key is used once, every leaf is filled, and errors tell all at once."""

import fnmatch
import functools
import json
import pathlib

import jax
import numpy as np
import pytest

from jaxar import config
from jaxar.assembly import build_system
from jaxar.core.condition import Label
from jaxar.core.plan import cell
from jaxar.nn.module import params_of
from jaxar.systems.image.xar import BUFFERS, ROWS, XAR, from_state_dict
from jaxar.tree import count, paths
from jaxar.weights.tables import Row, convert, linear

RNG = np.random.default_rng(0)
GOLDENS = pathlib.Path(__file__).parent / "goldens"


@pytest.fixture(scope="module")
def template():
    cells = cell((4, 4), height=2, width=2)
    make = functools.partial(XAR, cells, 3, Label(5), width=8, depth=(2, 3), heads=2)
    return params_of(jax.eval_shape(lambda key: make(key=key), jax.random.key(0)))


@pytest.fixture
def params(template):
    return jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32), template)


def released(params):
    """A state dict as the released code would save it, from parameters of ours."""
    leaves, state = paths(params), {}
    for theirs, ours, *_ in ROWS:
        layered = "{i}" in theirs
        outputs = leaves.get(ours.replace("kernel", "bias"))
        for i, array in enumerate(leaves[ours] if layered else [leaves[ours]]):
            if ours.endswith("kernel"):  # torch keeps (out, in)
                array = array.reshape(-1, outputs[0].size if layered else outputs.size).T
            elif ours.endswith("bias"):
                array = array.reshape(-1)
            elif ours.endswith("positions/table"):
                array = array[None]
            state[theirs.replace("{i}", str(i))] = array
    return state


def test_a_state_dict_round_trips(template, params):
    state = released(params)
    assert len(state) == 6 + 5 * 2 + (2 + 3) * 6 * 2
    jax.tree.map(np.testing.assert_array_equal, from_state_dict(state, template), params)


def test_the_order_of_keys_and_their_precision_do_not_matter(template, params):
    state = {key: array.astype(np.float64) for key, array in reversed(released(params).items())}
    converted = from_state_dict(state, template)
    jax.tree.map(np.testing.assert_array_equal, converted, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(converted)} == {np.dtype(np.float32)}
    assert len(state) == len(released(params))  # what was given is left as it was


def test_buffers_are_ignored(template, params):
    state = released(params) | {
        "mask": np.zeros((1, 1, 16, 16)),
        "encoder_blocks.0.attn.rope.freqs": np.zeros(2),
        "decoder_blocks.2.attn.rope.freqs_cos": np.zeros((16, 4)),
    }
    jax.tree.map(np.testing.assert_array_equal, from_state_dict(state, template), params)


def test_one_error_lists_all_that_does_not_fit(template, params):
    state = released(params)
    del state["pred.bias"], state["encoder_blocks.1.mlp.fc2.weight"]
    state["masks"] = state["decoder_blocks.3.attn.proj.bias"] = np.zeros(8)
    state["z_proj.weight"] = np.zeros((8, 4))
    state["decoder_blocks.0.attn.qkv.bias"] = np.zeros(25)
    with pytest.raises(ValueError) as error:
        from_state_dict(state, template)
    _, *lines = str(error.value).split("\n  ")
    assert sorted(lines) == [
        "key decoder_blocks.0.attn.qkv.bias has shape (25,), which does not fit (3, 2, 4)",
        "key z_proj.weight has shape (8, 4), which does not fit (3, 8)",
        "missing key encoder_blocks.1.mlp.fc2.weight",
        "missing key pred.bias",
        "unused key decoder_blocks.3.attn.proj.bias",
        "unused key masks",
    ]


def test_a_transposed_weight_does_not_fit(template, params):
    state = released(params)
    state["z_proj.weight"] = state["z_proj.weight"].T
    with pytest.raises(ValueError, match=r"z_proj\.weight has shape \(3, 8\)"):
        from_state_dict(state, template)


def test_the_table_itself_is_checked():
    template = {"a": np.zeros(2), "b": np.zeros(2)}
    rows = (Row("x", "a"), Row("y", "c"))
    with pytest.raises(ValueError) as error:
        convert({"x": np.zeros(2)}, rows, template)
    assert "path c is not in the model" in str(error.value)
    assert "nothing fills b" in str(error.value)


def test_layers_are_stacked_in_their_order():
    state = {f"blocks.{i}.w": np.full(2, i) for i in reversed(range(11))}
    converted = convert(state, (Row("blocks.{i}.w", "w"),), {"w": np.zeros((11, 2))})
    np.testing.assert_array_equal(converted["w"], np.repeat(np.arange(11)[:, None], 2, 1))


def test_a_linear_weight_stays_the_same_map():
    weight, x = RNG.normal(size=(12, 5)), RNG.normal(size=5)
    kernel = linear(weight, (5, 3, 2, 2))
    np.testing.assert_allclose(np.tensordot(x, kernel, 1).ravel(), weight @ x)


@pytest.mark.parametrize(
    ("size", "name"), [("base", "xar_b"), ("large", "xar_l"), ("huge", "xar_h")]
)
def test_every_released_key_has_its_place_in_our_config(size, name):
    """By shapes alone: nothing of this size is allocated."""
    golden = json.loads((GOLDENS / f"xar_{size}_keys.json").read_text())
    shapes = {
        key: shape
        for key, shape in golden["state_dict"].items()
        if not any(fnmatch.fnmatchcase(key, pattern) for pattern in BUFFERS)
    }
    template = params_of(build_system(config.load(name)).network)
    leaves = paths(template)

    used = []
    for theirs, ours, transform, _ in ROWS:
        shape, layers = leaves[ours].shape, [None]
        if "{i}" in theirs:
            shape, layers = shape[1:], range(shape[0])
        for i in layers:
            key = theirs.replace("{i}", str(i))
            weight = np.broadcast_to(np.float32(0), shapes[key])
            assert transform(weight, shape).shape == shape, key
            used.append(key)
    assert sorted(used) == sorted(shapes)
    assert sorted(ours for _, ours, *_ in ROWS) == sorted(leaves)
    assert count(template) == golden["num_parameters"]
    assert sum(np.prod(shape) for shape in shapes.values()) == golden["num_parameters"]
