"""A small VAR on real handwritten digits: from pictures to pictures in minutes on two CPU cores.

The tokenizer of configs/vq_digits.py makes 30 codes of a digit, on grids from 1 x 1 to 4 x 4.
99.8 % of 1,000 samples were recognised as their class after the 600 steps.

    python -m jaxar.main --config=configs/vq_digits.py
    python -m jaxar.main --config=configs/var_digits.py --mode=encode \
        --source='digits(split="train", size=16)' --output=runs/digit_features
    python -m jaxar.main --config=configs/var_digits.py
"""

from jaxar.config import ConfigDict, load, spec


def get_config() -> ConfigDict:
    tokenizer = load("vq_digits")
    config = ConfigDict()
    config.name = "var_digits"
    config.system = "next_x"
    config.seed = 0
    config.batch_size = 64
    config.steps = 600

    config.data = spec("latent_records", path="runs/digit_features", flip=False)
    config.data_shape = (4, 4, 8)  # the map that the quantizer turns into codes
    config.num_classes = 10
    config.workers = 0

    config.tokenizer = spec("features")
    network = {k: v for k, v in tokenizer.model.items() if k not in ("name", "dropout", "beta")}
    config.autoencoder = spec("vq", weights="runs/vq_digits", **network)
    config.quantizer = tokenizer.quantizer
    config.plan = spec("scale", sizes=tokenizer.model.levels)
    config.context = spec("shifted")
    config.head = spec("categorical", init_scale=0.02)
    config.label_dropout = 0.1
    config.model = spec(
        "var",
        width=96,
        depth=4,
        heads=4,
        mlp_ratio=4.0,
        cosine=True,
        shared_modulation=False,
        gate_init=1e-3,
        dropout=0.1,
        attention_dropout=0.0,
        drop_path=0.0,
        dtype="float32",
        remat="none",
        unroll=4,
        attention="auto",
    )

    config.optimizer = ConfigDict(
        dict(
            base_learning_rate=8e-3,  # for 256 examples: 2e-3 at batch 64
            final_learning_rate=2e-5,
            warmup_steps=50,
            warmup_from=0.005,
            decay="linear",
            decay_fraction=0.9,
            beta1=0.9,
            beta2=0.95,
            weight_decay=0.05,
            final_weight_decay=0.05,
            no_decay=("positions", "start", "levels", "log_scale"),
            clip_norm=2.0,
        )
    )
    config.ema = 0.99
    config.memory = ConfigDict(
        dict(accumulate=1, moments="float32", ema="float32", offload_ema=False)
    )

    config.sample = ConfigDict(
        dict(
            top_k=0,
            top_p=0.96,
            smooth=False,
            guidance=1.5,
            schedule="linear",
            low=0.0,
            high=1.0,
            every=300,
            per_class=10,
            classes=10,
        )
    )
    config.evaluation = spec("recognition", per_class=100, reference="digits(size=16)")
    config.checkpoint = ConfigDict(dict(every=200, keep=2, keep_every=0))
    config.log_every = 50
    config.mesh = ConfigDict(dict(slices=1, data=1, fsdp=1, tensor=1))
    return config
