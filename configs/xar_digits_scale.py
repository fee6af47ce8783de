"""The digits demo with another entity X: three scales from coarse to fine.

python -m jaxar.main --config=configs/xar_digits_scale.py
"""

from jaxar.config import ConfigDict, load, spec


def get_config() -> ConfigDict:
    config = load("xar_digits").unlock()
    config.name = "xar_digits_scale"
    config.plan = spec("scale", sizes=(1, 2, 4))
    return config
