"""xAR-H on ImageNet 256 x 256: 1,186,024,096 parameters.

Paper: arXiv 2502.20388. Published: FID 1.24, Inception Score 301.6 with 50 steps and guidance 2.2,
by the protocol of configs/xar_b.py, from the released weights:

    python -m jaxar.main --config=configs/xar_h.py --mode=evaluate --weights=xAR-H.pth \
        --tokenizer=kl16.ckpt --network=weights-inception-2015-12-05-6726825d.pth \
        --reference=adm_in256_stats.npz

Train:

    python -m jaxar.main --config=configs/xar_h.py --config.data.path=/data/imagenet_latents
"""

from jaxar.config import ConfigDict, load


def get_config() -> ConfigDict:
    config = load("xar_b")
    config.name = "xar_h"
    config.model.width = 1280
    config.model.depth = (20, 20)
    config.model.heads = 16
    config.sample.steps = 50
    config.sample.guidance = 2.2
    return config
