"""A small VAR on real handwritten digits: from pictures to pictures in minutes on two CPU cores.

The tokenizer of vq_digits makes 30 codes of a digit, on grids from 1 x 1 to 4 x 4.
99.8 % of 1,000 samples were recognised as their class after the 600 steps.

    python -m jaxar.main --config=vq_digits
    python -m jaxar.main --config=var_digits --mode=encode \
        --source='digits(split="train", size=16)' --output=runs/digit_features
    python -m jaxar.main --config=var_digits
"""

from jaxar.config import ConfigDict, beside, load, spec

common = beside(__file__, "common")


def get_config() -> ConfigDict:
    codes = load("vq_digits")
    config = common.digits("var_digits", steps=600, batch_size=64)
    config.data = spec("latent_records", path="runs/digit_features", flip=False)
    config.data_shape = (4, 4, 8)  # the map that the quantizer turns into codes
    config.tokenizer = spec("features")
    network = {k: v for k, v in codes.model.items() if k != "name"}
    config.autoencoder = spec("vq", weights="runs/vq_digits", **network)
    config.quantizer = codes.quantizer
    config.plan = spec("scale", sizes=codes.model.levels)
    config.context = spec("shifted")
    config.head = spec("categorical", init_scale=0.02)
    config.label_dropout = 0.1
    config.model = spec("var", width=96, depth=4, heads=4, dropout=0.1, unroll=4)
    config.optimizer = load("var_d16").optimizer
    config.optimizer.update(
        base_learning_rate=8e-3,  # for 256 examples: 2e-3 at batch 64
        final_learning_rate=2e-5,
        warmup_steps=50,
        decay_fraction=0.9,
    )
    config.sample = ConfigDict(
        dict(top_p=0.96, guidance=1.5, schedule="linear", every=300, per_class=10, classes=10)
    )
    config.evaluation = spec("recognition", per_class=100, reference="digits(size=16)")
    config.checkpoint = ConfigDict(dict(every=200))
    return config
