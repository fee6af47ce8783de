"""VAR-d20 on ImageNet 256 x 256: 600,917,136 parameters.

Paper: arXiv 2404.02905. Published: FID 2.95, by the protocol of var_d16, from the
released weights:

    python -m jaxar.main --config=var_d20 --mode=evaluate --weights=var_d20.pth \
        --tokenizer=vae_ch160v4096z32.pth --reference=VIRTUAL_imagenet256_labeled.npz \
        --network=weights-inception-2015-12-05-6726825d.pth

Train on features that --mode=encode has cached, as there:

    python -m jaxar.main --config=var_d20 --tokenizer=vae_ch160v4096z32.pth \
        --config.data.path=/data/imagenet_features
"""

from jaxar.config import ConfigDict, beside, load

common = beside(__file__, "common")


def get_config() -> ConfigDict:
    config = load("var_d16")
    config.name = "var_d20"
    common.var_size(config, depth=20, epochs=250)
    return config
