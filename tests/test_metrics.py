"""Laws of the metrics: distances, scores, references, the Inception network and its weights."""

import io
import struct
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxar.core import resize
from jaxar.evaluation import digits, inception, reference, scores
from jaxar.evaluation import inception_weights as table
from jaxar.evaluation.frechet import Gaussian, RunningMoments, frechet_distance
from jaxar.tree import nest, paths

RNG = np.random.default_rng(0)


def moments(*chunks):
    taken = RunningMoments()
    for chunk in chunks:
        taken.add(chunk)
    return taken


def correlated(count, width):
    return RNG.normal(size=(count, width)) @ RNG.normal(size=(width, width)) + 3


# Frechet distance


@pytest.mark.parametrize("count", [2, 20, 500])
def test_a_set_is_at_distance_zero_from_itself(count):
    features = correlated(count, 64)  # of fewer than 65 features the covariance is singular
    assert frechet_distance(moments(features), moments(features)) < 1e-6


def test_halves_of_a_set_are_as_far_apart_as_torch_fidelity_says():
    halves = np.split(correlated(400, 24), 2)
    m1, m2 = (half.mean(0) for half in halves)
    c1, c2 = (np.cov(half, rowvar=False) for half in halves)
    shared = np.sqrt(np.linalg.eigvals(c1 @ c2).astype(complex)).real.sum()
    expected = (m1 - m2) @ (m1 - m2) + np.trace(c1) + np.trace(c2) - 2 * shared
    np.testing.assert_allclose(frechet_distance(*map(moments, halves)), expected, rtol=1e-9)


def test_trace_is_that_of_the_matrix_root():
    a, b = (np.cov(correlated(100, 16), rowvar=False) for _ in range(2))
    expected = np.trace(a) + np.trace(b) - 2 * np.trace(scipy.linalg.sqrtm(a @ b)).real
    zero = np.zeros(16)
    np.testing.assert_allclose(
        frechet_distance(Gaussian(zero, a), Gaussian(zero, b)), expected, rtol=1e-9
    )


def test_distance_of_diagonal_gaussians():
    m1, m2 = RNG.normal(size=(2, 12))
    s1, s2 = RNG.uniform(0, 3, (2, 12))
    s1[:4], s2[2:6] = 0, 0  # directions that one or both do not vary in
    given = frechet_distance(Gaussian(m1, np.diag(s1**2)), Gaussian(m2, np.diag(s2**2)))
    np.testing.assert_allclose(given, ((m1 - m2) ** 2 + (s1 - s2) ** 2).sum(), rtol=1e-12)


def test_moments_do_not_depend_on_chunks_and_survive_a_large_mean():
    features = (RNG.normal(size=(1000, 8)) + 1e6).astype(np.float64)
    merged, empty = moments(features[:300]), RunningMoments()
    merged.merge(moments(*np.split(features[300:], 7)))
    merged.merge(empty)
    empty.merge(merged)
    one_by_one = moments(*features[:, None])
    for taken in (merged, empty, one_by_one, moments(features, features[:0])):
        assert taken.count == 1000
        np.testing.assert_allclose(taken.mean, features.mean(0), rtol=1e-14)
        np.testing.assert_allclose(
            taken.covariance, np.cov(features, rowvar=False), rtol=1e-9, atol=1e-9
        )


def test_unusable_moments_are_refused():
    three = moments(RNG.normal(size=(5, 3)))
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(moments(np.zeros((1, 3))), three)
    with pytest.raises(ValueError, match="4 and of 3"):
        frechet_distance(moments(RNG.normal(size=(5, 4))), three)
    with pytest.raises(ValueError, match="not finite"):
        three.add(np.full((2, 3), np.nan))
    with pytest.raises(ValueError, match="dimension 4"):
        three.add(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(three, Gaussian(np.zeros(3), np.full((3, 3), np.inf)))


# Inception Score, precision and recall, KID


def test_inception_score_of_sure_and_of_unsure_answers():
    sure = 1e4 * np.eye(8)[np.arange(800) % 8]
    np.testing.assert_allclose(scores.inception_score(sure), (8, 0), atol=1e-9)
    np.testing.assert_allclose(scores.inception_score(np.zeros((50, 8))), (1, 0), atol=1e-12)


def test_inception_score_splits_as_adm_does():
    logits = RNG.normal(size=(25, 6))
    parts = [
        scores.inception_score(part, 1)[0] for part in (logits[:10], logits[10:20], logits[20:])
    ]
    mean, deviation = scores.inception_score(logits, split_size=10)
    np.testing.assert_allclose((mean, deviation), (np.mean(parts), np.std(parts)))
    with pytest.raises(ValueError, match="cannot be cut"):
        scores.inception_score(logits, 26)


def by_force(generated, real, neighbours):
    def share(points, centres):
        radii = np.sort(np.linalg.norm(centres[:, None] - centres, axis=-1), 1)[:, neighbours]
        return (np.linalg.norm(points[:, None] - centres, axis=-1) <= radii).any(1).mean()

    return share(generated, real), share(real, generated)


@pytest.mark.parametrize("block", [7, 32, 1000])
def test_precision_and_recall_by_force(block):
    generated, real = 0.7 * RNG.normal(size=(60, 5)), RNG.normal(size=(83, 5))
    given = scores.precision_recall(generated, real, 2, block=block)
    np.testing.assert_allclose(given, by_force(generated, real, 2))
    assert scores.precision_recall(real, real, block=block) == (1, 1)


def test_kernel_distance_by_force():
    x, y = RNG.normal(size=(9, 4)), RNG.normal(size=(9, 4)) + 1
    total = 0.0
    for i in range(9):
        for j in range(9):
            total -= 2 * (x[i] @ y[j] / 4 + 1) ** 3 / 81
            if i != j:
                total += ((x[i] @ x[j] / 4 + 1) ** 3 + (y[i] @ y[j] / 4 + 1) ** 3) / 72
    mean, deviation = scores.kernel_distance(x, y, subsets=3, subset_size=9)
    np.testing.assert_allclose((mean, deviation), (total, 0), rtol=1e-9, atol=1e-9)


def test_kernel_distance_of_one_distribution_is_near_zero():
    x, y = np.random.default_rng(0).normal(size=(2, 600, 16))
    mean, deviation = scores.kernel_distance(x, y, subsets=20, subset_size=200)
    assert abs(mean) < deviation < 0.1
    assert scores.kernel_distance(x, y + 1, subsets=5, subset_size=200)[0] > 1
    with pytest.raises(ValueError, match="subset_size"):
        scores.kernel_distance(x, y)


def test_scores_refuse_what_they_cannot_compare():
    good = np.ones((10, 3))
    for bad in (np.ones((10, 4)), np.ones(10), np.full((10, 3), np.nan)):
        with pytest.raises(ValueError):
            scores.precision_recall(good, bad)
        with pytest.raises(ValueError):
            scores.kernel_distance(bad, good, subset_size=5)
    with pytest.raises(ValueError, match="neighbours"):
        scores.precision_recall(good, good[:3])


# Resize


def resized_pixel(image, i, j, height, width):
    """The pixel by TensorFlow 1's loop, in float32."""
    y = np.float32(i) * (np.float32(image.shape[0]) / np.float32(height))
    x = np.float32(j) * (np.float32(image.shape[1]) / np.float32(width))
    top, left = int(y), int(x)
    bottom, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
    dy, dx = y - np.float32(top), x - np.float32(left)
    above = image[top, left] + (image[top, right] - image[top, left]) * dx
    below = image[bottom, left] + (image[bottom, right] - image[bottom, left]) * dx
    return above + (below - above) * dy


@pytest.mark.parametrize(
    ("size", "target"),
    [((5, 9), (13, 13)), ((31, 20), (13, 7)), ((8, 8), (8, 8)), ((1, 64), (3, 64))],
)
def test_resize_is_tensorflow_1s(size, target):
    image = RNG.uniform(0, 255, (*size, 3)).astype(np.float32)
    expected = [
        [resized_pixel(image, i, j, *target) for j in range(target[1])] for i in range(target[0])
    ]
    given = resize.resize_bilinear(jnp.asarray(image[None]), target)[0]
    np.testing.assert_allclose(given, np.asarray(expected), atol=1e-4)


def test_resize_matrices_are_means():
    for size in (1, 32, 255, 299, 300, 1000):
        weights = resize.bilinear_weights(size, 299)
        np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
        assert weights.min() >= 0 and weights[0, 0] == 1


# Inception


@pytest.fixture(scope="module")
def state():
    """PyTorch's layout of random weights, with 7 classes; scaled so that nothing dies out."""
    rng, arrays = np.random.default_rng(0), {}
    for path, leaf in paths(inception.shapes(7)).items():
        row = table._torch_row(path)
        values = rng.standard_normal(leaf.shape, np.float32)
        if len(leaf.shape) > 1:
            values *= np.float32(np.sqrt(3 / np.prod(leaf.shape[:-1])))
            values = values.transpose(3, 2, 0, 1) if len(leaf.shape) == 4 else values.T
        arrays[row.theirs] = 1 + 0.1 * values if path.endswith("variance") else values
    return arrays


NAMES = {
    "Conv2d_4a_3x3.bn.running_var": "conv_4/batchnorm/moving_variance",
    "Mixed_5b.branch5x5_2.conv.weight": "mixed/tower/conv_1/conv2d_params",
    "Mixed_6a.branch3x3.bn.weight": "mixed_3/conv/batchnorm/gamma",
    "Mixed_6a.branch3x3dbl_3.bn.bias": "mixed_3/tower/conv_2/batchnorm/beta",
    "Mixed_6d.branch1x1.conv.weight": "mixed_6/conv/conv2d_params",
    "Mixed_6e.branch7x7dbl_5.bn.running_mean": "mixed_7/tower_1/conv_4/batchnorm/moving_mean",
    "Mixed_7a.branch7x7x3_4.conv.weight": "mixed_8/tower_1/conv_3/conv2d_params",
    "Mixed_7b.branch3x3_2b.conv.weight": "mixed_9/tower/mixed/conv_1/conv2d_params",
    "Mixed_7c.branch3x3dbl_3a.conv.weight": "mixed_10/tower_1/mixed/conv/conv2d_params",
    "Mixed_7c.branch_pool.conv.weight": "mixed_10/tower_2/conv/conv2d_params",
    "fc.weight": "softmax/weights",
}
"""Some of the names that torch-fidelity pairs."""


def test_graph_and_state_dict_give_the_same_parameters(state):
    constants = {"mixed/join/concat_dim": np.array(3), "pool_3/_reshape/shape": np.ones(2, int)}
    pairs = {}
    for path in paths(inception.shapes(7)):
        ours, theirs = table._torch_row(path).theirs, table._graph_row(path).theirs
        array = state[ours]
        constants[theirs] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        pairs[ours] = theirs
    assert NAMES.items() <= pairs.items()
    ignored = {"Conv2d_1a_3x3.bn.num_batches_tracked": np.array(0), "AuxLogits.fc.bias": np.ones(9)}
    given = table.from_state_dict({**state, **ignored}, inception.shapes)
    assert given["fc"]["kernel"].shape == (2048, 7)
    jax.tree.map(
        np.testing.assert_array_equal, given, table.from_graph_def(constants, inception.shapes)
    )


def test_all_that_is_wrong_with_weights_is_told_at_once(state):
    bad = {**state, "fc.weight": np.ones((7, 9)), "Mixed_5b.branch9x9.conv.weight": np.ones(1)}
    del bad["Conv2d_1a_3x3.bn.bias"]
    with pytest.raises(ValueError) as error:
        table.from_state_dict(bad, inception.shapes)
    for line in ("missing key Conv2d_1a_3x3.bn.bias", "unused key Mixed_5b.branch9x9", "fc.weight"):
        assert line in str(error.value)
    with pytest.raises(ValueError, match="missing key softmax/weights"):
        table.from_graph_def({}, inception.shapes)


def test_features_have_their_layout(state):
    leaves = paths(table.from_state_dict(state, inception.shapes))
    # Channel c of the spatial features is made the constant c - 1 before its ReLU.
    leaves["Mixed_6d/branch1x1/kernel"] = np.zeros_like(leaves["Mixed_6d/branch1x1/kernel"])
    leaves["Mixed_6d/branch1x1/mean"] = np.zeros(192, np.float32)
    leaves["Mixed_6d/branch1x1/beta"] = np.arange(192, dtype=np.float32) - 1
    images = jnp.asarray(RNG.integers(0, 256, (1, 24, 40, 3), np.uint8))
    found = jax.jit(inception.features)(nest(leaves), images)
    widths = {"64": 64, "192": 192, "768": 768, "2048": 2048, "logits": 7, "logits_unbiased": 7}
    shapes = {name: (1, width) for name, width in widths.items()}
    assert {name: array.shape for name, array in found.items()} == {**shapes, "spatial": (1, 2023)}
    np.testing.assert_array_equal(
        found["spatial"].reshape(17, 17, 7), np.broadcast_to([0, 0, 1, 2, 3, 4, 5], (17, 17, 7))
    )
    unbiased = found["2048"] @ state["fc.weight"].T
    scale = np.abs(unbiased).max()
    np.testing.assert_allclose(found["logits_unbiased"], unbiased, atol=1e-4 * scale)
    np.testing.assert_allclose(
        found["logits"], unbiased + state["fc.bias"], atol=1e-4 * scale, err_msg="the bias"
    )


def test_mean_pool_leaves_padding_out():
    x = jnp.asarray(RNG.normal(size=(1, 4, 5, 2)), jnp.float32)
    given = inception._pool(inception.POOL, x)
    np.testing.assert_allclose(given[0, 0, 0], x[0, :2, :2].mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(given[0, 2, 4], x[0, 1:4, 3:5].mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(given[0, 1, 1], x[0, :3, :3].mean((0, 1)), rtol=1e-5)


# References


def statistics(width):
    root = RNG.normal(size=(width, width))
    return {"mu": RNG.normal(size=width), "sigma": root @ root.T}


def test_layouts_of_references(tmp_path):
    pool = statistics(6)
    spatial = {f"{name}_s": array for name, array in statistics(5).items()}
    images = RNG.integers(0, 256, (7, 4, 3, 3), np.uint8)
    np.savez(tmp_path / "adm.npz", **pool, **spatial, arr_0=images)
    np.savez_compressed(tmp_path / "pytorch_fid.npz", **pool)
    np.savez(tmp_path / "fidelity.npz", mu=pool["mu"].astype(np.float32), sigma=pool["sigma"].T)
    np.savez(tmp_path / "images.npz", images)

    adm = reference.read_reference(tmp_path / "adm.npz")
    np.testing.assert_array_equal(adm.mean, pool["mu"])
    np.testing.assert_array_equal(adm.covariance, pool["sigma"])
    np.testing.assert_array_equal(adm.spatial_mean, spatial["mu_s"])
    np.testing.assert_array_equal(adm.spatial_covariance, spatial["sigma_s"])
    assert adm.has_images and len(adm.sha256) == 64
    for name in ("pytorch_fid.npz", "fidelity.npz"):
        found = reference.read_reference(tmp_path / name)
        np.testing.assert_allclose(found.mean, pool["mu"], rtol=1e-6)
        assert found.mean.dtype == np.float64 and found.spatial_mean is None
        assert not found.has_images
    alone = reference.read_reference(tmp_path / "images.npz")
    assert alone.mean is None and alone.covariance is None and alone.has_images


def test_written_references_read_back(tmp_path):
    pool, spatial = moments(correlated(20, 4)), Gaussian(*statistics(3).values())
    path = tmp_path / "reference.npz"
    reference.write_reference(path, pool, spatial)
    found = reference.read_reference(path)
    assert frechet_distance(pool, Gaussian(found.mean, found.covariance)) < 1e-9
    np.testing.assert_array_equal(found.spatial_covariance, spatial.covariance)
    reference.write_reference(path, pool)
    assert reference.read_reference(path).spatial_mean is None


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("shape", [(7, 4, 5, 3), (6, 4, 5)])
def test_images_come_in_batches(tmp_path, save, shape):
    images = RNG.integers(0, 256, shape, np.uint8)
    save(tmp_path / "images.npz", arr_0=images)
    count, batches = reference.image_batches(tmp_path / "images.npz", 3)
    batches = list(batches)
    assert count == shape[0] and [len(batch) for batch in batches] == [3, 3, 1][: -(-count // 3)]
    np.testing.assert_array_equal(np.concatenate(batches), images)


def npz(path, **members):
    """Writes an .npz of members given as bytes or arrays."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if not isinstance(content, bytes):
                file = io.BytesIO()
                np.save(file, content)
                content = file.getvalue()
            archive.writestr(f"{name}.npy", content)


def header(text):
    """A .npy header of version 1.0 that says `text`."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


HOSTILE = {
    "holds neither": {"other": np.ones(3)},
    "lacks sigma": {"mu": np.ones(3)},
    "lacks mu_s": {**statistics(3), "sigma_s": np.eye(3)},
    "mean of dimension 3": {"mu": np.ones(3), "sigma": np.eye(2)},
    "1-d statistics": {"mu": np.ones((3, 1)), "sigma": np.eye(3)},
    "instead of float32": {"mu": np.ones(3, int), "sigma": np.eye(3)},
    "not finite": {"mu": np.full(3, np.nan), "sigma": np.eye(3)},
    "images are uint8": {"arr_0": np.ones((2, 4, 4, 3), np.float32)},
    "in C order": {"arr_0": np.asfortranarray(np.ones((2, 4, 4, 3), np.uint8))},
    "damaged": {
        "arr_0": header("{'descr': '|u1', 'fortran_order': False, 'shape': (9, 9, 9, 3)}\n")
    },
    "objects": {
        "mu": header("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}\n") + b"cos\nsystem\n",
        "sigma": np.eye(3),
    },
    "holds mu of shape": {
        "mu": header("{'descr': '<f8', 'fortran_order': False, 'shape': (-3,)}\n"),
        "sigma": np.eye(3),
    },
    "no .npz, or damaged": {"mu": header("{'descr': (((((\n"), "sigma": np.eye(3)},
    "version": {"mu": b"\x93NUMPY\x09\x00", "sigma": np.eye(3)},
    "magic": {"mu": b"nothing like an array", "sigma": np.eye(3)},
}


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_references_are_refused(tmp_path, words):
    path = tmp_path / "reference.npz"
    npz(path, **HOSTILE[words])
    with pytest.raises(ValueError, match=words) as error:
        reference.read_reference(path)
    assert str(path) in str(error.value)


def test_damaged_and_missing_references_are_refused(tmp_path):
    path = tmp_path / "reference.npz"
    np.savez(path, **statistics(20), arr_0=np.ones((9, 20, 20, 3), np.uint8))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="or damaged"):
        reference.read_reference(path)
    at = whole.find(b"\x01" * 60)  # within the images: their checksum is wrong then
    path.write_bytes(whole[:at] + b"\x02" + whole[at + 1 :])
    _, batches = reference.image_batches(path, 4)
    with pytest.raises(ValueError, match="damaged"):
        list(batches)
    with pytest.raises(FileNotFoundError):
        reference.read_reference(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="lacks arr_0"):
        reference.write_reference(path, moments(correlated(5, 2)))
        reference.image_batches(path, 4)


def test_an_array_that_claims_too_much_is_refused(tmp_path):
    path = tmp_path / "reference.npz"
    np.savez_compressed(path, arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    data = bytearray(path.read_bytes())
    entry = data.find(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<I", 1 << 30)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="claims more"):
        reference.read_reference(path)


# Digits


def test_digit_features_tell_digits_from_other_pictures():
    from sklearn.datasets import load_digits

    digit = np.kron(load_digits().images * 15.9, np.ones((3, 3))).astype(np.uint8)[..., None]
    noise = RNG.integers(0, 256, (900, 20, 30, 3), np.uint8)
    even, odd, other = (digits.digit_features(x) for x in (digit[::2], digit[1::2], noise))
    assert even.shape == (899, 64) and even.dtype == np.float32
    near = frechet_distance(moments(even), moments(odd))
    assert 20 * near < frechet_distance(moments(even), moments(other))
    np.testing.assert_allclose(
        digits.digit_features(np.repeat(digit[:5], 3, axis=3)), even_odd(even, odd)[:5], atol=1e-4
    )
    with pytest.raises(ValueError, match="uint8"):
        digits.digit_features(noise / 255)


def even_odd(even, odd):
    both = np.empty((len(even) + len(odd), even.shape[1]), even.dtype)
    both[::2], both[1::2] = even, odd
    return both


def test_the_digit_classifier_is_the_same_when_fitted_anew():
    first = digits._hidden_layer()
    digits._hidden_layer.cache_clear()
    for a, b in zip(first, digits._hidden_layer(), strict=True):
        np.testing.assert_array_equal(a, b)
