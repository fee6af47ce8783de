"""MAR-B on ImageNet 256 x 256: 207,924,768 parameters.

Paper: "Autoregressive Image Generation without Vector Quantization", arXiv 2406.11838. Published:
FID 2.31, Inception Score 281.7 with 256 iterations, 100 diffusion steps and guidance 2.9, of 50,000
samples, by torch-fidelity against ADM's statistics of the training set. The command for the same
figures from the released weights:

    python -m jaxar.main --config=configs/mar_b.py --mode=evaluate --weights=checkpoint-last.pth \
        --tokenizer=kl16.ckpt --network=weights-inception-2015-12-05-6726825d.pth \
        --reference=adm_in256_stats.npz

With --config.sample.iterations=64 it is several times faster. Without guidance the release samples
at --config.sample.temperature=0.95. Train on latents of the KL-16 autoencoder, cached by
--mode=encode or by the official code; 400 epochs are the release's default, 800 its final models':

    python -m jaxar.main --config=configs/mar_b.py --config.data.path=/data/imagenet_latents
"""

from jaxar.config import ConfigDict, load, spec

IMAGES = 1_281_167  # of the training set
EPOCHS, WARMUP_EPOCHS = 800, 100


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.name = "mar_b"
    config.system = "next_x"
    config.seed = 0
    config.batch_size = 2048
    config.steps = EPOCHS * IMAGES // config.batch_size

    config.data = spec("latent_folder", path="", flip=True)
    config.data_shape = (16, 16, 32)  # mean and log-variance of 16 channels
    config.num_classes = 1000
    config.workers = 8

    config.tokenizer = spec("moments", scale=0.2325)
    config.autoencoder = load("xar_b").autoencoder
    config.plan = spec("token")
    config.context = spec("masked", lowest=0.7, deviation=0.25)
    config.label_dropout = 0.1
    config.model = spec(
        "mar",
        width=768,
        depth=(12, 12),
        heads=12,
        mlp_ratio=4.0,
        buffer=64,
        dropout=0.1,
        attention_dropout=0.1,
        dtype="bfloat16",
        remat="branches",
        unroll=1,
        attention="auto",
    )
    config.head = spec(
        "diffusion",
        width=1024,
        depth=6,
        steps=1000,
        repeats=4,
        dtype="bfloat16",
        remat="branches",
    )

    config.optimizer = ConfigDict(
        dict(
            base_learning_rate=1e-4,  # for 256 examples: 8e-4 at batch 2048
            final_learning_rate=8e-4,
            warmup_steps=WARMUP_EPOCHS * IMAGES // config.batch_size,
            warmup_from=0.0,
            decay="cosine",
            decay_fraction=0.0,  # constant after the warm-up
            beta1=0.9,
            beta2=0.95,
            weight_decay=0.02,
            final_weight_decay=0.02,
            no_decay=("head",),
            clip_norm=3.0,
        )
    )
    config.ema = 0.9999
    config.memory = ConfigDict(
        dict(accumulate=1, moments="float32", ema="float32", offload_ema=False)
    )

    config.sample = ConfigDict(
        dict(
            iterations=256,
            steps=100,
            temperature=1.0,
            clip=0.0,
            guidance=2.9,
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
