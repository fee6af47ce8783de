"""The digits demo with another entity X: the whole image as one entity: plain flow matching.

python -m jaxar.main --config=configs/xar_digits_image.py
"""

from jaxar.config import ConfigDict, load, spec


def get_config() -> ConfigDict:
    config = load("xar_digits").unlock()
    config.name = "xar_digits_image"
    config.plan = spec("image")
    return config
