"""Editing: kept parts stay, regenerated parts depend on them, for every kind of walk."""

import jax
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.core.plan import cell, scale
from jaxar.runs import setup
from jaxar.runs.edit import SHAPES, edit, named_mask
from jaxar.runs.model import Model
from tests.shrink import system_and_params

NAMES = ["xar_digits", "xar_digits_token", "xar_digits_scale"]


def model_of(name):
    config, system, params = system_and_params(name)
    return Model(config, system, params, setup.prepare(config).mesh)


def images_of(model, count=2):
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (count, *model.system.shape)).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_mask_leaves_out_stays(name):
    model = model_of(name)
    images = images_of(model)
    mask = named_mask("right", images.shape[1:3])
    made = edit(model, images, mask, [1, 2], seed=3)
    np.testing.assert_allclose(made[:, ~mask], images[:, ~mask], atol=1e-6)
    assert np.abs(made[:, mask] - images[:, mask]).max() > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_of_everything_is_plain_sampling(name):
    model = model_of(name)
    made = edit(model, images_of(model), "all", [1, 2], seed=3)
    np.testing.assert_allclose(made, model.sample([1, 2], seed=3), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_drawn_depends_on_what_is_kept(name):
    model = model_of(name)
    images = images_of(model)
    mask = named_mask("bottom", images.shape[1:3])  # the top is earlier in every plan
    first = edit(model, images, mask, [1, 2], seed=3)
    second = edit(model, -images, mask, [1, 2], seed=3)
    assert np.abs(first - second)[:, mask].max() > 1e-5


def test_a_spot_touches_the_tokens_that_stand_for_it():
    spot = np.zeros((1, 16, 16), np.float32)
    spot[0, 5, 9] = 1
    cells = cell((4, 4), height=2, width=2).touched(jax.numpy.asarray(spot))
    assert np.flatnonzero(cells).tolist() == [6]  # row 1, column 2: the second cell's third token
    levels = scale((4, 4), sizes=[1, 2, 4]).touched(jax.numpy.asarray(spot))
    assert np.flatnonzero(levels).tolist() == [0, 1 + 1, 5 + 6]


def test_named_masks_cover_what_they_say():
    center, border = named_mask("center", (8, 12)), named_mask("border", (8, 12))
    assert center[2:6, 3:9].all() and center.sum() == 24 and (center ^ border).all()
    halves = [named_mask(name, (8, 12)).mean() for name in ("left", "right", "top", "bottom")]
    assert halves == [0.5] * 4 and set(SHAPES) >= {"all"}


def test_what_does_not_fit_is_named():
    model = model_of("xar_digits")
    images = images_of(model)
    for bad, message in [
        (dict(images=images[:1]), "one for each label"),
        (dict(images=images[:, :8]), r"\(2, 16, 16, 1\)"),
        (dict(mask=np.ones((4, 4), bool)), "mask must be"),
        (dict(mask="middle"), "no mask 'middle'"),
    ]:
        arguments = {"images": images, "mask": "center", "labels": [1, 2], **bad}
        with pytest.raises(ConfigError, match=message):
            edit(model, **arguments)
