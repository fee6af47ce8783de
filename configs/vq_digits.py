"""A small multi-scale VQ autoencoder on real handwritten digits: two minutes on two CPU cores.

Data: the 1,442 training digits of scikit-learn at 16 x 16. An image is 30 codes of 32 on four grids
from 1 x 1 to 4 x 4. Expect, on the 355 held-out digits, a mean absolute error of 0.064 in [-1, 1],
where a blank image has 0.474, and 24.3 dB; docs/tokenizers.md has the figures of each level.

python -m jaxar.main --config=configs/vq_digits.py
"""

from jaxar.config import ConfigDict, spec


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.name = "vq_digits"
    config.system = "vq_autoencoder"
    config.seed = 0
    config.batch_size = 16
    config.steps = 900

    config.data = spec("digits", split="train", size=16)
    config.data_shape = (16, 16, 1)
    config.num_classes = 10
    config.workers = 0

    config.autoencoder = spec("none")
    config.model = spec(
        "vq_autoencoder",
        image_channels=1,
        width=16,
        multipliers=(1, 2, 2),
        blocks=1,
        attention=(2,),
        levels=(1, 2, 3, 4),
        phis=4,
        beta=0.25,
        dropout=0.0,
        dtype="float32",
    )
    config.quantizer = spec(
        "vector",
        vocabulary=32,
        channels=8,
        distance="euclidean",
        learning="gradient",
        decay=0.99,
        restart=0.0,
    )
    config.loss = spec(
        "quantized",
        quantization_weight=1.0,
        level_dropout=0.0,
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

    config.sample = ConfigDict(dict(every=200, per_class=10, classes=4))
    config.evaluation = spec("none")
    config.checkpoint = ConfigDict(dict(every=200, keep=2, keep_every=0))
    config.log_every = 50
    config.mesh = ConfigDict(dict(data=1, fsdp=1, tensor=1))
    return config
