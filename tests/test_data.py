"""Laws of the data: batches depend on the step alone, damage is noticed, pixels are right."""

import io
import itertools
import json
import logging
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jaxar.data import folder, glyphs, latents, loader, source, tfds, transform, writer

RNG = np.random.default_rng(0)


class Noisy:
    """Records whose data show the record number and the first draw of their generator."""

    shape = (1, 2, 1)
    num_classes = 5

    def __init__(self, count, bad=()):
        self.count = count
        self.bad = frozenset(bad)

    def __len__(self):
        return self.count

    def labels(self):
        return np.arange(self.count, dtype=np.int32) % 5

    def read(self, index, rng):
        if index in self.bad:
            raise source.BadRecord(f"file-{index}: broken")
        data = np.array([index, rng.random()], np.float32).reshape(self.shape)
        return {"data": data, "condition": np.int32(index % 5)}


def take(iterator, count):
    """Returns the first batches and ends the iterator."""
    taken = list(itertools.islice(iterator, count))
    iterator.close()
    return taken


def read(*args, count, **more):
    return take(loader.batches(*args, **more), count)


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys() == {"data", "condition"}
        for key in x:
            np.testing.assert_array_equal(x[key], y[key])
            assert x[key].dtype == y[key].dtype and type(x[key]) is np.ndarray


def numbers(batches):
    return np.concatenate([b["data"][:, 0, 0, 0] for b in batches]).astype(int)


# ---------------------------------------------------------------------------------- loader


def test_batches_are_a_function_of_the_step():
    whole = read(Noisy(23), batch_size=8, seed=3, count=12)
    assert whole[0]["data"].shape == (8, 1, 2, 1) and whole[0]["data"].dtype == np.float32
    assert whole[0]["condition"].shape == (8,) and whole[0]["condition"].dtype == np.int32
    for start in (1, 2, 5, 11):
        same(whole[start:], read(Noisy(23), batch_size=8, seed=3, start=start, count=12 - start))
    other = read(Noisy(23), batch_size=8, seed=4, count=1)
    assert not np.array_equal(other[0]["data"], whole[0]["data"])


def test_far_steps_are_reached_at_once():
    first = read(Noisy(23), batch_size=8, seed=3, start=10**9, count=1)
    second = read(Noisy(23), batch_size=8, seed=3, start=10**9 - 1, count=2)
    same(first, second[1:])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_global_batches(processes):
    whole = read(Noisy(23), batch_size=8, seed=3, start=2, count=4)
    options = dict(batch_size=8, seed=3, start=2, count=4)
    rows = np.arange(8).reshape(processes, -1)
    parts = [read(Noisy(23), rows=part, **options) for part in rows]
    joined = [
        {key: np.concatenate([batch[key] for batch in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    same(whole, joined)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_workers_give_the_same_batches(workers, caplog):
    bad = Noisy(1501, bad=[700])
    options = dict(batch_size=300, seed=3, start=2, count=6, max_bad_fraction=0.01)
    whole = read(bad, **options)
    with_workers = read(bad, workers=workers, **options)
    same(whole, with_workers)
    assert sum("file-700" in record.getMessage() for record in caplog.records) == 2


def test_every_record_once_per_epoch_and_reshuffled():
    order = numbers(read(Noisy(24), batch_size=8, seed=0, count=9)).reshape(3, 24)
    assert (np.sort(order, axis=1) == np.arange(24)).all()
    assert len({tuple(row) for row in order}) == 3 and tuple(range(24)) not in map(tuple, order)
    neighbour = numbers(read(Noisy(24), batch_size=8, seed=1, count=3))
    assert not any(np.array_equal(neighbour, row) for row in order)  # seeds share no epoch


def test_fewer_records_than_a_batch():
    order = numbers(read(Noisy(3), batch_size=8, seed=0, count=3)).reshape(8, 3)
    assert (np.sort(order, axis=1) == np.arange(3)).all()


def test_draws_depend_on_the_position_alone():
    draws = [b["data"][:, 0, 1, 0] for b in read(Noisy(8), batch_size=8, seed=0, count=3)]
    assert len(np.unique(draws)) == 24  # new in every epoch
    others = [b["data"][:, 0, 1, 0] for b in read(Noisy(11), batch_size=8, seed=0, count=3)]
    np.testing.assert_array_equal(draws, others)  # whatever record stands there


def test_epoch_is_once_through_in_order():
    parts = take(loader.epoch(Noisy(11), batch_size=4), None)
    assert [len(b["condition"]) for b in parts] == [4, 4, 3]
    np.testing.assert_array_equal(numbers(parts), np.arange(11))
    data, labels = loader.whole(Noisy(11), batch_size=4)
    np.testing.assert_array_equal(data[:, 0, 0, 0], np.arange(11))
    np.testing.assert_array_equal(labels, np.arange(11) % 5)


@pytest.mark.parametrize(
    "wrong",
    [dict(batch_size=0), dict(rows=[8]), dict(rows=[]), dict(seed=-1), dict(start=-1)],
)
def test_wrong_arguments(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        loader.batches(Noisy(9), **{"batch_size": 8, "seed": 0, **wrong})


def test_no_records():
    with pytest.raises(ValueError, match="no records"):
        loader.batches(Noisy(0), batch_size=1, seed=0)


def test_fingerprint():
    prints = [loader.fingerprint(s) for s in (Noisy(9), Noisy(9), Noisy(10))]
    assert prints[0] == prints[1] != prints[2] and len(prints[0]) == 16


# ---------------------------------------------------------------------------------- bad records


def test_bad_records_are_replaced_named_once_and_counted(caplog):
    good = numbers(read(Noisy(50), batch_size=10, seed=0, count=15))
    found = read(Noisy(50, bad=[4, 5, 49]), batch_size=10, seed=0, count=15, max_bad_fraction=0.2)
    expected = np.select([good == 4, good == 5, good == 49], [6, 6, 0], good)
    np.testing.assert_array_equal(numbers(found), expected)
    named = [r.getMessage() for r in caplog.records if r.name == "jaxar"]
    assert len(named) == 3 and all(r.levelno == logging.WARNING for r in caplog.records)
    assert all(any(f"file-{i}: broken" in text for text in named) for i in (4, 5, 49))


def test_too_many_bad_records_stop_after_an_epoch():
    iterator = loader.batches(Noisy(50, bad=[4]), batch_size=10, seed=0, max_bad_fraction=0.01)
    with pytest.raises(loader.DataError, match=r"1 of 51 reads failed.*file-4: broken") as error:
        for count in range(100):  # noqa: B007
            next(iterator)
    assert count == 4 and "1.00%" in str(error.value)


def test_limit_is_not_reached():
    source_ = Noisy(2000, bad=[4])
    assert len(read(source_, batch_size=100, seed=0, count=100, max_bad_fraction=0.001)) == 100


@pytest.mark.parametrize("count", [7, 500])
def test_only_bad_records_stop_at_once(count):
    iterator = loader.batches(Noisy(count, bad=range(count)), batch_size=4, seed=0)
    with pytest.raises(loader.DataError, match="no record in a whole run"):
        next(iterator)


def test_other_errors_are_not_hidden():
    class Broken(Noisy):
        def read(self, index, rng):
            raise KeyError("a mistake in the program")

    with pytest.raises(KeyError, match="a mistake"):
        next(loader.batches(Broken(5), batch_size=4, seed=0))


# ---------------------------------------------------------------------------------- images


def literal_crop(image, size):
    """ADM's centre crop, word by word."""
    while min(*image.size) >= 2 * size:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.BOX)
    scale = size / min(*image.size)
    image = image.resize(tuple(round(x * scale) for x in image.size), resample=Image.BICUBIC)
    array = np.array(image)
    y, x = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[y : y + size, x : x + size]


def picture(width, height, mode="RGB"):
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


@pytest.mark.parametrize(
    "width, height",
    [(32, 32), (33, 47), (64, 64), (65, 131), (200, 63), (17, 31), (1, 5), (333, 99)],
)
def test_center_crop_is_that_of_adm(width, height):
    image = picture(width, height)
    for size in (32, 15):
        cropped = np.asarray(transform.center_crop(image, size))
        np.testing.assert_array_equal(cropped, literal_crop(image, size))


@pytest.mark.parametrize("size", [(16, 24), (24, 16), (9, 40)])
def test_rectangular_crops_cover(size):
    for shape in ((50, 50), (31, 200), (200, 31), (7, 7)):
        image = Image.new("RGB", shape, (10, 20, 30))
        cropped = np.asarray(transform.center_crop(image, size))
        assert cropped.shape == (*size, 3) and (cropped == (10, 20, 30)).all()


def test_narrow_image_is_refused():
    with pytest.raises(ValueError, match="would grow"):
        transform.center_crop(Image.new("L", (1, 60_000)), 256)


def stored(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return transform.to_array(transform.decode(file, 3), 3)


def test_values_of_unusual_images():
    red = (1, -1, -1)
    near = dict(atol=0.02)
    np.testing.assert_array_equal(stored(Image.new("RGB", (2, 2), "red"), "PNG")[0, 0], red)
    np.testing.assert_array_equal(stored(Image.new("L", (2, 2), 255), "PNG")[0, 0], (1, 1, 1))
    np.testing.assert_array_equal(stored(Image.new("1", (2, 2), 1), "PNG")[0, 0], (1, 1, 1))
    cmyk = stored(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    np.testing.assert_allclose(cmyk[0, 0], red, **near)
    clear = stored(Image.new("RGBA", (2, 2), (255, 0, 0, 0)), "PNG")
    np.testing.assert_array_equal(clear[0, 0], (1, 1, 1))  # nothing over white
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([255, 0, 0])
    np.testing.assert_array_equal(stored(palette, "PNG")[0, 0], red)
    np.testing.assert_array_equal(stored(palette, "PNG", transparency=0)[0, 0], (1, 1, 1))
    deep = Image.fromarray(np.array([[0, 65535, 32768]], np.uint16))
    np.testing.assert_allclose(stored(deep, "PNG")[0, :, 0], (-1, 1, 1 / 255), atol=1e-6)


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (32, 16), "black")
    image.paste((255, 255, 255), (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    turned = stored(image, "JPEG", exif=exif)
    assert turned.shape == (32, 16, 3)
    assert turned[4].mean() > 0.9 and turned[28].mean() < -0.9


def test_flip_is_fair_and_exact():
    x = np.arange(6, dtype=np.float32).reshape(1, 6, 1)
    results = [transform.flip(x, np.random.default_rng(i))[0, 0, 0] for i in range(400)]
    assert set(results) == {0, 5} and 160 < results.count(0) < 240


@pytest.fixture
def images(tmp_path):
    """A folder of 3 classes of 4 images, plus files that do not count."""
    for name in ("b", "a", "c"):
        (tmp_path / name).mkdir()
        for i, ending in enumerate(("png", "JPG", "webp", "bmp")):
            kind = {"JPG": "JPEG"}.get(ending, ending.upper())
            picture(20 + i, 30).save(tmp_path / name / f"{i}.{ending}", kind)
        (tmp_path / name / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_image_folder(images):
    data = folder.ImageFolder(path=str(images), size=16)
    assert len(data) == 12 and data.shape == (16, 16, 3) and data.classes == ["a", "b", "c"]
    np.testing.assert_array_equal(data.labels(), np.repeat([0, 1, 2], 4))
    for batch in read(data, batch_size=6, seed=0, count=2):
        assert batch["data"].shape == (6, 16, 16, 3) and np.abs(batch["data"]).max() <= 1
    grey = folder.ImageFolder(path=str(images.parent), split=images.name, size=(8, 12), channels=1)
    assert grey.read(0, np.random.default_rng(0))["data"].shape == (8, 12, 1)


def test_image_folder_flips_by_position(images):
    still = folder.ImageFolder(path=str(images), size=16, flip=False)
    plain = read(still, batch_size=6, seed=0, count=8)
    moved = read(folder.ImageFolder(path=str(images), size=16), batch_size=6, seed=0, count=8)
    flipped = []
    for a, b in zip(plain, moved, strict=True):
        for x, y in zip(a["data"], b["data"], strict=True):
            assert np.array_equal(x, y) or np.array_equal(x[:, ::-1], y)
            flipped.append(not np.array_equal(x, y))
    assert 10 < sum(flipped) < 38


def test_bad_images_are_replaced(images, caplog):
    png = images / "a" / "0.png"
    png.write_bytes(png.read_bytes()[:-200])
    (images / "b" / "1.JPG").write_bytes(b"")
    (images / "c" / "2.webp").unlink()
    data = folder.ImageFolder(path=str(images), size=16, flip=False)
    (images / "c" / "3.bmp").write_bytes(b"zeros" * 100)
    batches = take(loader.epoch(data, batch_size=11, max_bad_fraction=0.5), None)
    assert np.isfinite(batches[0]["data"]).all()
    named = " ".join(r.getMessage() for r in caplog.records)
    assert all(str(images / f) in named for f in ("a/0.png", "b/1.JPG", "c/3.bmp"))
    with pytest.raises(loader.DataError, match="4 of 15 reads failed"):
        take(loader.epoch(data, batch_size=11), None)


def test_huge_images_are_refused_before_decoding(images, monkeypatch):
    monkeypatch.setattr(transform, "MAX_PIXELS", 500)
    data = folder.ImageFolder(path=str(images), size=16)
    with pytest.raises(source.BadRecord, match=r"0\.png: ValueError: 20 x 30 pixels"):
        data.read(0, np.random.default_rng(0))


def test_image_folder_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        folder.ImageFolder(path=str(tmp_path / "nowhere"), size=8)
    with pytest.raises(ValueError, match="no class folders"):
        folder.ImageFolder(path=str(tmp_path), size=8)
    (tmp_path / "cats").mkdir()
    with pytest.raises(ValueError, match=r"hold no file that ends in \.png.*'cats'"):
        folder.ImageFolder(path=str(tmp_path), size=8)
    with pytest.raises(ValueError, match="channels"):
        folder.ImageFolder(path=str(tmp_path), size=8, channels=2)
    with pytest.raises(ValueError, match="size"):
        folder.ImageFolder(path=str(tmp_path), size=(8, 8, 8))


# ---------------------------------------------------------------------------------- arrays, digits


def test_labels_are_validated():
    data = np.zeros((3, 4, 4, 1))
    with pytest.raises(ValueError, match="from 0 to 3, outside of 0 to 2"):
        source.Arrays(data, [0, 1, 3], 3)
    with pytest.raises(ValueError, match="from -1 to 1"):
        source.Arrays(data, [0, 1, -1], 3)
    with pytest.raises(ValueError, match="integers"):
        source.Arrays(data, [0.0, 1.0, 2.0], 3)
    with pytest.raises(ValueError, match="shape"):
        source.Arrays(data, [0, 1], 3)


def test_digits():
    parts = {split: source.Digits(split=split) for split in ("train", "held_out", "all")}
    assert [len(p) for p in parts.values()] == [SIZES[k] for k in parts]
    rows = {k: [p.read(i, RNG)["data"] for i in range(len(p))] for k, p in parts.items()}
    seen = {k: {x.tobytes() for x in v} for k, v in rows.items()}
    assert not seen["train"] & seen["held_out"]
    assert seen["train"] | seen["held_out"] == seen["all"]
    share = np.bincount(parts["held_out"].labels()) / np.bincount(parts["all"].labels())
    assert (share > 0.18).all() and (share <= 0.2).all()
    data = np.stack(rows["all"])
    assert data.shape == (1797, 16, 16, 1) and data.dtype == np.float32
    assert data.min() == -1 and data.max() == 1
    assert (data[:, 0] == -1).all() and (data[:, :, -1] == -1).all()


SIZES = {"train": 1442, "held_out": 355, "all": 1797}


def test_digits_of_other_sizes():
    native = source.Digits(split="all", size=8)
    pixels = native.read(0, RNG)["data"][:, :, 0]
    assert set(np.unique((pixels + 1) * 8)) <= set(range(17))
    assert source.Digits(split="held_out", size=28).shape == (28, 28, 1)
    with pytest.raises(ValueError, match="at least 8"):
        source.Digits(size=7)
    with pytest.raises(ValueError, match="held_out"):
        source.Digits(split="test")


# ---------------------------------------------------------------------------------- latents


@pytest.fixture
def cache(tmp_path):
    """MAR's layout: 2 classes of 5 latents (4, 3, 2) as torch orders them; mirrors are negative."""
    for i in range(10):
        (tmp_path / f"n{i % 2}").mkdir(exist_ok=True)
        moments = RNG.normal(size=(4, 3, 2)).astype(np.float32) + 20 + i
        np.savez(tmp_path / f"n{i % 2}" / f"{i}.npz", moments=moments, moments_flip=-moments)
    return tmp_path


def test_latent_folder(cache):
    data = latents.LatentFolder(path=str(cache))
    assert data.shape == (3, 2, 4) and data.num_classes == 2 and len(data) == 10
    straight = latents.LatentFolder(path=str(cache), flip=False)
    with np.load(cache / "n1" / "1.npz") as file:
        expected = file["moments"].transpose(1, 2, 0)
    record = straight.read(5, np.random.default_rng(0))
    np.testing.assert_array_equal(record["data"], expected)
    assert record["condition"] == 1 and record["data"].dtype == np.float32
    drawn = {np.sign(data.read(0, np.random.default_rng(i))["data"][0, 0, 0]) for i in range(20)}
    assert drawn == {-1, 1}


def test_bad_latent_files(cache):
    rng = np.random.default_rng(0)
    data = latents.LatentFolder(path=str(cache), flip=False)
    path = cache / "n0" / "0.npz"
    good = path.read_bytes()
    ok = np.zeros((4, 3, 2), np.float32)
    for write, why in (
        (lambda: path.write_bytes(good[:-100]), "zip"),
        (lambda: path.write_bytes(b""), "No data left|Error"),
        (lambda: np.savez(path, moments_flip=ok), "moments"),
        (lambda: np.savez(path, moments=ok[:2]), "shape"),
        (lambda: np.savez(path, moments=ok.astype(np.int32)), "int32"),
        (lambda: np.savez(path, moments=np.array([{}])), "Object arrays"),
        (lambda: np.savez(path, moments=ok * np.nan), "finite"),
    ):
        write()
        with pytest.raises(source.BadRecord, match=rf"0\.npz: .*({why})"):
            data.read(0, rng)
    reopened = latents.LatentFolder(path=str(cache))  # another file tells the shape
    assert reopened.shape == (3, 2, 4)
    for file in cache.glob("*/*.npz"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="None of the first files"):
        latents.LatentFolder(path=str(cache))


def examples(count=10, shape=(3, 2, 4), mirrored=True):
    for i in range(count):
        moments = np.full(shape, i + 1, np.float32) + 0.25
        yield moments, -moments if mirrored else None, i % 3


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("mirrored", [True, False])
def test_latent_records_round_trip(tmp_path, dtype, mirrored):
    options = dict(num_classes=3, dtype=dtype, shard_size=4, extra={"tokenizer": "kl16"})
    assert writer.write_latents(str(tmp_path), examples(mirrored=mirrored), **options) == 10
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob(".*"))
    assert len(list(tmp_path.glob("*.array_record"))) == 3
    data = latents.LatentRecords(path=str(tmp_path))
    assert (len(data), data.shape, data.num_classes) == (10, (3, 2, 4), 3)
    assert data.manifest["tokenizer"] == "kl16"
    np.testing.assert_array_equal(data.labels(), np.arange(10) % 3)
    signs = set()
    for i in range(10):
        record = data.read(i, np.random.default_rng(i))
        np.testing.assert_array_equal(np.abs(record["data"]), np.full((3, 2, 4), i + 1.25))
        assert record["condition"] == i % 3 and record["data"].dtype == np.float32
        signs.add(float(np.sign(record["data"][0, 0, 0])))
    assert signs == ({-1, 1} if mirrored else {1})


def test_latent_records_in_batches(tmp_path):
    writer.write_latents(str(tmp_path), examples(), num_classes=3, shard_size=4)
    data = latents.LatentRecords(path=str(tmp_path))
    whole = read(data, batch_size=4, seed=1, count=4)
    same(whole[2:], read(data, batch_size=4, seed=1, start=2, count=2))


def test_flipped_bits_in_records(tmp_path):
    noise = ((RNG.normal(size=(8, 8, 4)), None, 0) for _ in range(10))
    writer.write_latents(str(tmp_path), noise, num_classes=1, shard_size=5)
    shard = tmp_path / "latents-00001.array_record"
    clean = [latents.LatentRecords(path=str(tmp_path)).read(i, RNG) for i in range(10)]
    content = bytearray(shard.read_bytes())
    caught = 0
    for position in np.flatnonzero(np.frombuffer(content, np.uint8))[70::397]:
        damaged = content.copy()
        damaged[position] ^= 4
        shard.write_bytes(damaged)
        data = latents.LatentRecords(path=str(tmp_path), flip=False)
        for i in range(10):
            try:
                found = data.read(i, RNG)
            except source.BadRecord as error:
                assert f"{shard} record {i - 5}" in str(error)
                caught += 1
            else:
                np.testing.assert_array_equal(found["data"], clean[i]["data"])
    assert caught >= 10, f"only {caught} damaged records noticed"


def test_manifest_is_checked(tmp_path):
    def refused(text):
        with pytest.raises(ValueError, match=text):
            latents.LatentRecords(path=str(tmp_path))

    refused("has no manifest")
    writer.write_latents(str(tmp_path), examples(), num_classes=3, shard_size=4)
    with pytest.raises(ValueError, match="already holds"):
        writer.write_latents(str(tmp_path), examples(), num_classes=3)
    path = tmp_path / "manifest.json"
    good = json.loads(path.read_text())
    for change, text in (
        ({"format": "latents-0"}, "format 'latents-0', this program reads 'jaxar-latents-1'"),
        ({"count": 11}, "counts 11 records, its shards hold 10"),
        ({"num_classes": 2}, "from 0 to 2, outside of 0 to 1"),
        ({"shape": None}, "lacks shape"),
        ({"labels_crc32": 1}, "CRC-32"),
        ({"shards": [{"name": "../x", "count": 10, "bytes": 1}]}, "beside it"),
    ):
        path.write_text(json.dumps({**good, **change}))
        refused(text)
    path.write_text("{")
    refused("damaged")
    path.write_text(json.dumps({**good, "shape": [3, 2, 6]}))
    with pytest.raises(source.BadRecord, match="196 bytes instead of 292"):
        latents.LatentRecords(path=str(tmp_path)).read(0, np.random.default_rng(0))
    path.write_text(json.dumps(good))
    (tmp_path / "latents-00000.array_record").write_bytes(b"short")
    refused("has 5 bytes, manifest.json says")


def test_write_latents_refuses(tmp_path):
    x = np.zeros((2, 2, 4), np.float32)
    for wrong, text in (
        ([], "no latents"),
        ([(x, x, 3)], "from 3 to 3, outside of 0 to 2"),
        ([(x, x, 0), (x[:1], x, 0)], "shape"),
        ([(x, x, 0), (x, None, 0)], "mirror"),
        ([(x * np.nan, x, 0)], "finite"),
    ):
        with pytest.raises(ValueError, match=text):
            writer.write_latents(str(tmp_path), wrong, num_classes=3)
    with pytest.raises(ValueError, match="finite as float16"):
        writer.write_latents(str(tmp_path), [(x + 1e6, None, 0)], num_classes=3, dtype="float16")
    assert not (tmp_path / "manifest.json").exists()


# ---------------------------------------------------------------------------------- glyphs


@pytest.mark.parametrize("size, channels", [(8, 1), (16, 1), (33, 3), ((16, 40), 1), ((64, 24), 3)])
def test_glyphs(size, channels):
    data = glyphs.Glyphs(size=size, channels=channels, num_classes=62, count=124)
    assert data.shape == (*transform.pair(size), channels)
    np.testing.assert_array_equal(data.labels(), np.arange(124) % 62)
    for i in range(0, 124, 7):
        first, again = (data.read(i, np.random.default_rng(s)) for s in range(2))
        x = first["data"]
        np.testing.assert_array_equal(x, again["data"])
        assert x.shape == data.shape and x.dtype == np.float32 and first["condition"] == i % 62
        assert x.min() == -1 and -0.5 < x.max() <= 1
        rim = np.concatenate([x[0].ravel(), x[-1].ravel(), x[:, 0].ravel(), x[:, -1].ravel()])
        assert (rim == -1).mean() > 0.7  # the symbol lies inside


def test_glyphs_differ():
    one, other = glyphs.Glyphs(count=40), glyphs.Glyphs(count=40, seed=1)
    pictures = {s.read(i, RNG)["data"].tobytes() for s in (one, other) for i in range(40)}
    assert len(pictures) == 80
    for wrong in (dict(size=7), dict(num_classes=63), dict(count=0)):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            glyphs.Glyphs(**wrong)


# ---------------------------------------------------------------------------------- tfds


@pytest.fixture
def prepared(tmp_path):
    """Returns a function that prepares the dataset `toy` in a file format, without TensorFlow."""
    library = pytest.importorskip("tensorflow_datasets")
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2 as example_pb2

    def prepare(file_format, labels=(0, 1, 2, 0, 1)):
        where = tmp_path / "toy" / "1.0.0"
        where.mkdir(parents=True)
        name = f"toy-train.{file_format}-00000-of-00001"
        writer = ArrayRecordWriter(str(where / name), "group_size:1")
        for i, label in enumerate(labels):
            file = io.BytesIO()
            Image.new("RGB", (20, 30), (i * 51, 0, 255)).save(file, "PNG")
            example = example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(file.getvalue())
            example.features.feature["label"].int64_list.value.append(label)
            writer.write(example.SerializeToString())
        writer.close()
        kinds = library.features
        image = kinds.Image(shape=(None, None, 3), encoding_format="png")
        template = library.core.ShardedFileTemplate(
            template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            dataset_name="toy",
            data_dir=str(where),
            split="train",
            filetype_suffix=file_format,
        )
        split = library.core.SplitInfo(
            name="train", shard_lengths=[len(labels)], num_bytes=0, filename_template=template
        )
        library.folder_dataset.write_metadata(
            data_dir=str(where),
            features={"image": image, "label": kinds.ClassLabel(num_classes=3)},
            split_infos=[split],
            filename_template=template.template,
            check_data=False,
        )
        return str(tmp_path)

    return prepare


def test_tfds_reads_array_record(prepared):
    data = tfds.Tfds(dataset="toy", size=8, data_dir=prepared("array_record"))
    assert len(data) == 5 and data.num_classes == 3 and data.labels() is None
    for i in range(5):
        record = data.read(i, np.random.default_rng(i))
        assert record["data"].shape == (8, 8, 3) and record["condition"] == (0, 1, 2, 0, 1)[i]
        np.testing.assert_allclose(record["data"][0, 0], (i * 0.4 - 1, -1, 1), atol=1e-6)
    whole = read(data, batch_size=4, seed=1, count=3)
    same(whole[1:], read(data, batch_size=4, seed=1, start=1, count=2))
    assert len(loader.fingerprint(data)) == 16


@pytest.mark.slow
def test_tfds_in_workers(prepared):
    data = tfds.Tfds(dataset="toy", size=8, data_dir=prepared("array_record"))
    options = dict(batch_size=4, seed=1, count=3)
    same(read(data, **options), read(data, workers=1, **options))


def test_tfds_errors(prepared):
    where = prepared("tfrecord")
    with pytest.raises(ValueError, match=r"tfds build toy --file_format=array_record"):
        tfds.Tfds(dataset="toy", size=8, data_dir=where)
    with pytest.raises(ValueError, match="no split 'test' but"):
        tfds.Tfds(dataset="toy", size=8, split="test", data_dir=where)
    with pytest.raises(ValueError, match=r"no feature 'picture'.*'image'"):
        tfds.Tfds(dataset="toy", size=8, data_dir=where, image_key="picture")
    with pytest.raises(ValueError, match="no TFDS dataset 'no_such_set'"):
        tfds.Tfds(dataset="no_such_set", size=8, data_dir=where)


def test_tfds_unlabelled(prepared):
    data = tfds.Tfds(dataset="toy", size=8, data_dir=prepared("array_record", labels=(-1,)))
    with pytest.raises(ValueError, match=r"record 0 has labels from -1 to -1"):
        data.read(0, np.random.default_rng(0))


def test_tfds_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxar\[tfds\]'"):
        tfds.Tfds(dataset="mnist", size=8)


# ---------------------------------------------------------------------------------- imports


def test_imports_are_light():
    code = """if True:
        import sys
        from jaxar.data import folder, glyphs, latents, loader, source, tfds
        heavy = {"jax", "flax", "grain", "sklearn", "PIL", "array_record", "tensorflow_datasets"}
        print(sorted(heavy & set(sys.modules)))"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
