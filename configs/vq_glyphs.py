"""A small multi-scale VQ autoencoder on drawn letters and digits: minutes on two CPU cores.

Data: 36 symbols in eight faces, 32 x 32, one channel. An image is 129 codes of 128 on five grids
from 2 x 2 to 8 x 8. Expect, on glyphs of another seed, a mean absolute error of 0.067 in [-1, 1],
where a blank image has 0.24, and 19.1 dB; docs/tokenizers.md has the figures of each level.

    python -m jaxar.main --config=configs/vq_glyphs.py
"""

from jaxar.config import ConfigDict, spec


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.name = "vq_glyphs"
    config.system = "vq_autoencoder"
    config.seed = 0
    config.batch_size = 16
    config.steps = 600

    config.data = spec("glyphs", size=32, channels=1, num_classes=36, count=4000, seed=0)
    config.data_shape = (32, 32, 1)
    config.num_classes = 36
    config.workers = 0

    config.autoencoder = spec("none")
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
        dropout=0.0,
        dtype="float32",
    )
    config.quantizer = spec(
        "vector",
        vocabulary=128,
        channels=8,
        distance="euclidean",
        learning="average",
        decay=0.97,
        restart=0.1,
    )
    config.loss = spec(
        "quantized",
        quantization_weight=1.0,
        level_dropout=0.1,
        perceptual_weight=0.0,
        adversarial_weight=0.0,
        adversarial_start=0,
        learned_variance=False,
        discriminator_width=16,
        discriminator_layers=3,
    )
    config.perceptual = spec("none")  # or spec("inception", weights=FILE), with a weight above

    config.optimizer = ConfigDict(
        dict(
            base_learning_rate=4.8e-2,  # for 256 examples: 3e-3 at batch 16
            final_learning_rate=1e-5,
            warmup_steps=40,
            warmup_from=0.0,
            decay="cosine",
            decay_fraction=0.7,
            beta1=0.9,
            beta2=0.99,
            weight_decay=0.0,
            final_weight_decay=0.0,
            no_decay=(),
            clip_norm=1.0,
        )
    )
    config.ema = 0.99
    config.memory = ConfigDict(
        dict(accumulate=1, moments="float32", ema="float32", offload_ema=False)
    )

    config.sample = ConfigDict(dict(every=200, per_class=12, classes=4))
    config.evaluation = spec("none")
    config.checkpoint = ConfigDict(dict(every=200, keep=2, keep_every=0))
    config.log_every = 50
    config.mesh = ConfigDict(dict(slices=1, data=1, fsdp=1, tensor=1))
    return config
