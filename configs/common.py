"""What several configs share. A config begins with one of these and adds what its paper says.

Whatever neither says has the default of its part: `--print_config` shows every value.
"""

from jaxar.config import ConfigDict, spec

IMAGES = 1_281_167  # of ImageNet's training set


def imagenet_latents(name: str, *, batch_size: int, epochs: int) -> ConfigDict:
    """ImageNet at 256 x 256 as cached moments of MAR's KL-16 autoencoder."""
    config = ConfigDict()
    config.name = name
    config.system = "next_x"
    config.batch_size = batch_size
    config.steps = epochs * IMAGES // batch_size

    config.data = spec("latent_folder", path="", flip=True)
    config.data_shape = (16, 16, 32)  # mean and log-variance of 16 channels
    config.num_classes = 1000
    config.workers = 8
    config.tokenizer = spec("moments", scale=0.2325)
    config.autoencoder = spec("kl")  # its defaults are the release

    config.evaluation = spec("fidelity", samples=50_000)
    config.checkpoint = ConfigDict(dict(every=2_500, keep=2, keep_every=62_500))
    return config


def digits(name: str, *, steps: int, batch_size: int = 32) -> ConfigDict:
    """The 1,442 training digits of scikit-learn at 16 x 16, in patches of 4 x 4 pixels."""
    config = ConfigDict()
    config.name = name
    config.system = "next_x"
    config.batch_size = batch_size
    config.steps = steps

    config.data = spec("digits", split="train", size=16)
    config.data_shape = (16, 16, 1)
    config.num_classes = 10
    config.tokenizer = spec("patch", height=4, width=4)

    config.ema = 0.99
    config.evaluation = spec("recognition", per_class=100)
    config.log_every = 50
    config.mesh = ConfigDict(dict(data=1))
    return config


def glyphs(name: str, *, steps: int) -> ConfigDict:
    """The training of an autoencoder of drawn letters and digits, 32 x 32 in one channel."""
    config = ConfigDict()
    config.name = name
    config.batch_size = 16
    config.steps = steps

    config.data = spec("glyphs", size=32, channels=1, num_classes=36, count=4000, seed=0)
    config.data_shape = (32, 32, 1)
    config.num_classes = 36

    config.optimizer = adamw(
        4.8e-2,  # for 256 examples: 3e-3 at batch 16
        final=1e-5,
        warmup_steps=40,
        decay_fraction=0.7,
        beta2=0.99,
        weight_decay=0.0,
    )
    config.ema = 0.99
    config.sample = ConfigDict(dict(every=200, per_class=12, classes=4))
    config.checkpoint = ConfigDict(dict(every=200))
    config.log_every = 50
    config.mesh = ConfigDict(dict(data=1))
    return config


def adamw(
    rate: float,
    *,
    final: float,
    warmup_steps: int,
    decay_fraction: float,
    beta2: float,
    weight_decay: float,
    clip_norm: float = 1.0,
    no_decay: tuple[str, ...] = (),
) -> ConfigDict:
    """AdamW with a cosine at the end of the run and a constant weight decay.

    Args:
      rate: Peak for each 256 examples of a batch.
      final: Rate at the last step.
      warmup_steps: Of the rate, in a straight line from 0.
      decay_fraction: Share of the run, its end, in which the rate falls.
      beta2: Of the second moment.
      weight_decay: Of all parameters but biases, norms and `no_decay`.
      clip_norm: Largest norm of the whole gradient.
      no_decay: Words in the paths of parameters without decay.
    """
    return ConfigDict(
        dict(
            base_learning_rate=rate,
            final_learning_rate=final,
            warmup_steps=warmup_steps,
            decay_fraction=decay_fraction,
            beta2=beta2,
            weight_decay=weight_decay,
            final_weight_decay=weight_decay,
            clip_norm=clip_norm,
            no_decay=no_decay,
        )
    )


def var_size(config: ConfigDict, *, depth: int, epochs: int) -> None:
    """Sets what VAR's release makes of a depth: its width, and the schedule of a run's length."""
    config.steps = epochs * -(-IMAGES // config.batch_size)
    config.model.width = 64 * depth
    config.model.depth = config.model.heads = depth
    config.model.drop_path = 0.1 * depth / 24
    warmup = round(config.steps / 50)
    flat = 0.05  # of what then remains, at the peak
    config.optimizer.warmup_steps = warmup
    config.optimizer.decay_fraction = (1 - flat) * (1 - warmup / (config.steps - 1))
