"""FlowAR-S on ImageNet 256 x 256: 171,718,072 parameters.

Paper: "FlowAR: Scale-wise Autoregressive Image Generation Meets Flow Matching", arXiv 2412.15205.
Published: FID 3.70, Inception Score 235.1, in the table of the XYZFlow paper. The release's readme
samples this model with guidance 4.3, its eval.sh with 4.2. The released code makes a model of
exactly this size; the paper rounds it to 170M. From the released weights:

    python -m jaxar.main --config=configs/flowar_s.py --mode=evaluate --weights=FlowAR-S.pth \
        --tokenizer=kl16.ckpt --network=weights-inception-2015-12-05-6726825d.pth \
        --reference=adm_in256_stats.npz

Train on latents of MAR's KL-16 autoencoder, cached by --mode=encode or by the official code:

    python -m jaxar.main --config=configs/flowar_s.py --config.data.path=/data/imagenet_latents

The release encodes random crops of 256 from images resized to 288, anew in every epoch, where the
cache holds centre crops and their mirror images. It trains in float32: its readme warns of NaN
under mixed precision.
"""

from jaxar.config import ConfigDict, load, spec

IMAGES = 1_281_167  # of the training set
EPOCHS, WARMUP_EPOCHS = 400, 100


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.name = "flowar_s"
    config.system = "next_x"
    config.seed = 1
    config.batch_size = 2048
    config.steps = EPOCHS * IMAGES // config.batch_size

    config.data = spec("latent_folder", path="", flip=True)
    config.data_shape = (16, 16, 32)  # mean and log-variance of 16 channels
    config.num_classes = 1000
    config.workers = 8

    config.tokenizer = spec("moments", scale=0.2325)
    config.autoencoder = load("xar_b").autoencoder
    config.plan = spec("scale", sizes=(1, 2, 4, 8, 16))
    config.context = spec("shifted")
    config.label_dropout = 0.1
    config.flow = ConfigDict(dict(path=spec("linear"), time=spec("uniform")))
    config.model = spec(
        "flowar",
        width=768,
        depth=(6, 6),
        heads=12,
        mlp_ratio=4.0,
        dropout=0.1,
        attention_dropout=0.1,
        dtype="float32",
        remat="none",
        unroll=1,
        attention="auto",
    )
    config.head = spec(
        "flow_network",
        width=1024,
        depth=2,
        heads=16,
        cross=False,
        mlp_ratio=4.0,
        dtype="float32",
        remat="none",
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
            decay_fraction=1 - WARMUP_EPOCHS / EPOCHS,  # all that follows the warm-up
            beta1=0.9,
            beta2=0.95,
            weight_decay=0.02,
            final_weight_decay=0.02,
            no_decay=(),
            clip_norm=3.0,
        )
    )
    config.ema = 0.9999
    config.memory = ConfigDict(
        dict(accumulate=1, moments="float32", ema="float32", offload_ema=False)
    )

    config.sample = ConfigDict(
        dict(
            solver="euler",
            steps=25,
            shift=1.0,
            times="two_part",
            guidance=4.3,
            schedule="linear",
            low=0.0,
            high=0.9,
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
