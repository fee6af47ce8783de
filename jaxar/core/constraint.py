"""What may be drawn next: tries, automata, closed vocabularies, one mechanism for all samplers.

    allowed(state) -> which tokens may come        advance(state, token) -> the next state

States are arrays with one entry a row, so that they are reordered with the rows of a search.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from jaxar.typing import Array, Bool, Int

NOWHERE = -1
"""Entry of a table for a token that may not come."""


@runtime_checkable
class Constraint(Protocol):
    """A rule over the tokens drawn so far. Static."""

    def begin(self, rows: int) -> Any:
        """Returns the state of `rows` empty sequences, arrays whose first axis is that of rows."""
        ...

    def allowed(self, state: Any) -> Bool[Array, "b v"]:
        """Returns which tokens may come next."""
        ...

    def advance(self, state: Any, tokens: Int[Array, " b"]) -> Any:
        """Returns the state after a token in each row, which was allowed."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Automaton:
    """A finite automaton: tokens lead from state to state.

    Attributes:
      table: (states, vocabulary) int, the state after a token, or `NOWHERE`; state 0 is the first.
    """

    table: np.ndarray

    def __post_init__(self):
        table = np.asarray(self.table)
        if table.ndim != 2 or table.dtype.kind != "i":
            raise ValueError(
                f"The table of an automaton is (states, vocabulary), not {table.shape}."
            )
        if table.min() < NOWHERE or table.max() >= len(table):
            raise ValueError(f"The table leads to states outside of 0 to {len(table) - 1}.")
        stuck = np.flatnonzero((table == NOWHERE).all(1))
        if len(stuck):
            raise ValueError(
                f"No token may come after state {stuck[0]}: let the stop token lead back to it."
            )

    def begin(self, rows: int) -> Int[Array, " b"]:
        """Returns the first state for each row."""
        return jnp.zeros(rows, jnp.int32)

    def allowed(self, state: Int[Array, " b"]) -> Bool[Array, "b v"]:
        """Returns which tokens lead somewhere."""
        return jnp.asarray(self.table)[state] != NOWHERE

    def advance(self, state: Int[Array, " b"], tokens: Int[Array, " b"]) -> Int[Array, " b"]:
        """Returns the states that tokens lead to."""
        return jnp.asarray(self.table, jnp.int32)[state, tokens]


def trie(sequences: Sequence[Sequence[int]], *, vocabulary: int, stop: int) -> Automaton:
    """Returns the automaton of a closed set of sequences, each followed by the stop token.

    Args:
      sequences: What may be generated, without the stop token.
      vocabulary: Number of tokens.
      stop: The token that ends a sequence; after it only it may come.

    Raises:
      ValueError: there is no sequence, or one holds the stop token or one outside the vocabulary.
    """
    if not sequences:
        raise ValueError("A trie needs at least one sequence.")
    rows = [np.full(vocabulary, NOWHERE) for _ in range(2)]
    rows[1][stop] = 1  # the end
    for sequence in sequences:
        state = 0
        for token in sequence:
            if not 0 <= token < vocabulary or token == stop:
                raise ValueError(f"{list(sequence)} has the token {token}, which cannot be in it.")
            if rows[state][token] == NOWHERE:
                rows[state][token] = len(rows)
                rows.append(np.full(vocabulary, NOWHERE))
            state = int(rows[state][token])
        rows[state][stop] = 1
    return Automaton(np.stack(rows))
