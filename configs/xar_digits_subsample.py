"""The digits demo with another entity X: four interleaved subsamples.

python -m jaxar.main --config=configs/xar_digits_subsample.py
"""

from jaxar.config import ConfigDict, load, spec


def get_config() -> ConfigDict:
    config = load("xar_digits").unlock()
    config.name = "xar_digits_subsample"
    config.plan = spec("subsample", height=2, width=2)
    return config
