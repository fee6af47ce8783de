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

from jaxar.config import ConfigDict, beside, spec

common = beside(__file__, "common")


EPOCHS, WARMUP_EPOCHS = 800, 100


def get_config() -> ConfigDict:
    config = common.imagenet_latents("xar_b", batch_size=2048, epochs=EPOCHS)
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
        dropout=0.1,
        attention_dropout=0.1,
        dtype="bfloat16",
        remat="projections",
    )
    config.optimizer = common.adamw(
        5e-5,  # for 256 examples: 4e-4 at batch 2048
        final=1e-5,
        warmup_steps=WARMUP_EPOCHS * common.IMAGES // config.batch_size,
        decay_fraction=0.25,
        beta2=0.96,
        weight_decay=0.02,
    )
    config.ema = 0.9999
    config.sample = ConfigDict(
        dict(solver="euler_maruyama", steps=40, guidance=2.7, schedule="linear")
    )
    return config
