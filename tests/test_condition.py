"""Conditions: reading, dropping and branches of every kind; guidance of several branches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.core.condition import (
    Condition,
    Features,
    Image,
    Label,
    Nothing,
    Prefix,
    Several,
    classes_of,
    stacked,
)
from jaxar.flow.guidance import Guidance, Guide

KEY = jax.random.key(0)
TEXTS = [np.ones((2, 4), np.float32), np.ones((3, 4), np.float32)]
PICTURES = np.zeros((2, 3, 3, 1), np.float32)
KINDS = {
    "nothing": (Nothing(), None),
    "label": (Label(5, 0.5), [1, 4]),
    "features": (Features(3, 4, 0.5), TEXTS),
    "image": (Image((3, 3, 1), 0.5), PICTURES),
    "prefix": (Prefix(4, 9), [[1, 2], []]),
    "several": (
        Several({"text": Features(3, 4, 0.5), "control": Image((3, 3, 1), 0.5)}),
        {"text": TEXTS, "control": PICTURES},
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_value_has_the_shapes_it_says(name):
    condition, given = KINDS[name]
    assert isinstance(condition, Condition)
    value = condition.read(given)
    shapes = condition.shapes(2)
    assert jax.tree.structure(value) == jax.tree.structure(shapes)
    for array, wanted in zip(*map(jax.tree.leaves, (value, shapes)), strict=True):
        assert array.shape == wanted.shape and array.dtype == wanted.dtype
    first, *others = condition.branches(value)
    jax.tree.map(np.testing.assert_array_equal, first, value)
    whole = stacked([first, *others])
    assert all(len(x) == 2 * (1 + len(others)) for x in jax.tree.leaves(whole))


@pytest.mark.parametrize("name", ["label", "features", "image"])
def test_as_many_are_dropped_as_the_rate_says_and_the_rest_stays(name):
    condition, given = KINDS[name]
    value = jax.tree.map(lambda x: jnp.repeat(x[:1], 4000, 0), condition.read(given))
    dropped = condition.drop(value, KEY)
    gone = dropped == 5 if name == "label" else ~dropped["given"]
    assert abs(float(gone.mean()) - 0.5) < 5 * 0.5 / np.sqrt(4000)
    kept = jax.tree.map(lambda x: x[~np.asarray(gone)], dropped)
    still = jax.tree.map(lambda x: x[~np.asarray(gone)], value)
    jax.tree.map(np.testing.assert_array_equal, kept, still)


def test_several_are_dropped_together_or_each_by_itself():
    for together in (True, False):
        parts = {"a": Image((1, 1, 1), 0.5), "b": Image((1, 1, 1), 0.5)}
        condition = Several(parts, together=together)
        images = np.zeros((2000, 1, 1, 1), np.float32)
        dropped = condition.drop(condition.read({"a": images, "b": images}), KEY)
        alike = np.mean(np.asarray(dropped["a"]["given"] == dropped["b"]["given"]))
        assert alike == 1 if together else abs(alike - 0.5) < 0.06


def test_branches_of_an_editor_give_up_one_condition_after_the_other():
    parts = {"image": Image((1, 1, 1)), "text": Features(3, 4)}
    condition = Several(parts, stepwise=True)
    value = condition.read({"image": PICTURES[:, :1, :1], "text": TEXTS})
    found = [
        (b["image"]["given"].all(), b["text"]["given"].all()) for b in condition.branches(value)
    ]
    assert found == [(True, True), (True, False), (False, False)]


@pytest.mark.parametrize(
    ("condition", "given", "message"),
    [
        (Nothing(), [1], "takes no condition"),
        (Label(5), [5], r"must lie in \[0, 5\), not 5"),
        (Label(5), [1.5], "list of whole numbers"),
        (Features(3, 4), [np.zeros((4, 4))], r"example 0 must be \(1 to 3, 4\)"),
        (Image((3, 3, 1)), np.zeros((2, 4, 3, 1)), r"must be \(3, 3, 1\) each"),
        (Prefix(2, 9), [[1, 2, 3]], "at most 2 fit"),
        (Prefix(2, 9), [[9]], "token 9"),
        (Several({"a": Label(2)}), {"b": [1]}, "must have the entries"),
        (Several({"a": Label(2), "b": Label(2)}), {"a": [1], "b": [1, 0]}, "as many examples"),
    ],
)
def test_what_is_no_such_condition_is_refused(condition, given, message):
    with pytest.raises(ValueError, match=message):
        condition.read(given)


def test_arguments_that_make_no_sense_are_refused():
    for make in (
        lambda: Label(0),
        lambda: Label(3, 1.5),
        lambda: Features(0, 3),
        lambda: Several({}),
    ):
        with pytest.raises(ValueError):
            make()
    with pytest.raises(ValueError, match="xAR takes a label as its condition, not prefix"):
        classes_of(Prefix(2, 3), "xAR")


def test_guidance_of_three_branches_adds_what_each_condition_says():
    full, image, none = (jax.random.normal(jax.random.key(i), (2, 3)) for i in range(3))
    whole = jnp.concatenate([full, image, none])
    mixed = Guide(Guidance(), (5.0, 1.5), 3).mix(whole)
    wanted = none + 1.5 * (image - none) + 5.0 * (full - image)
    np.testing.assert_allclose(mixed, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(Guide(Guidance(), 1.0, 3).mix(whole), full, atol=1e-5)
