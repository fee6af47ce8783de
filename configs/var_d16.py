"""VAR-d16 on ImageNet 256 x 256: 310,283,520 parameters.

Paper: "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction", arXiv
2404.02905. Published: FID 3.55 of 50,000 samples by ADM's evaluator, drawn with guidance 2.5 (cfg
1.5 there: the weight less one), the 900 most likely codes and 96 % of the probability. The command
for the same figure from the released weights:

    python -m jaxar.main --config=configs/var_d16.py --mode=evaluate --weights=var_d16.pth \
        --tokenizer=vae_ch160v4096z32.pth --reference=VIRTUAL_imagenet256_labeled.npz \
        --network=weights-inception-2015-12-05-6726825d.pth

Train on features of the released tokenizer, cached by --mode=encode; the same tokenizer turns them
into codes. The release crops at random from images 1.125 times as large, the cache holds their
middle.

    python -m jaxar.main --config=configs/var_d16.py --mode=encode --source=/data/imagenet/train \
        --tokenizer=vae_ch160v4096z32.pth --output=/data/imagenet_features
    python -m jaxar.main --config=configs/var_d16.py --tokenizer=vae_ch160v4096z32.pth \
        --config.data.path=/data/imagenet_features
"""

from jaxar.config import ConfigDict, spec

IMAGES = 1_281_167  # of the training set
EPOCHS = 200
DEPTH = 16
LEVELS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
WARMUP, FLAT = 1 / 50, 0.05  # of the run; the rate stays at its peak for FLAT of what then remains


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.name = "var_d16"
    config.system = "next_x"
    config.seed = 0
    config.batch_size = 768
    config.steps = EPOCHS * -(-IMAGES // config.batch_size)

    config.data = spec("latent_records", path="", flip=False)
    config.data_shape = (16, 16, 32)  # the map that the quantizer turns into codes
    config.num_classes = 1000
    config.workers = 8

    config.tokenizer = spec("features")
    config.autoencoder = spec(
        "vq",
        weights="",
        levels=LEVELS,
        phis=4,
        image_channels=3,
        width=160,
        multipliers=(1, 1, 2, 2, 4),
        blocks=2,
        attention=(4,),
    )
    config.quantizer = spec("vector", vocabulary=4096, channels=32)
    config.plan = spec("scale", sizes=LEVELS)
    config.context = spec("shifted")
    config.head = spec("categorical", init_scale=0.02)
    config.label_dropout = 0.1
    config.model = spec(
        "var",
        width=64 * DEPTH,
        depth=DEPTH,
        heads=DEPTH,
        mlp_ratio=4.0,
        cosine=True,
        shared_modulation=False,
        gate_init=1e-3,
        dropout=0.0,
        attention_dropout=0.0,
        drop_path=0.1 * DEPTH / 24,
        dtype="bfloat16",
        remat="branches",
        unroll=1,
        attention="auto",
    )

    warmup = round(WARMUP * config.steps)
    config.optimizer = ConfigDict(
        dict(
            base_learning_rate=1e-4,  # for 256 examples: 3e-4 at batch 768
            final_learning_rate=0.1 * 3e-4,
            warmup_steps=warmup,
            warmup_from=0.005,
            decay="linear",
            decay_fraction=(1 - FLAT) * (1 - warmup / (config.steps - 1)),
            beta1=0.9,
            beta2=0.95,
            weight_decay=0.05,
            final_weight_decay=0.05,
            no_decay=("positions", "start", "levels", "log_scale"),
            clip_norm=2.0,
        )
    )
    config.ema = 0.0  # none
    config.memory = ConfigDict(
        dict(accumulate=1, moments="float32", ema="float32", offload_ema=False)
    )

    config.sample = ConfigDict(
        dict(
            top_k=900,
            top_p=0.96,
            smooth=False,
            guidance=2.5,
            schedule="linear",
            low=0.0,
            high=1.0,
            every=10_000,
            per_class=8,
            classes=8,
        )
    )
    config.evaluation = spec("fidelity", samples=50_000, network="", reference="", batch_size=64)
    config.checkpoint = ConfigDict(dict(every=2_500, keep=2, keep_every=62_500))
    config.log_every = 100
    config.mesh = ConfigDict(dict(slices=1, data=-1, fsdp=1, tensor=1))
    return config
