"""The multi-scale tokenizer against the released PyTorch code, from images to teacher forcing.

Reads every size from the files; `JAXAR_GOLDENS` names another folder of cases.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.core.resize import resize_area
from tests.parity.cases import cases, vq_autoencoder

pytestmark = pytest.mark.parity

TIE = 1e-5


@pytest.fixture(scope="module", params=cases("var"), ids=lambda path: path.stem)
def setting(request):
    """A case and its tokenizer."""
    case = np.load(request.param)
    return case, vq_autoencoder(case)


@pytest.fixture(scope="module")
def features(setting):
    """The features of the case, channels last: theirs."""
    return last(setting[0]["features"])


def last(array):
    """Channels first as channels last."""
    return jnp.asarray(np.moveaxis(array, 1, -1))


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_features_and_reconstruction(setting):
    case, network = setting
    images = last(case["images"])
    close(jax.jit(network.features)(images), last(case["features"]))
    decode = lambda codes: network.decode(network.quantizer.decode(codes))  # noqa: E731
    made = jax.jit(decode)(network.quantizer.split(jnp.asarray(case["codes"])))
    close(made, last(case["reconstruction"]))
    close(jax.jit(network.reconstruct)(images), last(case["reconstruction"]))


def test_codes_of_all_levels(setting, features):
    """Equal, but where two codes are equally near; seen from the released codes before them."""
    case, network = setting
    quantizer = network.quantizer
    released = quantizer.split(jnp.asarray(case["codes"]))
    total, ties = jnp.zeros_like(features), 0
    for level, codes in enumerate(released):
        residual = resize_area(features - total, quantizer.grids[level])
        distances = 2 * quantizer.quantizer.distances(residual)
        theirs = jnp.take_along_axis(distances, codes[..., None], -1)[..., 0]
        assert (theirs - distances.min(-1) <= TIE).all(), level
        ties += (codes != quantizer.quantizer.nearest(residual)).sum()
        total = total + quantizer.contribution(codes, level)
    if not ties:
        np.testing.assert_array_equal(quantizer.join(quantizer.encode(features)), case["codes"])


def test_quantized_map_and_loss(setting, features):
    case, network = setting
    _, quantized, loss = jax.jit(network.quantizer.quantize)(features)
    close(quantized, last(case["f_hat"]))
    codes = network.quantizer.split(jnp.asarray(case["codes"]))
    close(network.quantizer.decode(codes), last(case["f_hat"]))
    np.testing.assert_allclose(loss, case["vq_loss"], rtol=1e-5)


def test_teacher_forcing(setting):
    case, network = setting
    codes = network.quantizer.split(jnp.asarray(case["codes"]))
    close(network.quantizer.teacher_forcing(codes), case["teacher_forcing_input"])


def test_sampled_codes_become_images(setting):
    """The greedy sampler's codes; its images lie in [0, 1]."""
    case, network = setting
    codes = network.quantizer.split(jnp.asarray(case["greedy/codes"]))
    made = network.decode(network.quantizer.decode(codes))
    close((made + 1) / 2, last(case["greedy/images"]))
