"""Six toys built from the rooms alone: what systems of other domains ask of the contracts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.core import cache as caches
from jaxar.core import plan as plans
from jaxar.core.cache import KeyValue, Memory, State
from jaxar.core.constraint import Automaton, trie
from jaxar.core.random import Draws
from jaxar.core.visibility import (
    Visibility,
    causal,
    descends,
    every,
    present,
    started,
    tree_numbers,
)
from jaxar.flow.path import Linear as LinearPath
from jaxar.flow.time import Uniform
from jaxar.heads.base import Turn
from jaxar.heads.categorical import Categorical, Choosing
from jaxar.heads.flow import Flow, Solving
from jaxar.heads.flow_network import FlowNetwork
from jaxar.heads.kinds import ByKind
from jaxar.nn import layers
from jaxar.nn.attention import Attention, CrossAttention
from jaxar.nn.compute import Pass
from jaxar.nn.rope import rotary_table
from jaxar.nn.transformer import PlainBlock, Transformer
from jaxar.schemes.search import beam_search

WIDTH, HEADS, VOCABULARY = 16, 2, 7
KEY = jax.random.key(0)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


class Language:
    """A causal transformer over tokens, with learned positions."""

    def __init__(self, vocabulary=VOCABULARY, places=32):
        def block(key):
            mlp = layers.MLP(WIDTH, 32, activation=layers.gelu, key=key)
            return PlainBlock(WIDTH, Attention(WIDTH, HEADS, key=key), mlp)

        self.embed = layers.Table(vocabulary, WIDTH, key=jax.random.key(1), std=1.0)
        self.positions = layers.Table(places, WIDTH, key=jax.random.key(2), std=1.0)
        self.blocks = Transformer(2, block, key=jax.random.key(3))
        self.logits = layers.Linear(WIDTH, vocabulary, key=jax.random.key(4))

    def __call__(self, tokens, place, sees, cache=None):
        x = self.embed(tokens) + self.positions(place)
        x, new = self.blocks(x, None, Pass(sees=sees, collect=True), cache=cache)
        return self.logits(x), new

    def whole(self, tokens):
        place = np.arange(tokens.shape[1])
        return self(tokens, place, Visibility(causal, (place,), (place,)))[0]

    def step(self, cache, tokens, start):
        """Returns logits after one token a row, which stands at `start`, one place or (b,)."""
        room = cache.keys.shape[2]
        starts = jnp.broadcast_to(start, (len(tokens),))
        keys = np.append(np.arange(room), -1)
        sees = Visibility(started, (starts[:, None],), (keys,))
        logits, new = self(tokens[:, None], starts[:, None], sees, cache)
        return logits[:, 0], caches.write(cache, new, starts)


def sequences(batch, length, vocabulary=VOCABULARY):
    return jax.random.randint(jax.random.key(9), (batch, length), 0, vocabulary)


# 1. An encoder and a decoder that attends to a memory.


def test_a_decoder_reads_a_memory_that_is_projected_once():
    cross = CrossAttention(WIDTH, 5, HEADS, key=KEY)
    memory = jax.random.normal(KEY, (3, 6, 5))
    there = jnp.arange(6) < jnp.array([[2], [6], [4]])
    x = jax.random.normal(jax.random.key(1), (3, 4, WIDTH))
    sees = Visibility(present, (np.zeros(4, int),), (there,))
    whole = cross(x, memory, sees=sees)
    k, v = (a.reshape(1, 3, 6, -1) for a in cross.projected(memory))
    node = Memory(k, v, there)
    for i in range(4):  # token by token, and with the rows in another order
        close(cross(x[:, i : i + 1], node.at(0))[:, 0], whole[:, i])
    order = jnp.array([2, 0, 1])
    close(cross(x[order], caches.rows(node, order).at(0)), whole[order])
    unseen = jax.grad(lambda m: cross(x, m, sees=sees)[0].sum())(memory)
    assert not np.any(unseen[0, 2:]) and np.all(np.any(unseen[0, :2], -1))


# 2. A sequence of two kinds with two heads.


def test_a_sequence_of_two_kinds_has_two_heads():
    plan = plans.token((1, 6))
    kinds = ["code", "code", "vector", "vector", "code", "vector"]
    flow = Flow(LinearPath(), Uniform())
    code = Categorical(plan, WIDTH, VOCABULARY, init_scale=1.0, key=KEY)
    vector = FlowNetwork(plan, WIDTH, 3, flow=flow, width=16, depth=1, heads=2, key=KEY)
    head = ByKind({"code": code, "vector": vector}, kinds)
    hidden = jax.random.normal(KEY, (2, 6, WIDTH))
    tokens = {"code": sequences(2, 6), "vector": jax.random.normal(KEY, (2, 6, 3))}
    noise = head.noise(KEY, tokens, plan)
    loss = head.loss(hidden, tokens, noise, plan)
    own = np.array([kind == "code" for kind in kinds])
    close(loss[:, own], code.loss(hidden, tokens["code"], (), plan)[:, own])
    close(loss[:, ~own], vector.loss(hidden, tokens["vector"], noise["vector"], plan)[:, ~own])

    other = dict(tokens, code=jnp.where(own, tokens["code"], 0))  # codes where vectors are
    close(head.loss(hidden, other, noise, plan), loss)
    draws = Draws(jax.random.split(KEY, 2)).at(0)
    settings = {"code": Choosing(), "vector": Solving(steps=2, solver="euler")}
    turn = Turn(np.array([2]), 0.0, None, draws, settings, None)
    drawn = head.draw(hidden[:, 2:3], turn)
    alone = vector.draw(hidden[:, 2:3], turn._replace(settings=settings["vector"]))
    close(drawn["vector"], alone)
    assert drawn["code"].shape == (2, 1) and not np.any(drawn["code"])


# 3. Beams with a stop token and an automaton.


@pytest.mark.parametrize("width", [1, 3, 40])
def test_beams_under_a_trie_find_the_best_of_its_sequences(width):
    model, stop, batch, most = Language(), 6, 2, 4
    names = [[0, 1], [0, 1, 2], [3], [5, 5, 0], [2, 0], [2, 1]]
    rule = trie(names, vocabulary=VOCABULARY, stop=stop)
    first = jnp.array([4, 1])

    def ask(cache, tokens, step):
        logits, cache = model.step(cache, tokens, step)
        return logits, cache

    cache = model.blocks.empty_cache(batch * width, most + 1, jnp.float32)
    search = functools.partial(beam_search, ask, width=width, most=most, stop=stop, constraint=rule)
    found = jax.jit(search)(cache, first)
    for b in range(batch):
        scores = {}
        for name in names:  # brute force: p of the tokens that the trie allows
            state, total = rule.begin(1), 0.0
            row = [int(first[b]), *name, stop]
            logits = model.whole(jnp.array([row]))[0]
            for i, token in enumerate(row[1:]):
                allowed = jnp.where(rule.allowed(state)[0], logits[i], -jnp.inf)
                total += float(jax.nn.log_softmax(allowed)[token])
                state = rule.advance(state, jnp.array([token]))
            scores[tuple(name)] = total
        ranked = sorted(scores, key=scores.get, reverse=True)
        made = [
            tuple(int(t) for t in tokens[: length - 1])
            for tokens, length in zip(found.tokens[b], found.lengths[b], strict=True)
        ]
        assert set(made[: min(width, len(names))]) <= set(scores)
        for name, score in zip(made[: len(names)], found.scores[b], strict=False):
            close(score, scores[name])
        if width >= len(names):
            assert made[: len(names)] == ranked


def test_an_automaton_that_stops_nowhere_is_refused():
    with pytest.raises(ValueError, match="No token may come after state 1"):
        Automaton(np.array([[1, 0], [-1, -1]]))
    with pytest.raises(ValueError, match="token 9"):
        trie([[9]], vocabulary=4, stop=0)


# 4. Rows that start at different places.


def test_slots_that_start_at_different_places_are_rows_alone():
    model, lengths = Language(), np.array([5, 1, 3])
    tokens, cache = sequences(3, 9), Language().blocks.empty_cache(3, 9, jnp.float32)
    whole = model.whole(tokens)
    for b, length in enumerate(lengths):  # prompts of different lengths go into their slots
        for i in range(length):
            row = caches.rows(cache, slice(b, b + 1))
            _, row = model.step(row, tokens[b : b + 1, i], i)
            cache = jax.tree.map(lambda a, r, b=b: a.at[:, b : b + 1].set(r), cache, row)
    step = jax.jit(model.step)
    for more in range(4):  # one step for all slots
        place = lengths + more
        logits, cache = step(cache, tokens[np.arange(3), place], jnp.asarray(place))
        close(logits, whole[np.arange(3), place])


# 5. A tree of drafts with rollback.


def test_a_tree_of_drafts_is_every_branch_alone_and_rolls_back():
    model, prefix, room = Language(), 4, 16
    parents = [-1, 0, 0, 2, 2, 4]
    tokens, drafts = sequences(2, prefix), sequences(2, len(parents))
    enter, leave = tree_numbers(parents)
    depth = np.array([0, 1, 1, 2, 2, 3])
    cache = model.blocks.empty_cache(2, room, jnp.float32)
    place = np.arange(prefix)
    _, new = model(tokens, place, Visibility(causal, (place,), (place,)))
    cache = caches.write(cache, new, 0)

    # Queries see what is written, and their own ancestors among the drafts.
    seen = caches.view(cache, prefix)
    query = np.full(len(parents), prefix), enter, leave
    key = (
        np.append(np.arange(prefix), np.full(len(parents), -1)),
        np.append(np.zeros(prefix, int), enter),
        np.append(np.full(prefix, 99), leave),
    )
    sees = Visibility(every((started, 1), (descends, 2)), query, key)
    logits, new = model(drafts, prefix + depth, sees, seen)
    branch = [0, 2, 4, 5]
    path = jnp.concatenate([tokens, drafts[:, branch]], 1)
    close(logits[:, branch], model.whole(path)[:, prefix:])

    # The branch is accepted up to its third draft: the others are forgotten, the walk goes on.
    cache = caches.write(cache, new, prefix)
    kept = np.array([*range(prefix), *(prefix + i for i in branch[:3])])
    cache = caches.keep(cache, jnp.broadcast_to(kept, (2, len(kept))))
    after, _ = model.step(cache, jnp.array([1, 2]), prefix + 3)
    whole = jnp.concatenate([path[:, : prefix + 3], jnp.array([[1], [2]])], 1)
    close(after, model.whole(whole)[:, -1])
    with pytest.raises(ValueError, match="cannot go back"):
        caches.keep({"a": State(jnp.zeros((1, 2, 3)))}, jnp.zeros((2, 1), int))


# 6. A plan of rank 3 with its positions.


def test_a_clip_is_drawn_frame_by_frame_with_positions_of_three_axes():
    plan = plans.block((4, 2, 3), (1, 2, 3))
    assert plan.sizes == (6,) * 4 and plan.positions.shape == (24, 3)
    video = jax.random.normal(KEY, (2, 4, 2, 3, 5))
    np.testing.assert_array_equal(plan.paste(plan.cut(video)), video)
    rope = rotary_table(plan.positions, 12)
    attention = Attention(24, 2, key=KEY)
    x, sees = jax.random.normal(KEY, (1, 24, 24)), plan.layout().sees

    def out(x):
        return attention(x, Pass(rope=rope, sees=sees))[0]

    reach = np.abs(jax.jacrev(lambda x: out(x)[0].sum(-1))(x))[:, 0].sum(-1) > 0
    frame = np.arange(24) // 6
    np.testing.assert_array_equal(reach, frame[:, None] >= frame)
    cache, parts = attention.empty_cache(1, 1, 24, jnp.float32), []
    for i in range(4):
        places = slice(6 * i, 6 * i + 6)
        shared = Pass(rope=rope[:, places])
        past = None if i == 0 else caches.view(cache, 6 * i).at(0)
        y, new = attention(x[:, places], shared, cache=past)
        cache = caches.write(cache, jax.tree.map(lambda a: a[None], new), 6 * i)
        parts.append(y)
    close(jnp.concatenate(parts, 1), out(x))
    assert isinstance(cache, KeyValue)
