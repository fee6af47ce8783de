"""VAR-d20 on ImageNet 256 x 256: 600,917,136 parameters.

Paper: arXiv 2404.02905. Published: FID 2.95, by the protocol of configs/var_d16.py, from the
released weights:

    python -m jaxar.main --config=configs/var_d20.py --mode=evaluate --weights=var_d20.pth \
        --tokenizer=vae_ch160v4096z32.pth --reference=VIRTUAL_imagenet256_labeled.npz \
        --network=weights-inception-2015-12-05-6726825d.pth

Train on features that --mode=encode has cached, as there:

    python -m jaxar.main --config=configs/var_d20.py --tokenizer=vae_ch160v4096z32.pth \
        --config.data.path=/data/imagenet_features
"""

from jaxar.config import ConfigDict, load

IMAGES = 1_281_167  # of the training set
EPOCHS = 250
DEPTH = 20
WARMUP, FLAT = 1 / 50, 0.05  # see var_d16


def get_config() -> ConfigDict:
    config = load("var_d16")
    config.name = "var_d20"
    config.steps = EPOCHS * -(-IMAGES // config.batch_size)
    config.model.width = 64 * DEPTH
    config.model.depth = DEPTH
    config.model.heads = DEPTH
    config.model.drop_path = 0.1 * DEPTH / 24

    warmup = round(WARMUP * config.steps)
    config.optimizer.warmup_steps = warmup
    config.optimizer.decay_fraction = (1 - FLAT) * (1 - warmup / (config.steps - 1))
    return config
