"""The KL autoencoder against the released PyTorch code: moments and images.

Reads every size from the files; `JAXAR_GOLDENS` names another folder of cases.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.nn.module import bind, params_of
from jaxar.tokenizers.autoencoders import kl as table
from jaxar.tokenizers.autoencoders.kl import KLAutoencoder
from tests.parity.cases import attention_of, cases, pyramid_of, state_dict

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=cases("kl16"), ids=lambda path: path.stem)
def setting(request):
    """A case, the template of its autoencoder and its parameters."""
    case = np.load(request.param)
    state = state_dict(case)
    arguments = dict(
        **pyramid_of(state, int(case["config/ch"])),
        encoder_attention=attention_of(state, "q"),
        channels=len(state["post_quant_conv.weight"]),
    )
    template = jax.eval_shape(functools.partial(_make, arguments), jax.random.key(0))
    return case, template, table.from_state_dict(state, params_of(template))


def _make(arguments, key):
    return KLAutoencoder(**arguments, key=key)


@pytest.mark.parametrize(
    ("method", "given", "expected"),
    [
        ("moments", "encode/images", "encode/moments"),
        ("decode", "decode/latents", "decode/images"),
    ],
)
def test_outputs(setting, method, given, expected):
    case, template, params = setting

    @jax.jit
    def run(params, x):
        return getattr(bind(template, params), method)(x)

    out = run(params, jnp.asarray(np.moveaxis(case[given], 1, -1)))
    wanted = np.moveaxis(case[expected], 1, -1)
    np.testing.assert_allclose(out, wanted, rtol=1e-3, atol=2e-4)
