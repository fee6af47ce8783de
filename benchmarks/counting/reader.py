"""Reads a traced program operation by operation and enters what is to be paid."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun, jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr

from benchmarks.counting.known import ELEMENTWISE, known_results
from benchmarks.counting.names import named
from benchmarks.counting.products import COSTS, cost, cost_of_each
from benchmarks.counting.values import (
    Amount,
    Debt,
    Value,
    all_loops,
    complete,
    constant,
    new_names,
    summed,
    unknown_elements,
)

PASSING = ELEMENTWISE | {"transpose", "reshape", "squeeze", "broadcast_in_dim"}
"""Operations that pass debts on, to results that have as many elements."""


class Reader:
    """What was read so far.

    Attributes:
      bill: Operations of each value, by its name and the turns of the loops in which it changes,
        with an axis for each of them, of length 1 where all turns cost the same.
      turns: Of the loops around the place where the reader is, the outermost first.
      active: Whether a turn of them comes here, with an axis for each.
      share: Of what is computed here that is needed.
    """

    def __init__(self):
        self.bill: dict[tuple[int, tuple[int, ...]], Amount] = {}
        self.turns: list[int] = []
        self.active = np.ones(())
        self.share = 1.0

    @property
    def total(self) -> float:
        """Operations of all values."""
        return 0.0 + sum(
            float(summed(amount, 0, math.prod(turns))) for (_, turns), amount in self.bill.items()
        )

    def pay(self, names: Sequence[int], loops: Iterable[int], amount: Amount) -> None:
        """Enters what a value costs: the most that is asked of it anywhere."""
        others = tuple(loop for loop in range(len(self.turns)) if loop not in loops)
        amount = (amount * self.active).max(axis=others) / len(names)
        turns = tuple(self.turns[loop] for loop in sorted(loops))
        for name in names:
            key = name, turns
            self.bill[key] = np.maximum(self.bill.get(key, 0.0), amount)

    def settle(self, values: Iterable[Value]) -> list[Value]:
        """Returns the values without debts, after paying for all elements that are not known."""
        values = list(values)
        for value in values:
            for debt in value.debts:
                amount = debt.each * unknown_elements(value, len(self.turns))
                self.pay(debt.names, debt.loops, amount)
        return [value._replace(debts=()) for value in values]

    def read(self, jaxpr: Any, consts: list[Value], inputs: list[Value]) -> list[Value]:
        """Returns the results of a traced function."""
        variables = (*jaxpr.constvars, *jaxpr.invars)
        values = dict(zip(variables, (*consts, *inputs), strict=True))

        def value(atom: Any) -> Value:
            if hasattr(atom, "val"):  # a number in the program's text
                return constant(np.asarray(atom.val, atom.aval.dtype), len(self.turns))
            return values[atom]

        for equation in jaxpr.eqns:
            results = self.equation(equation, [value(atom) for atom in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        return [value(atom) for atom in jaxpr.outvars]

    def call(self, function: Any, inputs: list[Value]) -> list[Value]:
        """Returns the results of a function that an equation holds, with constants or without."""
        consts = [constant(array, len(self.turns)) for array in getattr(function, "consts", ())]
        return self.read(getattr(function, "jaxpr", function), consts, inputs)

    def equation(self, equation: Any, values: list[Value]) -> list[Value]:
        """Returns the results of one equation."""
        before = self.share
        found = re.findall(r"needed=([\d.]+)", str(equation.source_info.name_stack))
        self.share *= math.prod(map(float, found))
        special = {"scan": self.scan, "while": self.repeat, "cond": self.choose}
        if equation.primitive.name in special:
            results = special[equation.primitive.name](equation, values)
        elif (inner := called(equation)) is not None:
            results = self.call(inner, values)
        else:
            results = self.operation(equation, values)
        self.share = before
        return results

    def operation(self, equation: Any, values: list[Value]) -> list[Value]:
        """Returns the results of an equation that calls nothing."""
        if equation.primitive.name == "optimization_barrier":
            return values
        passing = equation.primitive.name in PASSING
        size = math.prod(equation.outvars[0].aval.shape)
        kept = [
            v if passing and math.prod(v.shape) == size else self.settle([v])[0] for v in values
        ]
        depth, loops, names = len(self.turns), all_loops(values), named(equation, values)
        known = known_results(equation, values, depth)
        debts = sum((value.debts for value in kept), ())
        if not all(map(complete, known)):
            amount = cost(equation, values, depth) * self.share
            if np.any(amount):
                self.pay(names[0], loops, amount)
            if each := cost_of_each(equation, values) * self.share:
                debts = (Debt(names[0], loops, each),)
        shapes = [variable.aval.shape for variable in equation.outvars]
        return [
            Value(shape, own, loops, elements, debts)
            for shape, own, elements in zip(shapes, names, known, strict=True)
        ]

    def _passed(self, equation: Any, values: list[Value]) -> list[Value]:
        """Returns the operands with the debts that pass on to the result; others are paid."""
        if equation.primitive.name not in PASSING:
            return self.settle(values)
        size = math.prod(equation.outvars[0].aval.shape)
        return [v if math.prod(v.shape) == size else self.settle([v])[0] for v in values]

    def scan(self, equation: Any, values: list[Value]) -> list[Value]:
        """Returns the results of a loop, whose body is read once for all turns."""
        values, params, depth = self.settle(values), equation.params, len(self.turns)
        body, turns, carried = params["jaxpr"], params["length"], params["num_carry"]
        first, last = params["num_consts"], params["num_consts"] + carried
        made, inside = (id(body), tuple(v.names for v in values)), all_loops(values) | {depth}
        given = [
            v if v.known is None else v._replace(known=np.expand_dims(v.known, depth))
            for v in values[:first]
        ]
        for number, v in enumerate(values[first:last]):
            known = counter(params, number, v)
            given.append(Value(v.shape, new_names((made, number), v.shape), inside, known))
        for v in values[last:]:
            names = new_names(("one of", turns, v.names), v.shape[1:])
            given.append(Value(v.shape[1:], names, v.loops | {depth}, v.known))
        found, results = self._inside(turns, body, given), []
        for number, (v, variable) in enumerate(zip(found, equation.outvars, strict=True)):
            seed = (made, "after", number) if number < carried else ("all of", turns, v.names)
            known = None if number < carried else v.known
            names = new_names(seed, variable.aval.shape)
            results.append(Value(variable.aval.shape, names, v.loops - {depth}, known))
        return results

    def _inside(self, turns: int, body: Any, given: list[Value]) -> list[Value]:
        """Returns the results of a loop's body, with its axis."""
        active = self.active
        self.turns.append(turns)
        self.active = active[..., None]
        found = self.settle(self.call(body, given))
        self.turns.pop()
        self.active = active
        return found

    def repeat(self, equation: Any, values: list[Value]) -> list[Value]:
        """Returns the results of a loop with an unknown number of turns, counted as one."""
        values, params = self.settle(values), equation.params
        first = params["cond_nconsts"]
        last = first + params["body_nconsts"]
        made, loops = (id(equation), tuple(v.names for v in values)), all_loops(values)
        carried = [
            Value(v.shape, new_names((made, number), v.shape), loops)
            for number, v in enumerate(values[last:])
        ]
        self.settle(self.call(params["cond_jaxpr"], [*values[:first], *carried]))
        self.settle(self.call(params["body_jaxpr"], [*values[first:last], *carried]))
        return [v._replace(names=new_names(("after", v.names), v.shape)) for v in carried]

    def choose(self, equation: Any, values: list[Value]) -> list[Value]:
        """Returns the results of a choice: the branch taken in each turn, or the costliest."""
        index, *operands = self.settle(values)
        branches = equation.params["branches"]
        if complete(index.known):
            found = self._taken(np.clip(index.known, 0, len(branches) - 1), branches, operands)
        else:
            found = self._costliest(branches, operands)
        if len(found) == 1:
            return found[0]
        return [
            Value(
                ways[0].shape,
                new_names((index.names, tuple(v.names for v in ways)), ways[0].shape),
                all_loops([index, *ways]),
            )
            for ways in zip(*found, strict=True)
        ]

    def _taken(self, index: Any, branches: Any, operands: list[Value]) -> list[list[Value]]:
        """Returns the results of the branches that some turn takes."""
        active, found = self.active, []
        for number, branch in enumerate(branches):
            self.active = active * (index == number)
            if self.active.any():
                found.append(self.settle(self.call(branch, operands)))
        self.active = active
        return found

    def _costliest(self, branches: Any, operands: list[Value]) -> list[list[Value]]:
        """Returns the results of all branches, after entering those that add most to the bill."""
        bill, bills, found = self.bill, [], []
        for branch in branches:
            self.bill = dict(bill)
            found.append(self.settle(self.call(branch, operands)))
            bills.append((self.total, len(bills), self.bill))
        self.bill = max(bills)[-1]
        return found


def called(equation: Any) -> Any:
    """Returns the function that an equation calls as it is, or None.

    Raises:
      ValueError: it uses a function that has products in another way.
    """
    if equation.primitive.name in (*COSTS, "custom_linear_solve"):
        return None
    shapes = _shapes(equation)
    for function in equation.params.values():
        jaxpr = getattr(function, "jaxpr", function)
        if hasattr(jaxpr, "eqns") and _shapes(jaxpr) == shapes:
            return function
    if any(map(_has_products, jaxprs_in_params(equation.params))):
        raise ValueError(f"The counter does not know what {equation.primitive.name} calls.")
    return None


def _shapes(of: Any) -> list[Any]:
    return [[v.aval.shape for v in variables] for variables in (of.invars, of.outvars)]


def _has_products(jaxpr: Any) -> bool:
    return any(
        equation.primitive.name in COSTS
        or any(map(_has_products, jaxprs_in_params(equation.params)))
        for equation in jaxpr.eqns
    )


def counter(params: Any, number: int, start: Value) -> np.ndarray | None:
    """Returns a carried number in each turn of a loop, where it follows from itself alone.

    Args:
      params: Of the loop.
      number: Place of the value among those carried.
      start: The value in the first turn.
    """
    body, known = params["jaxpr"], start.known
    if known is None or start.shape or known.size != 1 or not complete(known) or body.consts:
        return None
    jaxpr, used = dce_jaxpr(body.jaxpr, [i == number for i in range(len(body.jaxpr.outvars))])
    if [i for i, needed in enumerate(used) if needed] != [params["num_consts"] + number]:
        return None
    following, found = jaxpr_as_fun(ClosedJaxpr(jaxpr, [])), [known.reshape(())]
    for _ in range(params["length"] - 1):
        found.append(np.asarray(following(found[-1])[0]))
    values = np.stack(found[::-1] if params["reverse"] else found)
    return values.reshape(*known.shape, params["length"])
