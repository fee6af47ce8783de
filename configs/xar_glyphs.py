"""A small xAR on the latents of a small autoencoder: the whole way of the large models, in minutes.

python -m jaxar.main --config=kl_glyphs
python -m jaxar.main --config=configs/xar_glyphs.py --mode=encode \
        --source='glyphs(size=32, num_classes=36, count=4000)' --output=runs/glyph_latents
python -m jaxar.main --config=configs/xar_glyphs.py
"""

from jaxar.config import ConfigDict, load, spec


def get_config() -> ConfigDict:
    config = load("xar_digits").unlock()
    config.name = "xar_glyphs"
    config.steps = 1500

    config.data = spec("latent_records", path="runs/glyph_latents")
    config.data_shape = (8, 8, 8)  # mean and log-variance of 4 channels
    config.num_classes = 36
    config.tokenizer = spec("moments", scale=0.47)  # as --mode=encode suggests
    network = {k: v for k, v in load("kl_glyphs").model.items() if k != "name"}
    config.autoencoder = spec("kl", weights="runs/kl_glyphs", **network)
    config.plan = spec("cell", height=4, width=4)
    config.sample.classes = 12
    config.evaluation = spec("none")
    return config
