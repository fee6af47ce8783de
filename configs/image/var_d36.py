"""VAR-d36 on ImageNet 512 x 512: 2,353,893,904 parameters.

Paper: arXiv 2404.02905. Published: FID 2.63, by the protocol of var_d16, from the
released weights:

    python -m jaxar.main --config=var_d36 --mode=evaluate --weights=var_d36.pth \
        --tokenizer=vae_ch160v4096z32.pth --reference=VIRTUAL_imagenet512.npz \
        --network=weights-inception-2015-12-05-6726825d.pth

Train on features that --mode=encode has cached from images of 512 x 512:

    python -m jaxar.main --config=var_d36 --tokenizer=vae_ch160v4096z32.pth \
        --config.data.path=/data/imagenet_features_512
"""

from jaxar.config import ConfigDict, beside, load

common = beside(__file__, "common")


LEVELS = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


def get_config() -> ConfigDict:
    config = load("var_d16")
    config.name = "var_d36"
    config.data_shape = (32, 32, 32)
    config.autoencoder.levels = LEVELS
    config.plan.sizes = LEVELS
    common.var_size(config, depth=36, epochs=350)
    config.model.gate_init = 5e-6
    config.model.shared_modulation = True
    config.optimizer.base_learning_rate = 8e-5  # for 256 examples: 2.4e-4 at batch 768
    config.optimizer.final_learning_rate = 0.01 * 2.4e-4
    config.optimizer.final_weight_decay = 0.08
    config.optimizer.no_decay = (*config.optimizer.no_decay, "modulation")
    return config
