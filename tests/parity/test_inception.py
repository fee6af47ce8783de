"""Inception and its metrics against torch-fidelity's numbers; reads every size from the files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.evaluation import inception, scores
from jaxar.evaluation import inception_weights as table
from jaxar.evaluation.frechet import RunningMoments, frechet_distance
from tests.parity.cases import cases, state_dict

pytestmark = pytest.mark.parity

LAYERS = ("64", "192", "768", "2048", "logits_unbiased")


@pytest.fixture(scope="module", params=cases("inception"), ids=lambda path: path.stem)
def case(request):
    return np.load(request.param)


def test_features(case):
    params = table.from_state_dict(state_dict(case), inception.shapes)
    run = jax.jit(inception.features)
    sizes = [key.removeprefix("images/") for key in case.files if key.startswith("images/")]
    assert sizes
    for size in sizes:
        found = run(params, jnp.asarray(np.moveaxis(case[f"images/{size}"], 1, -1)))
        for layer in LAYERS:
            expected = case[f"features/{size}/{layer}"]
            scale = np.abs(expected).max()
            np.testing.assert_allclose(
                found[layer], expected, rtol=1e-3, atol=1e-5 * scale, err_msg=f"{size}/{layer}"
            )


def test_metrics(case):
    generated, real = case["metrics/features_1"], case["metrics/features_2"]
    distance = frechet_distance(moments(generated), moments(real))
    np.testing.assert_allclose(distance, case["metrics/frechet_inception_distance"], rtol=1e-6)
    mean, deviation = scores.inception_score(case["metrics/logits"])
    np.testing.assert_allclose(mean, case["metrics/inception_score_mean"], rtol=1e-6)
    np.testing.assert_allclose(deviation, case["metrics/inception_score_std"], rtol=1e-6)
    precision, recall = scores.precision_recall(generated, real)
    np.testing.assert_allclose(precision, case["metrics/precision"], rtol=1e-6)
    np.testing.assert_allclose(recall, case["metrics/recall"], rtol=1e-6)


def moments(features):
    taken = RunningMoments()
    taken.add(features)
    return taken
