"""FID and related figures: features of samples against those of real images, with the protocol.

A figure means little without the protocol that it was measured by, so none is returned alone.
Results do not depend on when, how fast or with how many interruptions they were computed.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxar.checks import require, whole
from jaxar.config import ConfigError
from jaxar.console import say
from jaxar.data import loader
from jaxar.evaluation import images as collections
from jaxar.evaluation import scores
from jaxar.evaluation.features import FeatureNetwork, Features, compute, open_network
from jaxar.evaluation.frechet import Gaussian, Normal, RunningMoments, frechet_distance
from jaxar.evaluation.images import Images
from jaxar.evaluation.reference import Reference, read_reference
from jaxar.evaluation.sample_set import IMAGES, sample_set, sampling_protocol
from jaxar.files import replace_text
from jaxar.parallel import distributed, sharding
from jaxar.runs.model import Model
from jaxar.runs.result import RESULT, result_of
from jaxar.runs.setup import open_source

FEW = 2048
"""Below this number of samples, that of Inception's features, the covariance is singular."""

RULES = {
    "resize": "bilinear as in TensorFlow 1 (corners at pixel 0, no antialiasing), to 299 x 299",
    "features": "pool_3 of the 2015 Inception graph, float32; moments in float64, n - 1",
    "fid": "|m1 - m2|^2 + tr(C1 + C2) - 2 tr (C1 C2)^1/2, by eigenvectors of C1 and C2, float64",
    "sfid": "the same for the first 7 channels of mixed_6/conv (ADM)",
    "inception_score": "10 splits after RandomState(2020).permutation, no bias (torch-fidelity)",
    "precision_recall": "3 nearest neighbours, all samples against all reference images",
    "kid": "100 subsets of 1,000, RandomState(2020), cubic kernel, unbiased (torch-fidelity)",
}

NAMES = {
    "fid": "FID",
    "sfid": "sFID",
    "inception_score": "Inception Score",
    "precision": "precision",
    "recall": "recall",
    "kid": "KID",
    "frechet_distance_digits": "Frechet distance of digit features (not FID)",
}

REAL_IMAGES = ("precision", "recall", "kid", "kid_std")
"""Figures that need real images, not only their statistics."""

SUBSET = 1000
"""Images in each subset of the kernel distance."""

SHUFFLE = 2020
"""Seed of the order in which torch-fidelity splits samples for the Inception Score."""


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """Draws samples and compares their features with those of real images: FID and related figures.

    Attributes:
      samples: Number of samples, the same number of each class up to one.
      network: File with the weights of the 2015 Inception network; or "digits", a small classifier
        of digits, whose Frechet distance has its own name and compares with nothing published.
      reference: Statistics (.npz of ADM, torch-fidelity or pytorch-fid), images (.npz or a folder),
        or "data" for `config.data`.
      batch_size: Samples drawn at a time.
      output: Folder for samples, features and their result; by default one in the folder of the
        run, named by a hash of everything that the samples depend on.
    """

    samples: int = 50_000
    network: str = ""
    reference: str = ""
    batch_size: int = 64
    output: str = ""

    def __post_init__(self):
        require(vars(self), samples=whole(2), batch_size=whole(1))

    @property
    def complete(self) -> bool:
        """Whether a feature network is named, without which training ends without figures."""
        return bool(self.network)

    def check(self, model: Model) -> None:
        """Checks that the model samples images, and that network and reference can be opened.

        Raises:
          ConfigError: one of these fails.
        """
        self._open(model)

    def run(self, model: Model, folder: Path) -> dict[str, Any]:
        """Returns the figures of new samples; a call that was interrupted goes on with its samples.

        Args:
          model: The model.
          folder: Folder of the run.

        Raises:
          ConfigError: see `check`, or `output` holds samples of another protocol.
        """
        network, reference = self._open(model)  # what is missing is found before samples are drawn
        protocol = sampling_protocol(model, count=self.samples, seed=model.config.seed + 1)
        digest = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()
        drawn = Path(self.output) if self.output else folder / f"evaluation-{digest[:8]}"
        sample_set(model, drawn, protocol, batch_size=self.batch_size)
        figures = judge(drawn / IMAGES, protocol, network, reference, drawn)
        if distributed.first():
            result = result_of(model, folder, figures)
            replace_text(drawn / RESULT, json.dumps(result, indent=2) + "\n")
        return figures

    def _open(self, model: Model) -> "tuple[FeatureNetwork, OpenedReference]":
        """Returns network and reference, for a model that samples images."""
        model.require_images()
        mesh = sharding.own_mesh() if distributed.many() else model.mesh
        network = open_network(self.network, mesh)
        return network, open_reference(self.reference, network, model.config)


@dataclasses.dataclass(frozen=True)
class OpenedReference:
    """A reference that samples are compared with: statistics, images, or both.

    Attributes:
      facts: Facts about it, for the result file.
      statistics: Moments that were computed elsewhere, or None.
      images: Opens real images at the (height, width) of the samples; None where there are none.
    """

    facts: dict[str, Any]
    statistics: Reference | None
    images: Callable[[tuple[int, int]], Images] | None


def open_reference(source: str, network: FeatureNetwork, config: Any) -> OpenedReference:
    """Returns the reference that a path or "data" names.

    Args:
      source: See `Fidelity.reference`.
      network: Feature network of the samples.
      config: The whole config, for "data"; None where there is none.

    Raises:
      ConfigError: the reference is missing, or has nothing that features of this network can be
        compared with.
    """
    if not source:
        raise ConfigError(
            "There is no reference to compare samples with: set --reference to statistics (.npz of "
            "ADM, torch-fidelity or pytorch-fid), to images (.npz or a folder), or to 'data'."
        )
    if source == "data":
        return _own_data(config)
    path, facts = Path(source), {"name": Path(source).name}
    if path.is_dir():
        return OpenedReference(facts, None, lambda size: collections.open_images(path, size=size))
    try:
        found = read_reference(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--reference: {error}") from error
    usable = found.mean is not None and network.name == "inception"
    if not usable and not found.has_images:
        raise ConfigError(
            f"{path} holds statistics of Inception features and no images: they cannot be compared "
            f"with features of {network.name!r}."
        )
    opened = (lambda size: collections.open_images(path)) if found.has_images else None
    return OpenedReference({**facts, "sha256": found.sha256}, found if usable else None, opened)


def _own_data(config: Any) -> OpenedReference:
    """Returns the images of `config.data` as the reference."""
    if config is None or config.autoencoder.name != "none":
        raise ConfigError("--reference=data needs a config whose data are images, not latents.")
    straight = {"flip": False} if "flip" in config.data else {}
    source = open_source(config, **straight)
    name = f"data of {config.name}"
    facts = {"name": name, "fingerprint": loader.fingerprint(source)}
    return OpenedReference(facts, None, lambda size: collections.from_source(source, name))


def judge(
    samples: Path,
    protocol: dict[str, Any] | None,
    network: FeatureNetwork,
    reference: OpenedReference,
    folder: Path,
) -> dict[str, Any]:
    """Returns the figures of images with their whole protocol.

    Args:
      samples: Folder or .npz of the images.
      protocol: How they were drawn; None where that is not known.
      network: Feature network.
      reference: What to compare them with.
      folder: Folder in which features are kept.
    """
    made = compute(collections.open_images(samples), network, folder / "features", "samples")
    real, facts = None, dict(reference.facts)
    if reference.images is not None:
        images = reference.images((made.facts["size"][0], made.facts["size"][1]))
        real = compute(images, network, folder / "features", "reference")
        facts["images"] = real.facts
    if network.name == "inception":
        figures, left_out = _inception_figures(made, real, reference.statistics)
    else:
        assert real is not None  # `open_reference` has checked that
        distance = frechet_distance(_moments(made, "pool"), _moments(real, "pool"))
        figures, left_out = {"frechet_distance_digits": distance}, {}
    warnings = []
    if made.facts["count"] < FEW:
        warnings.append(
            f"{made.facts['count']:,} samples are few: the Frechet distance is biased upwards, and "
            f"below {FEW:,} no published figure compares."
        )
    _tell(figures, left_out, warnings, made, facts)
    return {
        "figures": figures,
        "left_out": left_out,
        "warnings": warnings,
        "samples": made.facts,
        "sampling": protocol or "unknown: the images were given",
        "reference": facts,
        "network": network.facts,
        "rules": RULES if network.name == "inception" else {"frechet_distance": RULES["fid"]},
        "versions": {name: importlib.metadata.version(name) for name in ("jaxar", "jax", "numpy")},
    }


def _inception_figures(
    made: Features, real: Features | None, statistics: Reference | None
) -> tuple[dict[str, float], dict[str, str]]:
    """Returns the figures by name, and for each figure left out the reason."""
    figures, left_out = {}, {}
    pool = _real_moments(real, statistics, "pool")
    assert pool is not None  # `open_reference` has checked that
    figures["fid"] = frechet_distance(_moments(made, "pool"), pool)
    spatial = _real_moments(real, statistics, "spatial")
    if spatial is None:
        left_out["sfid"] = "the reference has no spatial statistics (mu_s, sigma_s)"
    else:
        figures["sfid"] = frechet_distance(_moments(made, "spatial"), spatial)
    logits = made.whole("logits")
    order = np.random.RandomState(SHUFFLE).permutation(len(logits))
    pairs = {
        ("inception_score", "inception_score_std"): lambda: scores.inception_score(logits[order])
    }
    if real is None:
        left_out.update(dict.fromkeys(REAL_IMAGES, "the reference has no images"))
    else:
        ours, theirs = made.whole("pool"), real.whole("pool")
        pairs[REAL_IMAGES[:2]] = lambda: scores.precision_recall(ours, theirs)
        if min(len(ours), len(theirs)) >= SUBSET:
            pairs[REAL_IMAGES[2:]] = lambda: scores.kernel_distance(ours, theirs, 100, SUBSET)
        else:
            why = f"it needs {SUBSET:,} samples and {SUBSET:,} reference images"
            left_out.update(dict.fromkeys(REAL_IMAGES[2:], why))
    for names, compute_pair in pairs.items():
        try:
            figures.update(zip(names, compute_pair(), strict=True))
        except ValueError as error:  # too few images
            left_out.update(dict.fromkeys(names, str(error)))
    return figures, left_out


def _real_moments(real: Features | None, statistics: Reference | None, name: str) -> Normal | None:
    """Returns the moments of real features: the given statistics, or else those of the images."""
    if statistics is None:
        return _moments(real, name) if real else None
    if name == "pool":
        mean, covariance = statistics.mean, statistics.covariance
    else:
        mean, covariance = statistics.spatial_mean, statistics.spatial_covariance
    return None if mean is None or covariance is None else Gaussian(mean, covariance)


def _moments(features: Features, name: str) -> RunningMoments:
    """Returns the moments of the features of one name."""
    moments = RunningMoments()
    for chunk in features.stream(name):
        moments.add(chunk)
    return moments


def _tell(
    figures: dict[str, float],
    left_out: dict[str, str],
    warnings: list[str],
    made: Features,
    reference: dict[str, Any],
) -> None:
    """Prints the figures, with the number of samples and the reference."""
    said = ", ".join(f"{NAMES[key]} {value:.4g}" for key, value in figures.items() if key in NAMES)
    say("result", f"{said} ({made.facts['count']:,} samples against {reference['name']})")
    for key, why in left_out.items():
        if key in NAMES:
            say("left out", f"{NAMES[key]}: {why}")
    for warning in warnings:
        say("warning", warning)
