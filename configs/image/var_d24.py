"""VAR-d24 on ImageNet 256 x 256: 1,033,399,360 parameters.

Paper: arXiv 2404.02905. Published: FID 2.33, by the protocol of var_d16, from the
released weights:

    python -m jaxar.main --config=var_d24 --mode=evaluate --weights=var_d24.pth \
        --tokenizer=vae_ch160v4096z32.pth --reference=VIRTUAL_imagenet256_labeled.npz \
        --network=weights-inception-2015-12-05-6726825d.pth

Train on features that --mode=encode has cached, as there:

    python -m jaxar.main --config=var_d24 --tokenizer=vae_ch160v4096z32.pth \
        --config.data.path=/data/imagenet_features
"""

from jaxar.config import ConfigDict, beside, load

common = beside(__file__, "common")


def get_config() -> ConfigDict:
    config = load("var_d16")
    config.name = "var_d24"
    common.var_size(config, depth=24, epochs=350)
    config.model.gate_init = 1e-4
    config.optimizer.base_learning_rate = 8e-5  # for 256 examples: 2.4e-4 at batch 768
    config.optimizer.final_learning_rate = 0.01 * 2.4e-4
    return config
