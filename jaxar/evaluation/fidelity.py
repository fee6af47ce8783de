"""FID and its kin: features of samples against those of real images, with the whole protocol.

A figure is worth what is known of how it was made, so none stands alone. Nothing that is returned
depends on when, how fast or how often interrupted it was made.
"""

import dataclasses
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxar.config import ConfigError
from jaxar.console import say
from jaxar.data import loader
from jaxar.evaluation import images as collections
from jaxar.evaluation import scores
from jaxar.evaluation.features import Features, Network, compute
from jaxar.evaluation.frechet import Gaussian, Moments, Normal, frechet_distance
from jaxar.evaluation.images import Images
from jaxar.evaluation.reference import Reference, read_reference
from jaxar.runs.setup import open_source

FEW = 2048
"""Fewer samples than Inception has features make a covariance of low rank, and FID biased."""

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
"""Figures that statistics of real images are not enough for."""

SUBSET = 1000
"""Images of a subset whose kernel distance is measured."""

SHUFFLE = 2020
"""Seed of the order in which torch-fidelity splits samples for the Inception Score."""


@dataclasses.dataclass(frozen=True)
class Against:
    """What samples are compared with.

    Attributes:
      facts: For the result file.
      statistics: Moments that were computed elsewhere, or None.
      images: Opens real images at the (height, width) of the samples; None where there are none.
    """

    facts: dict[str, Any]
    statistics: Reference | None
    images: Callable[[tuple[int, int]], Images] | None


def open_reference(source: str, network: Network, config: Any) -> Against:
    """Returns the reference that a path or "data" names.

    Raises:
      ConfigError: it is missing, or holds nothing this network can be compared by.
    """
    if not source:
        raise ConfigError(
            "Samples have to be compared with something: set --reference to statistics (.npz of "
            "ADM, torch-fidelity or pytorch-fid), to images (.npz or a folder), or to 'data'."
        )
    if source == "data":
        return _own_data(config)
    path, facts = Path(source), {"name": Path(source).name}
    if path.is_dir():
        return Against(facts, None, lambda size: collections.open_images(path, size=size))
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
    return Against({**facts, "sha256": found.sha256}, found if usable else None, opened)


def _own_data(config: Any) -> Against:
    """Returns the images of the config's data as the reference."""
    if config is None or config.autoencoder.name != "none":
        raise ConfigError("--reference=data needs a config whose data are images, not latents.")
    straight = {"flip": False} if "flip" in config.data else {}
    source = open_source(config, **straight)
    name = f"data of {config.name}"
    facts = {"name": name, "fingerprint": loader.fingerprint(source)}
    return Against(facts, None, lambda size: collections.from_source(source, name))


def judge(
    samples: Path,
    protocol: dict[str, Any] | None,
    network: Network,
    reference: Against,
    folder: Path,
) -> dict[str, Any]:
    """Returns the figures of the images in `samples`, with their whole protocol."""
    made = compute(collections.open_images(samples), network, folder / "features", "samples")
    real, facts = None, dict(reference.facts)
    if reference.images is not None:
        images = reference.images((made.facts["size"][0], made.facts["size"][1]))
        real = compute(images, network, folder / "features", "reference")
        facts["images"] = real.facts
    if network.name == "inception":
        figures, left_out = _inception_figures(made, real, reference.statistics)
    else:
        assert real is not None  # `open_reference` has seen to it
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
    """Returns the figures by name, and why those that are missing are."""
    figures, left_out = {}, {}
    pool = _real_moments(real, statistics, "pool")
    assert pool is not None  # `open_reference` has seen to it
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
        except ValueError as error:  # too few images for it
            left_out.update(dict.fromkeys(names, str(error)))
    return figures, left_out


def _real_moments(real: Features | None, statistics: Reference | None, name: str) -> Normal | None:
    """Returns the moments of real features: those that were given, else those of the images."""
    if statistics is None:
        return _moments(real, name) if real else None
    if name == "pool":
        mean, covariance = statistics.mean, statistics.covariance
    else:
        mean, covariance = statistics.spatial_mean, statistics.spatial_covariance
    return None if mean is None or covariance is None else Gaussian(mean, covariance)


def _moments(features: Features, name: str) -> Moments:
    moments = Moments()
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
    """Prints the figures, never without what they are of."""
    said = ", ".join(f"{NAMES[key]} {value:.4g}" for key, value in figures.items() if key in NAMES)
    say("result", f"{said} ({made.facts['count']:,} samples against {reference['name']})")
    for key, why in left_out.items():
        if key in NAMES:
            say("left out", f"{NAMES[key]}: {why}")
    for warning in warnings:
        say("warning", warning)
