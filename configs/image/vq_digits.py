"""A small multi-scale VQ autoencoder on real handwritten digits.

Data: the 1,442 training digits of scikit-learn at 16 x 16. An image is 30 codes of 32 on four grids
from 1 x 1 to 4 x 4. Expect, on the 355 held-out digits, a mean absolute error of 0.064 in [-1, 1],
where a blank image has 0.474, and 24.3 dB; docs/tokenizers.md has the figures of each level.

    python -m jaxar.main --config=vq_digits
"""

from jaxar.config import ConfigDict, load, spec


def get_config() -> ConfigDict:
    config = load("vq_glyphs").unlock()
    config.name = "vq_digits"
    config.steps = 900

    config.data = spec("digits", split="train", size=16)
    config.data_shape = (16, 16, 1)
    config.num_classes = 10

    config.model.levels = (1, 2, 3, 4)
    config.quantizer.update(vocabulary=32, learning="gradient", decay=0.99, restart=0.0)
    config.loss.level_dropout = 0.0

    config.sample.per_class = 10
    return config
