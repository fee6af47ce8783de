"""The programs of a config, compiled for devices that are not present.

They are the programs of `jaxar.training.step` and `jaxar.runs.model`, compiled for shapes with
shardings instead of arrays. A real run also needs memory for queued batches (a few MB) and for the
runtime.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxar import assembly, checkpoint
from jaxar.nn.module import params_of
from jaxar.parallel import sharding
from jaxar.runs import dry_run as table
from jaxar.runs import setup
from jaxar.runs.abilities import can
from jaxar.runs.model import sampler
from jaxar.training.step import compile_step, training_of
from launch import schedule
from launch.chips import LaunchError, Topology


@dataclasses.dataclass(frozen=True)
class Made:
    """A compiled program, or the compiler's error message.

    Attributes:
      mesh: Mesh of its devices.
      batch: Images in one run, a step or a sampling, on all devices.
      operations: Operations of the traced algorithm on all devices: see `count_operations`.
      state: Bytes of its state on one device, by the table of shardings.
      seconds: Time of compiling, tracing included.
      compiled: The compiled program; None if it does not fit.
      problem: The compiler's message if it does not fit.
    """

    mesh: Mesh
    batch: int
    operations: float
    state: int
    seconds: float
    compiled: Any
    problem: str = ""


def topology_devices(topology: Topology) -> Sequence[Any]:
    """Returns the devices of a topology, usable only for compilation.

    Raises:
      LaunchError: the TPU compiler is not installed, or does not know the topology.
    """
    from jax.experimental import topologies

    more: dict[str, Any] = dict(topology.chip.options)
    if topology.slices > 1:
        more["num_slices"] = topology.slices
    name = f"{topology.chip.name}:{'x'.join(map(str, topology.shape))}"
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **more).devices
    except Exception as error:
        text = str(error).splitlines()[0]
        if "not installed" in text:
            raise LaunchError(MISSING) from error
        raise LaunchError(f"The TPU compiler refuses {topology.name}: {text}") from error


MISSING = (
    "The TPU compiler is not installed: pip install 'jaxar[aot]' in a separate environment, as "
    "JAX looks for a TPU wherever it finds libtpu."
)


def train_step(config: Any, devices: Sequence[Any]) -> Made:
    """Returns the compiled training step of a config.

    Raises:
      ConfigError: a setting cannot work on these devices.
    """
    ready = setup.prepare(config, training=True, devices=devices)
    system, frozen = ready.system, frozen_shapes(ready)
    training = training_of(config, system)
    state = jax.eval_shape(training.init, jax.random.key(0))
    batch = {
        "data": jax.ShapeDtypeStruct((config.batch_size, *system.shape), jnp.float32),
        "condition": system.condition.shapes(config.batch_size),
    }

    def loss(params, frozen, batch, count):
        return system.loss(params, frozen, {**batch, "step": count}, jax.random.key(0))[0]

    traced = jax.make_jaxpr(loss)(state.params, frozen, batch, state.step)
    return _made(
        lambda: compile_step(training.step, state, frozen, batch, ready.mesh, training.memory),
        mesh=ready.mesh,
        batch=config.batch_size,
        operations=3 * count_operations(traced),
        state=table.bytes_per_device(table.on_devices(config, state), ready.mesh.shape),
    )


def whole_sampler(config: Any, devices: Sequence[Any], batch: int) -> Made:
    """Returns the compiled sampler of a config, with its decoder.

    Raises:
      ConfigError: a setting cannot work on these devices.
      LaunchError: the system does not sample, or the batch does not divide among the devices.
    """
    ready = setup.prepare(config, devices=devices)
    parts = sharding.batch_parts(ready.mesh)
    if not can(ready.system, "sample"):
        raise LaunchError(f"{config.name} reconstructs its data and has no sampler: --what=train.")
    if batch % parts:
        raise LaunchError(
            f"--batch={batch} does not divide among the {parts} devices that share a batch: choose "
            f"{max(batch // parts, 1) * parts} or {(batch // parts + 1) * parts}."
        )
    system, frozen = ready.system, frozen_shapes(ready)
    params = jax.eval_shape(system.init, jax.random.key(0))
    decoder = {} if ready.network is None else params_of(ready.network)
    weights = tuple(
        checkpoint.placed(shapes, sharding.shardings(shapes, ready.mesh))
        for shapes in (params, frozen, decoder)
    )
    place = sharding.batch_sharding(ready.mesh)
    numbers = jax.ShapeDtypeStruct((batch,), jnp.uint32, sharding=place)
    condition = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        system.condition.shapes(batch),
    )
    run = sampler(system, ready.network, assembly.build_settings(config))
    arguments = (weights, 0, numbers, condition, float(config.sample.guidance), None)

    def compiled():
        with jax.set_mesh(ready.mesh):
            return run.lower(*arguments).compile()

    return _made(
        compiled,
        mesh=ready.mesh,
        batch=batch,
        operations=count_operations(jax.make_jaxpr(run)(*arguments)),
        state=sum(table.bytes_per_device(tree, ready.mesh.shape) for tree in (params, decoder)),
    )


def _made(compiled: Callable[[], Any], **facts: Any) -> Made:
    schedule.forget()
    began = time.monotonic()
    try:
        program, problem = compiled(), ""
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        program, problem = None, str(error)
    return Made(seconds=time.monotonic() - began, compiled=program, problem=problem, **facts)


def frozen_shapes(ready: setup.Prepared) -> dict[str, Any]:
    """Returns the shapes of the frozen networks of a system, by name."""
    return {name: frozen.shapes for name, frozen in ready.system.frozen.items()}


def frozen_zeros(ready: setup.Prepared) -> dict[str, Any]:
    """Returns zeros for the frozen networks of a system, by name, on the devices."""
    zeros = {
        name: jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), frozen.shapes)
        for name, frozen in ready.system.frozen.items()
    }
    return sharding.place(zeros, ready.mesh)


def count_operations(jaxpr: Any) -> float:
    """Returns the operations of all matrix products and convolutions of a traced function.

    A multiply-add is 2 operations. The body of a loop counts once per iteration, or once if the
    number of iterations is not fixed. Of branches, the most expensive one counts.
    """
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, given = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = given["dimension_numbers"]
            left = equation.invars[0].aval.shape
            inner = np.prod([left[axis] for axis in contracted])
            total += 2.0 * equation.outvars[0].aval.size * inner
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            outputs = kernel.shape[given["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * equation.outvars[0].aval.size * kernel.size / outputs
        elif name == "cond":
            total += max(count_operations(branch) for branch in given["branches"])
        else:
            turns = given["length"] if name == "scan" else 1
            total += turns * sum(count_operations(inner) for inner in _inner(given.values()))
    return total


def _inner(values: Any) -> list[Any]:
    """Returns the traced functions in the parameters of an operation."""
    found = []
    for value in values:
        if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += _inner(value)
    return found


def state_sizes(config: Any, devices: Sequence[Any], kind: str) -> Callable[[dict[str, int]], int]:
    """Returns the function from mesh sizes to the bytes of state on one device."""
    ready = setup.prepare(config, devices=devices)
    if kind == "train":
        state = table.on_devices(config, table.state_shapes(config, complete(ready)))
    else:
        state = jax.eval_shape(ready.system.init, jax.random.key(0))
    return lambda sizes: table.bytes_per_device(state, sharding.mesh_sizes(sizes, len(devices)))
