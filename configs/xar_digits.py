"""A small xAR on real handwritten digits: the demo, minutes on two CPU cores.

Data: the 1,797 digits of scikit-learn (UCI optical recognition of handwritten digits) at 16 x 16.
Patches of 4 x 4 pixels make a 4 x 4 grid of tokens, cut into 2 x 2 cells as in the paper. Expect at
least 95 % of the samples to be recognised as their class.

    python -m jaxar.main --config=configs/xar_digits.py
"""

from jaxar.config import ConfigDict, beside, spec

common = beside(__file__, "common")


def get_config() -> ConfigDict:
    config = common.digits("xar_digits", steps=1200)
    config.plan = spec("cell", height=2, width=2)
    config.context = spec("noisy")
    config.head = spec("velocity")
    config.label_dropout = 0.1
    config.flow = ConfigDict(
        dict(path=spec("linear"), time=spec("logit_normal", mu=0.0, sigma=1.0))
    )
    config.model = spec("xar", width=96, depth=(2, 2), heads=4, unroll=2)
    config.optimizer = common.adamw(
        4.8e-2,  # for 256 examples: 6e-3 at batch 32
        final=1e-5,
        warmup_steps=60,
        decay_fraction=0.5,
        beta2=0.96,
        weight_decay=0.02,
    )
    config.sample = ConfigDict(
        dict(
            solver="euler_maruyama",
            steps=20,
            guidance=1.5,
            schedule="linear",
            every=400,
            per_class=10,
            classes=10,
        )
    )
    config.checkpoint = ConfigDict(dict(every=200))
    return config
