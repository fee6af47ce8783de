"""What every run has: with the fields of its system the first level of a config."""

import dataclasses

from jaxar.checkpoint import Schedule
from jaxar.checks import below_one, require, whole, word
from jaxar.core.random import LARGEST_SEED
from jaxar.errors import FieldError
from jaxar.parallel.sharding import MeshSizes
from jaxar.signatures import NONE, Part
from jaxar.training.memory import Memory
from jaxar.training.optim import Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures:
    """When training draws pictures, and of what; fields of `config.sample`.

    Attributes:
      every: Steps between two pictures; 0 for one at the end alone.
      per_class: Pictures of each class, in a row.
      classes: Classes, the first ones.
    """

    every: int = 10_000
    per_class: int = 8
    classes: int = 8

    def __post_init__(self):
        require(vars(self), every=whole(0), per_class=whole(1), classes=whole(1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run.

    Attributes:
      name: Of the config, as its file; runs are kept in runs/<name>.
      system: What is made of the other fields.
      seed: Of all randomness.
      batch_size: Examples in a step, of all devices together.
      steps: Length of the run.
      data: Where examples are read.
      workers: Processes that read them; 0 for the run's own.
      autoencoder: The network whose latents the data are, if they are.
      quantizer: Of an autoencoder that has one.
      optimizer: See `Optimizer`.
      ema: Rate of the moving average of the parameters; 0 for none.
      memory: What is kept between steps, and how.
      sample: When training draws pictures; and how samples are drawn, as the parts of the system
        declare.
      evaluation: What the run ends with.
      checkpoint: When checkpoints are written, and which stay.
      log_every: Steps between two lines of the log.
      mesh: Devices along each axis.
    """

    name: str
    system: str
    seed: int = 0
    batch_size: int
    steps: int
    data: Part
    workers: int = 0
    autoencoder: Part = dataclasses.field(default_factory=lambda: NONE)
    quantizer: Part | None = None
    optimizer: Optimizer
    ema: float = 0.9999
    memory: Memory
    sample: Pictures
    evaluation: Part = dataclasses.field(default_factory=lambda: NONE)
    checkpoint: Schedule
    log_every: int = 100
    mesh: MeshSizes

    def __post_init__(self):
        require(
            vars(self),
            name=word,
            system=word,
            seed=whole(0, LARGEST_SEED - 1),  # samples are judged with the next one
            batch_size=whole(1),
            steps=whole(1),
            workers=whole(0),
            ema=below_one,
            log_every=whole(1),
        )
        if self.optimizer.warmup_steps > self.steps:
            raise FieldError(
                f"optimizer.warmup_steps must be at most steps, {self.steps}, not "
                f"{self.optimizer.warmup_steps}."
            )
