"""The least operations that a traced program can be computed with.

    operations(function, *arguments)                                                   (1)

Counted are matrix products and convolutions, a multiply and an add as 2, Fourier transforms, and
what a kernel says of its own cost. The program is read, not run: arguments may be shapes. It knows
the primitives of JAX and nothing of the systems written in them. Three things cost nothing:

    what is known   values made of constants and loop counters alone, products with a known zero,
                    branches that are not taken (`known`)
    what is there   a value that was made before, by the same operations of the same values: for
                    another solver step, another entity, another example, or a second time for the
                    backward pass (`names`)
    what none reads results without a use, and elements that a mask covers before anything but an
                    elementwise operation has read them (`values.Debt`)

So a loop costs each of its turns what differs from turn to turn and costs once what does not, and
attention costs its visible pairs. Of branches whose choice is not known the costliest counts; a
loop without a fixed number of turns counts once. Not counted: elementwise operations, reductions,
sorting, decompositions of matrices and solutions of linear systems.

What a program computes for padding counts, unless the program says what share of it is needed
(`jaxar.core.padding`). A mask must add minus infinity: one that adds a large finite number hides
nothing here.
"""

from typing import Any

import jax
from jax.interpreters.partial_eval import dce_jaxpr

from benchmarks.counting.reader import Reader
from benchmarks.counting.values import Value, constant, new_names


def operations(function: Any, *arguments: Any) -> float:
    """Returns the least operations of function(*arguments), (1).

    Args:
      function: What JAX can trace.
      *arguments: Trees of arrays or of `jax.ShapeDtypeStruct`; nothing is known of their values.

    Raises:
      ValueError: the program holds a kernel that does not say its cost, or an operation with
        products inside that the reader does not know.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    jaxpr, used = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    given = [
        Value(shape, new_names(("argument", number), shape))
        for number, shape in enumerate(v.aval.shape for v in closed.jaxpr.invars)
        if used[number]
    ]
    reader = Reader()
    reader.settle(reader.read(jaxpr, [constant(c, 0) for c in closed.consts], given))
    return round(reader.total, 3)  # rows share what a value costs, with rounding
