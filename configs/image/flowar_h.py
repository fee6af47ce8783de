"""FlowAR-H on ImageNet 256 x 256: 1,913,316,880 parameters.

Paper: arXiv 2412.15205. Published: FID 1.65 with 50 steps and guidance 2.4 (2.8 in the release's
eval.sh), by the protocol of flowar_s, from the released weights; Inception Score 276.3
in the table of the XYZFlow paper:

    python -m jaxar.main --config=flowar_h --mode=evaluate --weights=FlowAR-H.pth \
        --tokenizer=kl16.ckpt --network=weights-inception-2015-12-05-6726825d.pth \
        --reference=adm_in256_stats.npz

The released code makes a model of exactly this size; its readme says 1.9B. Train:

    python -m jaxar.main --config=flowar_h --config.data.path=/data/imagenet_latents
"""

from jaxar.config import ConfigDict, load


def get_config() -> ConfigDict:
    config = load("flowar_l")
    config.name = "flowar_h"
    config.model.width = 1536
    config.model.depth = (15, 15)
    config.head.width = 1536
    config.head.heads = 24
    config.sample.steps = 50
    config.sample.high = 0.7
    return config
