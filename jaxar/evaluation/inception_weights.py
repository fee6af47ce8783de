"""Weights of the 2015 Inception: the tables from PyTorch's port and TensorFlow's graph.

Both tables follow from the paths of the template, "Mixed_6b/branch7x7dbl_4/kernel": PyTorch's keys
spell them nearly so, TensorFlow numbers blocks, towers and convolutions in the order it met them.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxar.core.task import Frozen
from jaxar.evaluation import inception
from jaxar.tree import paths
from jaxar.typing import Array, Float, Params
from jaxar.weights.files import read_state
from jaxar.weights.graph_def import read_constants
from jaxar.weights.tables import Row, convert, convolution, linear, same

CLASSES = 1008

IGNORED = ("*.num_batches_tracked", "AuxLogits.*")
"""A counter of training, and a second classifier that torchvision's layout may hold."""

TORCH = {
    "kernel": ("conv.weight", convolution),
    "gamma": ("bn.weight", same),
    "beta": ("bn.bias", same),
    "mean": ("bn.running_mean", same),
    "variance": ("bn.running_var", same),
}
GRAPH = {
    "kernel": "conv2d_params",
    "gamma": "batchnorm/gamma",
    "beta": "batchnorm/beta",
    "mean": "batchnorm/moving_mean",
    "variance": "batchnorm/moving_variance",
}
CLASSIFIER = {"kernel": "softmax/weights", "bias": "softmax/biases"}

STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
BLOCKS = tuple(
    f"Mixed_{number}{letter}"
    for number, letters in ((5, "bcd"), (6, "abcde"), (7, "abc"))
    for letter in letters
)
TOWERS = {
    "branch5x5": "tower",
    "branch7x7": "tower",
    "branch3x3": "tower",
    "branch3x3dbl": "tower_1",
    "branch7x7dbl": "tower_1",
    "branch7x7x3": "tower_1",
    "branch": "tower_2",
}
PLACES = {
    **{"1": "conv", "2": "conv_1", "3": "conv_2", "4": "conv_3", "5": "conv_4"},
    **{"2a": "mixed/conv", "2b": "mixed/conv_1", "3a": "mixed/conv", "3b": "mixed/conv_1"},
    "pool": "conv",
}


def from_state_dict(state: Mapping[str, Any], shapes: Callable[[int], Any]) -> dict[str, Any]:
    """Returns the parameters in a state dict of torch-fidelity, pytorch-fid or torchvision.

    Args:
      state: Arrays by PyTorch's key.
      shapes: Parameter tree of shapes for a number of classes: `inception.shapes`.

    Raises:
      WeightsError: a ValueError that lists every unused, missing and misshapen key.
    """
    template = shapes(np.size(state["fc.bias"]) if "fc.bias" in state else CLASSES)
    return convert(state, [_torch_row(path) for path in paths(template)], template, IGNORED)


def from_graph_def(
    constants: Mapping[str, np.ndarray], shapes: Callable[[int], Any]
) -> dict[str, Any]:
    """Returns the parameters in the constants of TensorFlow's frozen graph.

    Args:
      constants: Arrays by the names of their nodes; those that are no weights, such as sizes and
        axes, are passed over.
      shapes: As above.

    Raises:
      WeightsError: a ValueError that lists every unused, missing and misshapen constant.
    """
    endings = (*GRAPH.values(), *CLASSIFIER.values())
    weights = {name: array for name, array in constants.items() if name.endswith(endings)}
    bias = CLASSIFIER["bias"]
    template = shapes(np.size(weights[bias]) if bias in weights else CLASSES)
    return convert(weights, [_graph_row(path) for path in paths(template)], template)


def _torch_row(path: str) -> Row:
    module, leaf = path.rsplit("/", 1)
    if module == "fc":
        return Row("fc.weight", path, linear) if leaf == "kernel" else Row("fc.bias", path)
    key, transform = TORCH[leaf]
    return Row(f"{module.replace('/', '.')}.{key}", path, transform)


def _graph_row(path: str) -> Row:
    module, leaf = path.rsplit("/", 1)
    if module == "fc":
        return Row(CLASSIFIER[leaf], path)
    return Row(f"{_scope(module)}/{GRAPH[leaf]}", path)  # kernels are (height, width, in, out)


def _scope(module: str) -> str:
    """Returns TensorFlow's name of a convolution: "mixed_4/tower_1/conv_3" of the example above."""
    block, _, name = module.partition("/")
    if not name:
        return _numbered("conv", STEM.index(block))
    scope = _numbered("mixed", BLOCKS.index(block))
    if name in ("branch1x1", "branch3x3"):  # alone in their branch
        return f"{scope}/conv"
    branch, place = name.rsplit("_", 1)
    tower = "tower" if block == "Mixed_6a" else TOWERS[branch]  # its only tower
    return f"{scope}/{tower}/{PLACES[place]}"


def _numbered(name: str, number: int) -> str:
    return f"{name}_{number}" if number else name


def read_inception(path: str | Path) -> Params:
    """Returns the parameters of the 2015 Inception network, as NumPy arrays.

    Args:
      path: File in torch-fidelity's, pytorch-fid's or TensorFlow's (.pb) layout.

    Raises:
      ValueError: it does not hold the network; one sentence says why.
    """
    if Path(path).suffix == ".pb":
        return from_graph_def(read_constants(path), inception.shapes)
    with read_state(path) as state:
        return from_state_dict(state, inception.shapes)


def from_release(state: Mapping[str, Any], template: Any) -> Params:
    """Returns the parameters in a PyTorch file, as the reader of a frozen network."""
    del template  # the network has one size
    return from_state_dict(state, inception.shapes)


@dataclasses.dataclass(frozen=True)
class InceptionMaps:
    """Inception's maps of images, for perceptual distances.

    Attributes:
      weights: File in torch-fidelity's or pytorch-fid's layout.
    """

    weights: str

    def __post_init__(self):
        if not Path(self.weights).is_file():
            raise FileNotFoundError(f"There is no file {self.weights!r} with Inception's weights.")

    @property
    def frozen(self) -> Frozen:
        """The shapes of the network."""
        return Frozen(inception.shapes(CLASSES), "inception")

    def maps(self, params: Params, images: Float[Array, "b h w c"]) -> Sequence[Array]:
        """Returns the maps of images in [-1, 1]."""
        return inception.maps(params, images)
