"""MAR-B on ImageNet 256 x 256: 207,924,768 parameters.

Paper: "Autoregressive Image Generation without Vector Quantization", arXiv 2406.11838. Published:
FID 2.31, Inception Score 281.7 with 256 iterations, 100 diffusion steps and guidance 2.9, of 50,000
samples, by torch-fidelity against ADM's statistics of the training set. The command for the same
figures from the released weights:

    python -m jaxar.main --config=mar_b --mode=evaluate --weights=checkpoint-last.pth \
        --tokenizer=kl16.ckpt --network=weights-inception-2015-12-05-6726825d.pth \
        --reference=adm_in256_stats.npz

With --config.sample.iterations=64 it is several times faster. Without guidance the release samples
at --config.sample.temperature=0.95. Train on latents of the KL-16 autoencoder, cached by
--mode=encode or by the official code; 400 epochs are the release's default, 800 its final models':

    python -m jaxar.main --config=mar_b --config.data.path=/data/imagenet_latents
"""

from jaxar.config import ConfigDict, beside, spec

common = beside(__file__, "common")


EPOCHS, WARMUP_EPOCHS = 800, 100


def get_config() -> ConfigDict:
    config = common.imagenet_latents("mar_b", batch_size=2048, epochs=EPOCHS)
    config.plan = spec("token")
    config.context = spec("masked", lowest=0.7, deviation=0.25)
    config.label_dropout = 0.1
    config.model = spec(
        "mar",
        width=768,
        depth=(12, 12),
        heads=12,
        buffer=64,
        dropout=0.1,
        attention_dropout=0.1,
        dtype="bfloat16",
        remat="branches",
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
    config.optimizer = common.adamw(
        1e-4,  # for 256 examples: 8e-4 at batch 2048
        final=8e-4,
        warmup_steps=WARMUP_EPOCHS * common.IMAGES // config.batch_size,
        decay_fraction=0.0,  # constant after the warm-up
        beta2=0.95,
        weight_decay=0.02,
        clip_norm=3.0,
        no_decay=("head",),
    )
    config.ema = 0.9999
    config.sample = ConfigDict(
        dict(iterations=256, steps=100, temperature=1.0, guidance=2.9, schedule="linear")
    )
    return config
