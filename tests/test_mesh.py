"""Meshes: big parameters are shared out, nothing computed changes, what cannot be is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxar import config as configs
from jaxar import main, tree
from jaxar.assembly import build_system
from jaxar.config import ConfigError
from jaxar.core.random import key_for
from jaxar.nn import layers
from jaxar.nn.module import bind, params_of
from jaxar.parallel import axes, sharding
from jaxar.runs import dry_run as table
from jaxar.runs import load as loading
from jaxar.runs import setup
from jaxar.runs.model import Model
from tests.shrink import NAMES, arrays, shrunk, with_autoencoder

ONE = dict(data=1, fsdp=1, tensor=1)
MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)]
SMALL = (
    "batch_size=8",
    "model.width=32",
    "model.heads=4",
    "model.dropout=0.1",
    "model.attention_dropout=0.1",
    "model.drop_path=0.1",
    "head.width=32",
    "head.heads=4",
    "label_dropout=0",
)
SYSTEMS = ("xar_digits", "xar_b", "flowar_s", "mar_b", "var_d16")
AUTOENCODERS = ("kl_glyphs", "vq_glyphs")


# -------------------------------------------------------------------------------- the table


@functools.cache
def parameters(name):
    """Returns the shapes of the parameters of a config."""
    return jax.eval_shape(build_system(configs.load(name)).init, jax.random.key(0))


@pytest.mark.parametrize("name", NAMES)
def test_every_big_parameter_is_shared_out(name):
    params = parameters(name)
    sizes = dict(slices=1, data=1, fsdp=4, tensor=2)
    total = tree.count(params)
    for path, leaf in tree.paths(params).items():
        if leaf.size > 0.01 * total:
            found = axes.spec(path, leaf.shape, sizes)
            assert "fsdp" in found or "embed" not in axes.names(path, leaf.ndim), path
            divides = any(size % 4 == 0 for size in leaf.shape)
            assert "fsdp" in found or not divides, (path, leaf.shape, found)
    share = table.bytes_per_device(params, sizes) / (4 * total)
    assert share < 0.3, f"{share:.1%} of {name} is on every device"


@pytest.mark.parametrize("name", ["xar_b", "var_d16", "var_d36", "flowar_s", "flowar_l", "mar_b"])
def test_heads_and_mlp_are_over_tensor(name):
    sizes = dict(slices=1, data=1, fsdp=1, tensor=2)
    params = parameters(name)
    for path, leaf in tree.paths(params).items():
        if leaf.size > 0.01 * tree.count(params) and "modulation" not in path:
            inside = any(f"/{part}/" in f"/{path}" for part in ("attention", "cross", "mlp"))
            assert inside == ("tensor" in axes.spec(path, leaf.shape, sizes)), path


def test_a_row_counts_for_stacked_arrays_and_for_moments():
    sizes = dict(slices=1, data=2, fsdp=2, tensor=2)
    for path, shape in (
        ("attention/qkv/kernel", (8, 3, 4, 2)),
        ("params/encoder/blocks/attention/qkv/kernel", (5, 8, 3, 4, 2)),
        ("optimizer/1/mu/encoder/blocks/attention/qkv/kernel", (5, 8, 3, 4, 2)),
    ):
        assert tuple(axes.spec(path, shape, sizes))[-4:] == ("fsdp", None, "tensor", None)
    assert axes.spec("up/kernel", (8, 3413), sizes) == P("fsdp", None)  # a prime stays whole


# -------------------------------------------------------------------------------- the mesh


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(data=-1, fsdp=3), r"does not divide 8 devices; set fsdp=2 or 4"),
        (dict(data=-1, tensor=5), r"set tensor=4 or 8"),
        (dict(data=4, fsdp=4), r"16 devices, there are 8; set data=2, or fsdp=2"),
        (dict(data=16), r"16 devices, there are 8; set data=8"),
        (dict(data=1, fsdp=3, tensor=5), r"set data=-1"),
    ],
)
def test_sizes_that_cannot_be_name_those_that_can(sizes, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(sizes)


def test_every_device_of_several_processes_needs_a_place():
    assert sharding.mesh_sizes(dict(data=4), 8)["data"] == 4
    with pytest.raises(ValueError, match="set data=8"):
        sharding.mesh_sizes(dict(data=4), 8, whole=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["mesh.tensor=3", "mesh.data=2"],
            r"tensor=3 does not divide 4 attention heads: .* 2 or 4",
        ),
        (["mesh.data=3"], r"batch_size=8 does not divide into the 3 parts .*: choose 6 or 9"),
        (["mesh.fsdp=8", "batch_size=4"], r"8 parts .*: choose 8\."),
    ],
)
def test_what_does_not_divide_is_refused_with_what_would(overrides, message):
    config = shrunk("xar_digits", "batch_size=8", "model.width=32", "model.heads=4", *overrides)
    with pytest.raises(ConfigError, match=message):
        setup.prepare(config, training=True)


class Device:
    """A device of a slice and a process, as far as a mesh asks about it."""

    platform = device_kind = "cpu"

    def __init__(self, number, slice_index, process_index):
        self.id, self.slice_index, self.process_index = number, slice_index, process_index


def test_slices_are_the_outermost_axis():
    devices = [Device(i, i % 2, i % 2) for i in range(8)]  # mixed up, as a runtime may give them
    mesh = sharding._arranged(dict(slices=2, data=2, fsdp=2, tensor=1), devices)
    assert mesh.shape == (2, 2, 2, 1)
    assert all({d.slice_index for d in part.ravel()} == {i} for i, part in enumerate(mesh))
    with pytest.raises(ValueError, match=r"set --config\.mesh\.slices=2"):
        sharding._arranged(dict(slices=1, data=8, fsdp=1, tensor=1), devices)


def test_the_rows_of_a_process_are_those_of_its_devices():
    mesh = sharding.make_mesh(dict(slices=2, data=1, fsdp=2, tensor=2))
    np.testing.assert_array_equal(sharding.rows_here(mesh, 8), np.arange(8))
    batch = {"data": np.arange(16.0).reshape(8, 2), "condition": np.arange(8)}
    whole = sharding.spread(mesh, 8)(batch)
    assert whole["data"].sharding.shard_shape((8, 2)) == (2, 2)
    for name, value in batch.items():
        np.testing.assert_array_equal(whole[name], value)


# -------------------------------------------------------------------------------- the table printed


def test_dry_run_says_what_a_device_holds(capsys):
    arguments = ["--config=xar_b", "--dry_run", "--config.mesh.data=16", "--config.mesh.fsdp=16"]
    main.main(arguments)
    text = capsys.readouterr().out
    assert "256 devices (slices=1, data=16, fsdp=16, tensor=1); 8 are here" in text
    assert "batch of 2048: 8 for each group of 1 devices" in text
    row = next(line for line in text.splitlines() if "encoder/blocks/attention/qkv/kernel" in line)
    assert row.split()[-1] == f"{8 * 768 * 3 * 768 * 4 // 16:,}" and "fsdp" in row
    config = configs.load("xar_b")
    state = table.state_shapes(config, build_system(config))
    alone = dict.fromkeys(sharding.MESH_AXES, 1)
    held = {
        name: table.bytes_per_device(part, alone)
        for name, part in zip(
            ("parameters", "optimiser"), (state.params, state.optimizer), strict=True
        )
    }
    assert held["parameters"] == 4 * 172_638_224
    assert held["optimiser"] == 8 * 172_638_224 + 4 * 2  # two moments, two counts
    whole = table.bytes_per_device(state, alone)
    assert table.bytes_per_device(state, {**alone, "fsdp": 16}) < whole / 15


def test_dry_run_says_what_stays_whole():
    config = configs.override(
        configs.load("xar_h"), ["mesh.data=8", "mesh.tensor=2", "mesh.fsdp=16"]
    )
    assert "tensor=2 does not divide 3,413" in table.dry_run(config)


# -------------------------------------------------------------------------------- the same numbers


def small(name, *overrides):
    """Returns a shrunk config with those of `SMALL` that it has, and others."""
    config = shrunk(name)
    fields = {line.split("=")[0].strip() for line in configs.render(config).splitlines()}
    words = [word for word in SMALL if word.split("=")[0] in fields]
    return configs.override(config, [*words, *overrides])


def system_of(name, folder, mesh=ONE):
    """Returns a config, small and with dropout, its system and the autoencoder it has, if any."""
    sizes = [f"mesh.{axis}={size}" for axis, size in mesh.items()]
    config = with_autoencoder(small(name, *sizes), folder / "autoencoder")
    ready = setup.prepare(config)
    autoencoder = loading.load_autoencoder(config, ready)
    return config, ready.system, autoencoder


def noised(params):
    """Returns parameters in which nothing is zero, so that every part matters."""
    leaves, form = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    moved = [
        leaf + 0.05 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(form, moved)


def differentiated(loss, params, batch, mesh):
    """Returns loss and gradients on a mesh, on the host."""
    places = sharding.shardings(params, mesh)
    function = jax.jit(
        jax.value_and_grad(loss),
        in_shardings=(places, sharding.batch_sharding(mesh)),
        out_shardings=(sharding.replicated(mesh), places),
    )
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        return jax.device_get(function(sharding.put(params, places), batch))


def require_same(loss, params, batch, sizes):
    one = differentiated(loss, params, batch, sharding.make_mesh(ONE))
    mesh = sharding.make_mesh(dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))
    many = differentiated(loss, params, batch, mesh)
    np.testing.assert_allclose(many[0], one[0], rtol=1e-5)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(one[1])))
    for path, exact in tree.paths(one[1]).items():
        error = np.linalg.norm(tree.paths(many[1])[path] - exact)
        assert error <= 1e-5 * max(np.linalg.norm(exact), 1e-2 * norm), path


def test_the_kernel_of_attention_serves_a_whole_network_on_a_mesh():
    """In a loop over layers, under rematerialisation, with parameters gathered for each layer."""
    config = small("xar_digits", "model.attention=kernel", "model.remat=projections")
    dense = build_system(configs.override(config, ["model.attention=dense"]))
    kernel, params = build_system(config), noised(dense.init(jax.random.key(0)))
    source = arrays(config, 4)
    rows = [source.read(i, np.random.default_rng(i)) for i in range(4)]
    batch = {"data": np.stack([r["data"] for r in rows])}
    batch["condition"] = np.array([r["condition"] for r in rows], np.int32)

    def found(system, sizes):
        mesh = sharding.make_mesh(sizes, jax.devices()[: np.prod(list(sizes.values()))])
        loss = lambda params, batch: system.loss(params, {}, batch, key_for("train", 3))[0]  # noqa: E731
        return differentiated(loss, params, batch, mesh)

    one, many = found(dense, ONE), found(kernel, dict(data=1, fsdp=2, tensor=2))
    np.testing.assert_allclose(many[0], one[0], rtol=1e-5)
    for path, exact in tree.paths(one[1]).items():
        np.testing.assert_allclose(
            tree.paths(many[1])[path], exact, rtol=1e-3, atol=1e-5, err_msg=path
        )


def test_zeros_after_inner_units_are_nothing_on_a_mesh():
    """Their number divides over `tensor` where that of the units, which stay whole, does not."""
    mlp = layers.GatedMLP(16, 85, key=jax.random.key(0))
    batch = jax.random.normal(jax.random.key(1), (8, 3, 16), jnp.bfloat16)

    def loss(params, batch):
        return jnp.mean(jnp.square(bind(mlp, params)(batch).astype(jnp.float32)))

    many = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
    one, other = (
        differentiated(loss, params_of(mlp), batch, mesh)
        for mesh in (sharding.make_mesh(ONE), many)
    )
    np.testing.assert_allclose(other[0], one[0], rtol=1e-2)
    for path, exact in tree.paths(one[1]).items():
        error = np.linalg.norm(tree.paths(other[1])[path] - exact)
        assert error <= 2e-2 * np.linalg.norm(exact), path


def slow_but(systems, *quick):
    """Returns all systems with all meshes; but for the quick pairs they are slow."""
    return [
        pytest.param(name, mesh, marks=() if (name, mesh) in quick else pytest.mark.slow)
        for name in systems
        for mesh in MESHES
    ]


@pytest.mark.parametrize(
    ("name", "sizes"),
    slow_but(SYSTEMS + AUTOENCODERS, ("xar_digits", (2, 2, 2))),
)
def test_loss_and_gradients_are_those_of_one_device(name, sizes, tmp_path):
    config, system, autoencoder = system_of(name, tmp_path)
    frozen = {"autoencoder": autoencoder.params} if system.frozen else {}
    params = noised(system.init(jax.random.key(0)))
    source = arrays(config, 8)
    rows = [source.read(i, np.random.default_rng(i)) for i in range(8)]
    labels = np.array([r["condition"] for r in rows], np.int32)
    batch = {"data": np.stack([r["data"] for r in rows]), "condition": labels}

    def loss(params, batch):
        step = {"step": jnp.int32(9)}
        return system.loss(params, frozen, {**batch, **step}, key_for("train", 3))[0]

    require_same(loss, params, batch, sizes)


@pytest.mark.parametrize(("name", "sizes"), slow_but(SYSTEMS, ("xar_digits", (2, 2, 2))))
def test_samples_are_those_of_one_device(name, sizes, tmp_path):
    labels, made = [1, 2, 3], []
    for mesh in (ONE, dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))):
        folder = tmp_path / f"{len(made)}"
        folder.mkdir()
        config, system, autoencoder = system_of(name, folder, mesh)
        devices = sharding.make_mesh(mesh)
        placed = sharding.place(noised(system.init(jax.random.key(0))), devices)
        model = Model(config, system, placed, devices, autoencoder=autoencoder)
        made.append(model.sample(labels))
    np.testing.assert_allclose(made[1], made[0], atol=1e-5 * np.abs(made[0]).max())
