"""VAR-d30 on ImageNet 256 x 256: 2,010,020,356 parameters.

Paper: arXiv 2404.02905. Published: FID 1.97, and 1.80 with rejection sampling, by the protocol of
var_d16, from the released weights:

    python -m jaxar.main --config=var_d30 --mode=evaluate --weights=var_d30.pth \
        --tokenizer=vae_ch160v4096z32.pth --reference=VIRTUAL_imagenet256_labeled.npz \
        --network=weights-inception-2015-12-05-6726825d.pth

Train on features that --mode=encode has cached, as there:

    python -m jaxar.main --config=var_d30 --tokenizer=vae_ch160v4096z32.pth \
        --config.data.path=/data/imagenet_features
"""

from jaxar.config import ConfigDict, beside, load

common = beside(__file__, "common")


def get_config() -> ConfigDict:
    config = load("var_d16")
    config.name = "var_d30"
    config.batch_size = 1024
    common.var_size(config, depth=30, epochs=350)
    config.model.gate_init = 1e-5
    config.optimizer.base_learning_rate = 8e-5  # for 256 examples: 3.2e-4 at batch 1024
    config.optimizer.final_learning_rate = 0.01 * 3.2e-4
    config.optimizer.final_weight_decay = 0.08
    return config
