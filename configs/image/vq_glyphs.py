"""A small multi-scale VQ autoencoder on drawn letters and digits: minutes on two CPU cores.

Data: 36 symbols in eight faces, 32 x 32, one channel. An image is 129 codes of 128 on five grids
from 2 x 2 to 8 x 8. Expect, on glyphs of another seed, a mean absolute error of 0.067 in [-1, 1],
where a blank image has 0.24, and 19.1 dB; docs/tokenizers.md has the figures of each level.

    python -m jaxar.main --config=vq_glyphs
"""

from jaxar.config import ConfigDict, beside, spec

common = beside(__file__, "common")


def get_config() -> ConfigDict:
    config = common.glyphs("vq_glyphs", steps=600)
    config.system = "vq_autoencoder"
    config.model = spec(
        "vq_autoencoder",
        image_channels=1,
        width=16,
        multipliers=(1, 2, 2),
        blocks=1,
        attention=(2,),
        levels=(2, 3, 4, 6, 8),
        phis=4,
        beta=0.25,
    )
    config.quantizer = spec(
        "vector", vocabulary=128, channels=8, learning="average", decay=0.97, restart=0.1
    )
    config.loss = spec(
        "quantized",
        quantization_weight=1.0,
        level_dropout=0.1,
        perceptual_weight=0.0,
        adversarial_weight=0.0,
        discriminator_width=16,
    )
    config.perceptual = spec("none")  # or spec("inception", weights=FILE), with a weight above
    return config
