"""MAR-L on ImageNet 256 x 256: 478,326,304 parameters.

Paper: arXiv 2406.11838. Published: FID 1.78, Inception Score 296.0 with 256 iterations, 100
diffusion steps and guidance 3.0, by the protocol of mar_b, from the released weights:

    python -m jaxar.main --config=mar_l --mode=evaluate --weights=checkpoint-last.pth \
        --tokenizer=kl16.ckpt --network=weights-inception-2015-12-05-6726825d.pth \
        --reference=adm_in256_stats.npz

Train:

    python -m jaxar.main --config=mar_l --config.data.path=/data/imagenet_latents
"""

from jaxar.config import ConfigDict, load


def get_config() -> ConfigDict:
    config = load("mar_b")
    config.name = "mar_l"
    config.model.width = 1024
    config.model.depth = (16, 16)
    config.model.heads = 16
    config.head.width = 1280
    config.head.depth = 8
    config.sample.guidance = 3.0
    return config
