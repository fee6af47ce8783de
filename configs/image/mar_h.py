"""MAR-H on ImageNet 256 x 256: 942,403,104 parameters.

Paper: arXiv 2406.11838. Published: FID 1.55, Inception Score 303.7 with 256 iterations, 100
diffusion steps and guidance 3.2, by the protocol of mar_b, from the released weights:

    python -m jaxar.main --config=mar_h --mode=evaluate --weights=checkpoint-last.pth \
        --tokenizer=kl16.ckpt --network=weights-inception-2015-12-05-6726825d.pth \
        --reference=adm_in256_stats.npz

Train:

    python -m jaxar.main --config=mar_h --config.data.path=/data/imagenet_latents
"""

from jaxar.config import ConfigDict, load


def get_config() -> ConfigDict:
    config = load("mar_b")
    config.name = "mar_h"
    config.model.width = 1280
    config.model.depth = (20, 20)
    config.model.heads = 16
    config.head.width = 1536
    config.head.depth = 12
    config.sample.guidance = 3.2
    return config
