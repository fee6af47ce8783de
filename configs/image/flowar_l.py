"""FlowAR-L on ImageNet 256 x 256: 586,862,912 parameters.

Paper: arXiv 2412.15205. Published: FID 1.90 with 25 steps and guidance 2.4, by the protocol of
flowar_s, from the released weights:

    python -m jaxar.main --config=flowar_l --mode=evaluate --weights=FlowAR-L.pth \
        --tokenizer=kl16.ckpt --network=weights-inception-2015-12-05-6726825d.pth \
        --reference=adm_in256_stats.npz

The released code makes a model of exactly this size; its readme says 589M. The flow network attends
to the trunk's output. Train:

    python -m jaxar.main --config=flowar_l --config.data.path=/data/imagenet_latents
"""

from jaxar.config import ConfigDict, load


def get_config() -> ConfigDict:
    config = load("flowar_s")
    config.name = "flowar_l"
    config.model.width = 1024
    config.model.depth = (8, 8)
    config.model.heads = 16
    config.model.remat = config.head.remat = "branches"
    config.head.depth = 12
    config.head.cross = True
    config.sample.guidance = 2.4
    return config
