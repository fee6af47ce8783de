"""xAR-B on ImageNet 256 x 256: 172,638,224 parameters.

Paper: "Beyond Next-Token: Next-X Prediction for Autoregressive Visual Generation", arXiv
2502.20388. Published: FID 1.72, Inception Score 280.4 with 40 steps and guidance 2.7, of 50,000
samples, by torch-fidelity against ADM's statistics of the training set. The command for the same
figures from the released weights:

    python -m jaxar.main --config=configs/xar_b.py --mode=evaluate --weights=xAR-B.pth \
        --tokenizer=kl16.ckpt --network=weights-inception-2015-12-05-6726825d.pth \
        --reference=adm_in256_stats.npz

Train on latents of MAR's KL-16 autoencoder, cached by --mode=encode or by the official code:

    python -m jaxar.main --config=configs/xar_b.py --config.data.path=/data/imagenet_latents
"""

from jaxar.config import ConfigDict, spec

IMAGES = 1_281_167  # of the training set
EPOCHS, WARMUP_EPOCHS = 800, 100


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.name = "xar_b"
    config.system = "next_x"
    config.seed = 0
    config.batch_size = 2048
    config.steps = EPOCHS * IMAGES // config.batch_size

    config.data = spec("latent_folder", path="", flip=True)
    config.data_shape = (16, 16, 32)  # mean and log-variance of 16 channels
    config.num_classes = 1000
    config.workers = 8

    config.tokenizer = spec("moments", scale=0.2325)
    config.autoencoder = spec(
        "kl",
        weights="",
        image_channels=3,
        width=128,
        multipliers=(1, 1, 2, 2, 4),
        blocks=2,
        encoder_attention=(4,),
        channels=16,
    )
    config.plan = spec("cell", height=8, width=8)
    config.context = spec("noisy")
    config.head = spec("velocity")
    config.label_dropout = 0.1
    config.flow = ConfigDict(
        dict(path=spec("linear"), time=spec("logit_normal", mu=0.0, sigma=1.0))
    )
    config.model = spec(
        "xar",
        width=768,
        depth=(8, 8),
        heads=12,
        mlp_ratio=4.0,
        dropout=0.1,
        attention_dropout=0.1,
        time_scale=1000.0,
        truncate_time=True,
        dtype="bfloat16",
        remat="projections",
        unroll=1,
        attention="auto",
    )

    config.optimizer = ConfigDict(
        dict(
            base_learning_rate=5e-5,  # for 256 examples: 4e-4 at batch 2048
            final_learning_rate=1e-5,
            warmup_steps=WARMUP_EPOCHS * IMAGES // config.batch_size,
            warmup_from=0.0,
            decay="cosine",
            decay_fraction=0.25,
            beta1=0.9,
            beta2=0.96,
            weight_decay=0.02,
            final_weight_decay=0.02,
            no_decay=(),
            clip_norm=1.0,
        )
    )
    config.ema = 0.9999
    config.memory = ConfigDict(
        dict(accumulate=1, moments="float32", ema="float32", offload_ema=False)
    )

    config.sample = ConfigDict(
        dict(
            solver="euler_maruyama",
            steps=40,
            shift=1.0,
            times="published",
            guidance=2.7,
            schedule="linear",
            low=0.0,
            high=1.0,
            dtype="float32",
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
