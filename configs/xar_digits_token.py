"""The digits demo with another entity X: single tokens in raster order, 16 autoregressive steps.

python -m jaxar.main --config=configs/xar_digits_token.py
"""

from jaxar.config import ConfigDict, load, spec


def get_config() -> ConfigDict:
    config = load("xar_digits").unlock()
    config.name = "xar_digits_token"
    config.plan = spec("token")
    return config
