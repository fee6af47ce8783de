"""VAR-d16 on ImageNet 256 x 256: 310,283,520 parameters.

Paper: "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction", arXiv
2404.02905. Published: FID 3.55 of 50,000 samples by ADM's evaluator, drawn with guidance 2.5 (cfg
1.5 there: the weight less one), the 900 most likely codes and 96 % of the probability. The command
for the same figure from the released weights:

    python -m jaxar.main --config=var_d16 --mode=evaluate --weights=var_d16.pth \
        --tokenizer=vae_ch160v4096z32.pth --reference=VIRTUAL_imagenet256_labeled.npz \
        --network=weights-inception-2015-12-05-6726825d.pth

Train on features of the released tokenizer, cached by --mode=encode; the same tokenizer turns them
into codes. The release crops at random from images 1.125 times as large, the cache holds their
middle.

    python -m jaxar.main --config=var_d16 --mode=encode --source=/data/imagenet/train \
        --tokenizer=vae_ch160v4096z32.pth --output=/data/imagenet_features
    python -m jaxar.main --config=var_d16 --tokenizer=vae_ch160v4096z32.pth \
        --config.data.path=/data/imagenet_features
"""

from jaxar.config import ConfigDict, beside, spec

common = beside(__file__, "common")


LEVELS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


def get_config() -> ConfigDict:
    config = common.imagenet_latents("var_d16", batch_size=768, epochs=200)
    config.data = spec("latent_records", path="", flip=False)
    config.tokenizer = spec("features")  # the map that the quantizer turns into codes
    config.autoencoder = spec("vq", levels=LEVELS)  # its defaults are the release
    config.quantizer = spec("vector", vocabulary=4096, channels=32)
    config.plan = spec("scale", sizes=LEVELS)
    config.context = spec("shifted")
    config.head = spec("categorical", init_scale=0.02)
    config.label_dropout = 0.1
    config.model = spec("var", cosine=True, gate_init=1e-3, dtype="bfloat16", remat="branches")
    config.optimizer = ConfigDict(
        dict(
            base_learning_rate=1e-4,  # for 256 examples: 3e-4 at batch 768
            final_learning_rate=0.1 * 3e-4,
            warmup_from=0.005,
            decay="linear",
            beta2=0.95,
            weight_decay=0.05,
            final_weight_decay=0.05,
            no_decay=("positions", "start", "levels", "log_scale"),
            clip_norm=2.0,
        )
    )
    common.var_size(config, depth=16, epochs=200)
    config.ema = 0.0  # none
    config.sample = ConfigDict(dict(top_k=900, top_p=0.96, guidance=2.5, schedule="linear"))
    return config
