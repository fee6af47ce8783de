"""The evaluations a config can name; `jaxar.evaluation.evaluate` carries them out."""

import dataclasses

from jaxar.checks import require, whole


@dataclasses.dataclass(frozen=True)
class NoEvaluation:
    """Training ends without figures."""


@dataclasses.dataclass(frozen=True)
class Recognition:
    """Draws samples of each class and judges them by `recognition`: for small labelled sets.

    Attributes:
      per_class: Samples of each class.
      reference: Where real images are read: "data", the config's own; or, where these are latents,
        a part of config.data in words, 'digits(size=16)'. It must have a split "held_out".
    """

    per_class: int
    reference: str = "data"

    def __post_init__(self):
        require(vars(self), per_class=whole(1))


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """Draws samples and compares their features with those of real images: FID and its kin.

    Attributes:
      samples: How many, the same number of each class as nearly as it goes.
      network: File with the weights of the 2015 Inception network; or "digits", a small classifier
        of digits, whose Frechet distance has its own name and compares with nothing published.
      reference: Statistics (.npz of ADM, torch-fidelity or pytorch-fid), images (.npz or a folder),
        or "data", the config's own.
      batch_size: Images drawn at a time.
    """

    samples: int = 50_000
    network: str = ""
    reference: str = ""
    batch_size: int = 64

    def __post_init__(self):
        require(vars(self), samples=whole(2), batch_size=whole(1))
