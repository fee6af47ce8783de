"""xAR-L on ImageNet 256 x 256: 608,397,968 parameters.

Paper: arXiv 2502.20388. Published: FID 1.28, Inception Score 292.5 with 50 steps and guidance 2.3,
by the protocol of configs/xar_b.py, from the released weights:

    python -m jaxar.main --config=configs/xar_l.py --mode=evaluate --weights=xAR-L.pth \
        --tokenizer=kl16.ckpt --network=weights-inception-2015-12-05-6726825d.pth \
        --reference=adm_in256_stats.npz

Train:

    python -m jaxar.main --config=configs/xar_l.py --config.data.path=/data/imagenet_latents
"""

from jaxar.config import ConfigDict, load


def get_config() -> ConfigDict:
    config = load("xar_b")
    config.name = "xar_l"
    config.model.width = 1024
    config.model.depth = (16, 16)
    config.model.heads = 16
    config.sample.steps = 50
    config.sample.guidance = 2.3
    return config
