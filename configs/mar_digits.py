"""A small MAR on real handwritten digits: minutes on two CPU cores.

Data: the 1,797 digits of scikit-learn at 16 x 16, as in configs/xar_digits.py. Patches of 4 x 4
pixels make 16 tokens, drawn one by one in random order. 97.4 % of 1,000 samples were recognised as
their class after the 2,000 steps.

    python -m jaxar.main --config=configs/mar_digits.py
"""

from jaxar.config import ConfigDict, spec


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.name = "mar_digits"
    config.system = "next_x"
    config.seed = 0
    config.batch_size = 32
    config.steps = 2000

    config.data = spec("digits", split="train", size=16)
    config.data_shape = (16, 16, 1)
    config.num_classes = 10
    config.workers = 0

    config.tokenizer = spec("patch", height=4, width=4)
    config.autoencoder = spec("none")
    config.plan = spec("token")
    config.context = spec("masked", lowest=0.5, deviation=0.25)
    config.label_dropout = 0.1
    config.model = spec(
        "mar",
        width=64,
        depth=(2, 2),
        heads=4,
        mlp_ratio=4.0,
        buffer=4,
        dropout=0.0,
        attention_dropout=0.0,
        dtype="float32",
        remat="none",
        unroll=2,
        attention="auto",
    )
    config.head = spec(
        "diffusion", width=128, depth=2, steps=1000, repeats=4, dtype="float32", remat="none"
    )

    config.optimizer = ConfigDict(
        dict(
            base_learning_rate=2.4e-2,  # for 256 examples: 3e-3 at batch 32
            final_learning_rate=1e-5,
            warmup_steps=100,
            warmup_from=0.0,
            decay="cosine",
            decay_fraction=0.5,
            beta1=0.9,
            beta2=0.95,
            weight_decay=0.02,
            final_weight_decay=0.02,
            no_decay=("head",),
            clip_norm=3.0,
        )
    )
    config.ema = 0.99
    config.memory = ConfigDict(
        dict(accumulate=1, moments="float32", ema="float32", offload_ema=False)
    )

    config.sample = ConfigDict(
        dict(
            iterations=16,
            steps=50,
            temperature=1.0,
            clip=1.0,
            guidance=2.0,
            schedule="linear",
            low=0.0,
            high=1.0,
            every=1000,
            per_class=10,
            classes=10,
        )
    )
    config.evaluation = spec("recognition", per_class=100)
    config.checkpoint = ConfigDict(dict(every=500, keep=2, keep_every=0))
    config.log_every = 50
    config.mesh = ConfigDict(dict(slices=1, data=1, fsdp=1, tensor=1))
    return config
