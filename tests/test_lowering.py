"""Training steps and samplers lower for GPUs and TPUs, which are not there, on a CPU."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from jaxar import assembly, checkpoint
from jaxar.core.visibility import from_mask
from jaxar.nn import attention
from jaxar.nn.module import params_of
from jaxar.nn.rope import rotary_table
from jaxar.parallel import axes, sharding
from jaxar.runs import setup
from jaxar.runs.model import sampler
from jaxar.training.step import jitted_step, training_of
from launch import programs
from tests.shrink import shrunk

KINDS = {"gpu": ("cuda", "NVIDIA H100 80GB HBM3"), "tpu": ("tpu", "TPU v5 lite")}
"""For each platform its name in lowering, and a device."""

CALLS = {
    "gpu": {"annotate_device_placement"},
    "tpu": {"annotate_device_placement", "tpu_custom_call"},
}
"""Custom calls that a platform knows, of those that our programs have on any."""

MEMORY = ("memory.accumulate=2", "memory.moments=bfloat16", "memory.offload_ema=True")

SYSTEMS = [
    ("xar_digits",),
    ("xar_digits", "model.dtype=bfloat16", *MEMORY),
    ("var_digits",),
    ("flowar_digits",),
    ("mar_digits",),
]
over_systems = pytest.mark.parametrize("words", SYSTEMS, ids=" ".join)
over_platforms = pytest.mark.parametrize("platform", KINDS)


def mesh_of(platform, fsdp=2):
    """Returns a mesh of devices of a platform that are nowhere."""
    device = AbstractDevice(device_kind=KINDS[platform][1], num_cores=None, platform=platform)
    types = (AxisType.Auto,) * len(axes.MESH)
    return AbstractMesh((1, 1, fsdp, 1), axes.MESH, types, abstract_device=device)


def lowered(jitted, platform, mesh, *arguments):
    """Returns the text of a program, traced in the ways of a platform and lowered for it."""
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jitted.trace(*arguments)
    return traced.lower(lowering_platforms=(KINDS[platform][0],)).as_text()


def calls(text):
    """Returns the custom calls of a program."""
    return set(re.findall(r"custom_call @([\w.$]+)", text))


def kernels(text):
    """Returns the kernels of a program for TPUs."""
    return set(re.findall(r'kernel_name = "(\w+)"', text))


@functools.cache
def prepared(*words):
    """Returns a small config, and what its programs are made of, in shapes."""
    config = shrunk(*words, "batch_size=4", "mesh.fsdp=2")
    ready = setup.prepare(config, training=True, devices=jax.devices()[:2])
    return config, ready.system, programs.frozen_shapes(ready), ready.network


@over_platforms
@over_systems
def test_a_training_step_lowers(words, platform):
    config, system, frozen, _ = prepared(*words)
    training, mesh = training_of(config, system), mesh_of(platform)
    state = jax.eval_shape(training.init, jax.random.key(0))
    batch = {
        "data": jax.ShapeDtypeStruct((4, *system.shape), jnp.float32),
        "condition": system.condition.shapes(4),
    }
    step = jitted_step(training.step, state, frozen, mesh, training.memory)
    text = lowered(step, platform, mesh, state, frozen, batch)
    assert calls(text) <= CALLS[platform]
    if platform == "tpu":
        assert kernels(text) == {"attention_forward", "attention_backward"}


@over_platforms
@over_systems
def test_a_sampler_lowers(words, platform):
    config, system, frozen, network = prepared(*words)
    mesh = mesh_of(platform)
    params = jax.eval_shape(system.init, jax.random.key(0))
    decoder = {} if network is None else params_of(network)
    weights = tuple(
        checkpoint.placed(shapes, sharding.shardings(shapes, mesh))
        for shapes in (params, frozen, decoder)
    )
    place = sharding.batch_sharding(mesh)
    numbers, labels = (
        jax.ShapeDtypeStruct((4,), dtype, sharding=place) for dtype in (jnp.uint32, jnp.int32)
    )
    run = sampler(system, network, assembly.build_settings(config))
    text = lowered(run, platform, mesh, weights, 0, numbers, labels, 2.0, None)
    assert calls(text) <= CALLS[platform]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_all_kernels_lower_for_tpus(dtype):
    """With everything in them: bands of a mask, rotary positions, dropout."""
    n, width = 256, 64
    rope = jnp.asarray(rotary_table(np.arange(2 * n).reshape(n, 2), width))
    sees = from_mask(np.tri(n, dtype=bool))

    def attend(*qkv):
        return attention.attend(*qkv, sees, rope=rope, rate=0.1, key=jax.random.key(0))

    def both(*qkv):
        return jax.jvp(attend, qkv, qkv), jax.vjp(attend, *qkv)[1](qkv[0])

    q = jax.ShapeDtypeStruct((2, n, 2, width), dtype)
    text = lowered(jax.jit(both), "tpu", mesh_of("tpu", 1), q, q, q)
    assert kernels(text) == {"attention_forward", "attention_forward_tangent", "attention_backward"}


def test_a_kernel_for_tpus_is_refused_elsewhere():
    q = jax.ShapeDtypeStruct((2, 128, 2, 64), jnp.float32)
    with jax.sharding.use_abstract_mesh(mesh_of("tpu", 1)):
        traced = jax.jit(attention.attend).trace(q, q, q)
    with pytest.raises(ValueError, match="gpu"):
        traced.lower(lowering_platforms=("cuda",))


@over_platforms
def test_programs_take_the_ways_of_the_platform_that_they_are_traced_for(platform):
    """Not those of this machine: on CPUs attention puts barriers around heads."""
    q = jax.ShapeDtypeStruct((2, 4, 2, 16), jnp.float32)

    def attend(*qkv):
        return attention.attend(*qkv, way="dense")

    text = lowered(jax.jit(attend), platform, mesh_of(platform, 1), q, q, q)
    here = jax.jit(attend).lower(q, q, q).as_text()
    assert "optimization_barrier" in here and "optimization_barrier" not in text
