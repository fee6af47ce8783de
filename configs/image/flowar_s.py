"""FlowAR-S on ImageNet 256 x 256: 171,718,072 parameters.

Paper: "FlowAR: Scale-wise Autoregressive Image Generation Meets Flow Matching", arXiv 2412.15205.
Published: FID 3.70, Inception Score 235.1, in the table of the XYZFlow paper. The release's readme
samples this model with guidance 4.3, its eval.sh with 4.2. The released code makes a model of
exactly this size; the paper rounds it to 170M. From the released weights:

    python -m jaxar.main --config=flowar_s --mode=evaluate --weights=FlowAR-S.pth \
        --tokenizer=kl16.ckpt --network=weights-inception-2015-12-05-6726825d.pth \
        --reference=adm_in256_stats.npz

Train on latents of MAR's KL-16 autoencoder, cached by --mode=encode or by the official code:

    python -m jaxar.main --config=flowar_s --config.data.path=/data/imagenet_latents

The release encodes random crops of 256 from images resized to 288, anew in every epoch, where the
cache holds centre crops and their mirror images. It trains in float32: its readme warns of NaN
under mixed precision.
"""

from jaxar.config import ConfigDict, beside, spec

common = beside(__file__, "common")


EPOCHS, WARMUP_EPOCHS = 400, 100


def get_config() -> ConfigDict:
    config = common.imagenet_latents("flowar_s", batch_size=2048, epochs=EPOCHS)
    config.seed = 1
    config.plan = spec("scale", sizes=(1, 2, 4, 8, 16))
    config.context = spec("shifted")
    config.label_dropout = 0.1
    config.flow = ConfigDict(dict(path=spec("linear"), time=spec("uniform")))
    config.model = spec(
        "flowar", width=768, depth=(6, 6), heads=12, dropout=0.1, attention_dropout=0.1
    )
    config.head = spec("flow_network", width=1024, depth=2, heads=16, cross=False)
    config.optimizer = common.adamw(
        5e-5,  # for 256 examples: 4e-4 at batch 2048
        final=1e-5,
        warmup_steps=WARMUP_EPOCHS * common.IMAGES // config.batch_size,
        decay_fraction=1 - WARMUP_EPOCHS / EPOCHS,  # all that follows the warm-up
        beta2=0.95,
        weight_decay=0.02,
        clip_norm=3.0,
    )
    config.ema = 0.9999
    config.sample = ConfigDict(
        dict(solver="euler", steps=25, times="two_part", guidance=4.3, schedule="linear", high=0.9)
    )
    return config
