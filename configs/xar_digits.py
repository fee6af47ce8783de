"""A small xAR on real handwritten digits: the demo, minutes on two CPU cores.

Data: the 1,797 digits of scikit-learn (UCI optical recognition of handwritten digits) at 16 x 16.
Patches of 4 x 4 pixels make a 4 x 4 grid of tokens, cut into 2 x 2 cells as in the paper. Expect at
least 95 % of the samples to be recognised as their class.

    python -m jaxar.main --config=configs/xar_digits.py
"""

from jaxar.config import ConfigDict, spec


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.name = "xar_digits"
    config.system = "next_x"
    config.seed = 0
    config.batch_size = 32
    config.steps = 1200

    config.data = spec("digits", split="train", size=16)
    config.data_shape = (16, 16, 1)
    config.num_classes = 10
    config.workers = 0

    config.tokenizer = spec("patch", height=4, width=4)
    config.autoencoder = spec("none")
    config.plan = spec("cell", height=2, width=2)
    config.context = spec("noisy")
    config.head = spec("velocity")
    config.label_dropout = 0.1
    config.flow = ConfigDict(
        dict(path=spec("linear"), time=spec("logit_normal", mu=0.0, sigma=1.0))
    )
    config.model = spec(
        "xar",
        width=96,
        depth=(2, 2),
        heads=4,
        mlp_ratio=4.0,
        dropout=0.0,
        attention_dropout=0.0,
        time_scale=1000.0,
        truncate_time=True,
        dtype="float32",
        remat="none",
        unroll=2,
        attention="auto",
    )

    config.optimizer = ConfigDict(
        dict(
            base_learning_rate=4.8e-2,  # for 256 examples: 6e-3 at batch 32
            final_learning_rate=1e-5,
            warmup_steps=60,
            warmup_from=0.0,
            decay="cosine",
            decay_fraction=0.5,
            beta1=0.9,
            beta2=0.96,
            weight_decay=0.02,
            final_weight_decay=0.02,
            no_decay=(),
            clip_norm=1.0,
        )
    )
    config.ema = 0.99
    config.memory = ConfigDict(
        dict(accumulate=1, moments="float32", ema="float32", offload_ema=False)
    )

    config.sample = ConfigDict(
        dict(
            solver="euler_maruyama",
            steps=20,
            shift=1.0,
            times="published",
            guidance=1.5,
            schedule="linear",
            low=0.0,
            high=1.0,
            dtype="float32",
            every=400,
            per_class=10,
            classes=10,
        )
    )
    config.evaluation = spec("recognition", per_class=100)
    config.checkpoint = ConfigDict(dict(every=200, keep=2, keep_every=0))
    config.log_every = 50
    config.mesh = ConfigDict(dict(slices=1, data=1, fsdp=1, tensor=1))
    return config
