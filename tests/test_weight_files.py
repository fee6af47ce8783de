"""Weights files: every format gives the numbers that were written, and a hostile one an error.

`python -m tests.test_weight_files` writes the files of goldens/torch_* anew; it needs PyTorch.
"""

import argparse
import builtins
import collections
import io
import json
import os
import pathlib
import pickle
import posix
import random
import signal
import socket
import struct
import subprocess
import zipfile
import zlib

import ml_dtypes
import numpy as np
import pytest

from jaxar.weights import archive, opcodes, torch_file
from jaxar.weights import tables as core
from jaxar.weights.files import WeightsError, read_state
from jaxar.weights.graph_def import read_constants
from jaxar.weights.tables import Row, convert, convolution, linear

GOLDENS = pathlib.Path(__file__).parent / "goldens"
RNG = np.random.default_rng(0)
SECONDS = 30

# What real files hold, written by real PyTorch.


def plain_state(torch):
    """A state dict with every dtype, with views, and with tensors that share a storage."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    shared = draw(4, 6)
    state = collections.OrderedDict(
        float=draw(3, 4),
        double=draw(2, 3).double(),
        half=draw(5).half(),
        bfloat16=draw(2, 5).bfloat16(),
        int64=torch.arange(-3, 3),
        int32=torch.arange(4, dtype=torch.int32),
        int16=torch.arange(4, dtype=torch.int16),
        int8=torch.arange(-2, 2, dtype=torch.int8),
        uint8=torch.arange(4, dtype=torch.uint8),
        bool=torch.tensor([True, False, True]),
        transposed=draw(3, 4).t(),
        whole=shared,
        part=shared[1:3, ::2],
        expanded=draw(3, 1).expand(3, 4),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
        channels_last=draw(1, 3, 2, 2).to(memory_format=torch.channels_last),
        parameter=torch.nn.Parameter(draw(2, 2)),
    )
    state._metadata = {"": {"version": 1}}
    return state


def checkpoint(torch):
    """A checkpoint with levels beside all the plain data that scripts save."""
    generator = torch.Generator().manual_seed(1)

    def level():
        return {
            "module.a.weight": torch.randn(2, 3, generator=generator),
            "module.a.bias": torch.randn(2, generator=generator),
        }

    options = argparse.Namespace(
        lr=1e-4,
        betas=(0.9, 0.95),
        path=pathlib.PosixPath("a/b"),
        device=torch.device("cuda", 0),
        dtype=torch.float32,
        size=torch.Size([2, 3]),
        none=None,
        flag=True,
        ids={1, 2},
        names=frozenset({"a"}),
        complex=1 + 2j,
        raw=b"\x00\xff",
        array=bytearray(b"ab"),
        large=2**70,
        numpy_float=np.float64(0.5),
        numpy_int=np.int64(7),
    )
    return {
        "model": level(),
        "model_ema": level(),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
        "scaler": {"scale": 65536.0},
        "args": options,
        "epoch": 3,
    }


def numbers(tensor):
    """A tensor of PyTorch as an array; float32 where NumPy lacks its dtype."""
    tensor = tensor.detach()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()


def write_goldens(torch):
    state, saved = plain_state(torch), checkpoint(torch)
    torch.save(state, GOLDENS / "torch_zip.pth")
    torch.save(state, GOLDENS / "torch_legacy.pth", _use_new_zipfile_serialization=False)
    np.savez(GOLDENS / "torch_zip.npz", **{key: numbers(t) for key, t in state.items()})
    torch.save(saved, GOLDENS / "torch_namespace.ckpt")
    levels = {f"{n}/{key}": t for n in ("model", "model_ema") for key, t in saved[n].items()}
    np.savez(GOLDENS / "torch_namespace.npz", **{key: numbers(t) for key, t in levels.items()})


def same_arrays(state, expected):
    assert set(state) == set(expected)
    for key, wanted in expected.items():
        array = state[key]
        assert array.shape == state.shapes[key] == wanted.shape, key
        np.testing.assert_array_equal(array.astype(wanted.dtype), wanted, err_msg=key)


# Files that are built byte by byte.


def zip_of(path, description, storages=(), **options):
    """A ZIP file as `torch.save` writes it, around any description."""
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("archive/data.pkl", description)
        file.writestr("archive/byteorder", "little")
        for i, data in enumerate(storages):
            file.writestr(f"archive/data/{i}", data)
    return path


def legacy_parts(description=b"}."):
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    head = (torch_file.MAGIC, torch_file.PROTOCOL, system)
    return [*(pickle.dumps(part, protocol=2) for part in head), description, b"\x80\x02]."]


def tensor(shape, strides, offset=0, *, count=6, key="0", kind="FloatStorage"):
    """The description of one tensor, as protocol 2 writes it."""

    def ints(values):
        return b"(" + b"".join(b"I%d\n" % v for v in values) + b"t"

    return (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
        + b"ctorch\n%s\n" % kind.encode()
        + b"X"
        + struct.pack("<I", len(key))
        + key.encode()
        + b"X\x03\x00\x00\x00cpuI%d\ntQI%d\n" % (count, offset)
        + ints(shape)
        + ints(strides)
        + b"\x89ccollections\nOrderedDict\n)RtRs."
    )


FLOATS = np.arange(6, dtype=np.float32)
GOOD = tensor((2, 3), (3, 1))


def safetensors_of(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.fixture
def npz(tmp_path):
    arrays = {
        "a": RNG.normal(size=(3, 4)).astype(np.float32),
        "b/c": np.asfortranarray(RNG.normal(size=(2, 3, 5))),
        "half": np.arange(5, dtype=np.float16),
        "count": np.array(7),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 2), np.int32),
        "zeros": np.zeros(3_000_000, np.uint8),
    }
    np.savez(tmp_path / "stored.npz", **arrays)
    np.savez_compressed(tmp_path / "packed.npz", **arrays)
    return arrays


# Round trips.


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_files_of_pytorch_give_its_numbers(name):
    with read_state(GOLDENS / name) as state, np.load(GOLDENS / "torch_zip.npz") as expected:
        assert state.level == "" and list(state) == list(expected)
        same_arrays(state, expected)
        kinds = {key: state[key].dtype for key in state}
    assert kinds["bfloat16"] == ml_dtypes.bfloat16 and kinds["half"] == np.float16
    assert all(kinds[k] == k for k in ("int64", "int32", "int16", "int8", "uint8", "bool"))


@pytest.mark.parametrize(
    ("asked", "taken"), [(None, "model_ema"), ("model", "model"), ("model_ema", "model_ema")]
)
def test_a_checkpoint_has_levels(asked, taken):
    with np.load(GOLDENS / "torch_namespace.npz") as file:
        start = f"{taken}/module."
        expected = {k.removeprefix(start): file[k] for k in file if k.startswith(start)}
    with read_state(GOLDENS / "torch_namespace.ckpt", asked) as state:
        assert state.level == taken
        same_arrays(state, expected)


def test_a_level_that_is_not_there_lists_those_that_are():
    with pytest.raises(WeightsError, match=r"'ema'.*levels: model, model_ema\."):
        read_state(GOLDENS / "torch_namespace.ckpt", "ema")


def test_levels_are_found_inside_others(tmp_path):
    inner = b"X\x01\x00\x00\x00a}X\x01\x00\x00\x00b" + GOOD[2:-1] + b"ss."
    path = zip_of(tmp_path / "x.pth", b"\x80\x02}" + inner, [FLOATS.tobytes()])
    with pytest.raises(WeightsError, match=r"levels: a\.b\."):
        read_state(path)
    with read_state(path, "a.b") as state:
        np.testing.assert_array_equal(state["w"], FLOATS.reshape(2, 3))


@pytest.mark.parametrize("legacy", [False, True])
def test_what_pytorch_saves_now_is_what_we_read(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    state = plain_state(torch)
    torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    torch.save(checkpoint(torch), tmp_path / "x.ckpt", _use_new_zipfile_serialization=not legacy)
    loaded = torch.load(tmp_path / "x.pt", weights_only=True)
    same_arrays(read_state(tmp_path / "x.pt"), {key: numbers(t) for key, t in loaded.items()})
    assert read_state(tmp_path / "x.ckpt").level == "model_ema"


@pytest.mark.parametrize("name", ["stored.npz", "packed.npz"])
def test_npz_round_trips(tmp_path, npz, name):
    with read_state(tmp_path / name) as state:
        same_arrays(state, npz)
        assert {k: state[k].dtype for k in state} == {k: v.dtype for k, v in npz.items()}


def test_safetensors_round_trip(tmp_path):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    arrays = {
        "w": RNG.normal(size=(3, 4)).astype(np.float32),
        "half": np.arange(5, dtype=np.float16),
        "brain": np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3),
        "scalar": np.array(3, np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "flags": np.array([True, False]),
    }
    save_file(arrays, tmp_path / "x", metadata={"format": "np"})
    with read_state(tmp_path / "x") as state:  # by its content: the name says nothing
        same_arrays(state, arrays)
        assert state["brain"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_a_wrapper_before_every_key_is_dropped(tmp_path, prefix):
    np.savez(tmp_path / "x.npz", **{prefix + "a": FLOATS, prefix + "b": FLOATS})
    np.savez(tmp_path / "y.npz", **{prefix + "a": FLOATS, "b": FLOATS})
    assert list(read_state(tmp_path / "x.npz")) == ["a", "b"]
    assert list(read_state(tmp_path / "y.npz")) == [prefix + "a", "b"]


def test_a_state_is_a_mapping_read_anew(tmp_path):
    np.savez(tmp_path / "x.npz", a=FLOATS)
    with read_state(tmp_path / "x.npz") as state:
        state["a"][:] = 9
        np.testing.assert_array_equal(state["a"], FLOATS)
        assert "b" not in state and len(state) == 1 and state.path == str(tmp_path / "x.npz")
        with pytest.raises(KeyError):
            state["b"]
        digest = state.sha256()
    assert len(digest) == 64 and digest == read_state(tmp_path / "x.npz").sha256()


def test_views_of_one_storage_are_read_apart(tmp_path, monkeypatch):
    """Their bytes alone, once the checksum of the whole has been seen."""
    with read_state(GOLDENS / "torch_zip.pth") as state:
        part, whole = state["part"], state["whole"]
        np.testing.assert_array_equal(part, whole[1:3, ::2])
        monkeypatch.setattr(zlib, "crc32", None)
        np.testing.assert_array_equal(state["part"], part)


# The engine reads each tensor once.


class Counted(dict):
    def __init__(self, arrays):
        super().__init__(arrays)
        self.shapes = {key: array.shape for key, array in arrays.items()}
        self.reads = collections.Counter()

    def __getitem__(self, key):
        self.reads[key] += 1
        return super().__getitem__(key)


ROWS = (
    Row("blocks.{i}.w", "blocks/kernel", linear),
    Row("conv", "conv", convolution),
    Row("one", "one", linear),
    Row("b", "b"),
)
TEMPLATE = {
    "blocks": {"kernel": np.zeros((3, 130, 3, 50))},
    "conv": np.zeros((3, 2, 5, 70)),
    "one": np.zeros((5, 7)),
    "b": np.zeros(()),
}


def released():
    return {
        **{f"blocks.{i}.w": RNG.normal(size=(150, 130)) for i in range(3)},
        "conv": RNG.normal(size=(70, 5, 3, 2)).astype(np.float16),
        "one": RNG.normal(size=(7, 5, 1, 1)),
        "b": np.array(3, np.int64),
    }


def test_conversion_reads_each_tensor_once():
    arrays = released()
    state = Counted(arrays | {"left": np.zeros(3)})
    ours = convert(state, ROWS, TEMPLATE, ignore=("left",))
    assert state.reads == dict.fromkeys(arrays, 1)
    for i in range(3):
        kernel = arrays[f"blocks.{i}.w"].astype(np.float32).T.reshape(130, 3, 50)
        np.testing.assert_array_equal(ours["blocks"]["kernel"][i], kernel)
    np.testing.assert_array_equal(ours["conv"], arrays["conv"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(ours["one"], arrays["one"][:, :, 0, 0].T.astype(np.float32))
    assert ours["b"] == 3 and ours["b"].dtype == np.float32


def test_nothing_is_read_if_anything_does_not_fit():
    state = Counted(released() | {"conv": np.zeros((70, 5, 2, 3)), "one": np.zeros((7, 5, 3, 1))})
    with pytest.raises(WeightsError) as error:
        convert(state, ROWS, TEMPLATE)
    assert str(error.value).split("\n  ")[1:] == [
        "key conv has shape (70, 5, 2, 3), which does not fit (3, 2, 5, 70)",
        "key one has shape (7, 5, 3, 1), which does not fit (5, 7)",
    ]
    assert not state.reads


def test_a_convolution_stays_the_same_map():
    weight, x = RNG.normal(size=(6, 5, 3, 3)), RNG.normal(size=(5, 3, 3))
    kernel = convolution(weight, (3, 3, 5, 6))
    ours = np.einsum("hwi,hwio->o", x.transpose(1, 2, 0), kernel)
    np.testing.assert_allclose(ours, np.einsum("ihw,oihw->o", x, weight))
    one = RNG.normal(size=(6, 5, 1, 1))
    np.testing.assert_array_equal(linear(one, (5, 6)), one[:, :, 0, 0].T)


@pytest.mark.parametrize("shape", [(3, 5), (200, 1, 300), (65, 1), (1, 1), (7, 64, 2)])
def test_panels_copy_every_element(shape):
    view = np.arange(np.prod(shape), dtype=np.float32).reshape(shape[::-1]).T
    out = np.empty(shape, np.float32)
    core._lay(view, out)
    np.testing.assert_array_equal(out, view)


# Hostile files. Nothing may happen but the declared error.


@pytest.fixture
def guarded(tmp_path, monkeypatch):
    """A directory in which nothing can be run, and in which no test may hang."""

    def fail(*_, **__):
        raise AssertionError("a file ran something")

    def hang(*_):
        raise AssertionError("a file made its reader hang")

    for module, name in ((os, "system"), (posix, "system"), (socket, "socket")):
        monkeypatch.setattr(module, name, fail)
    monkeypatch.setattr(subprocess, "Popen", fail)
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    yield tmp_path
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    assert not (tmp_path / "marker").exists()


class Calls:
    """An object whose pickle is a call."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


TOUCH = "touch marker"
OPEN = "open('marker', 'w')"


def objects():
    """An .npz file with an array of objects whose pickle is a call."""
    np.savez(file := io.BytesIO(), a=FLOATS, b=np.array([Calls(os.system, TOUCH)], dtype=object))
    return file.getvalue()


OBJECTS = objects()


def dumps(value, protocol=2):
    return pickle.dumps({"w": value}, protocol=protocol)


def nested_key():
    """((((), ()), ...) as a key: hashing it would take 2^60 steps."""
    return b"}" + b")" + b"2\x86" * 60 + b"Ns."


def many_sets():
    """A list of 1000 numbers, made a set over and over."""
    items = b"(" + b"".join(b"M" + struct.pack("<H", i) for i in range(1000)) + b"lq\x00"
    return b"\x80\x02" + items + b"c__builtin__\nset\nh\x00\x85R0" * 50 + b"."


HOSTILE = {
    "reduce-system": dumps(Calls(os.system, TOUCH)),
    "reduce-system-0": dumps(Calls(os.system, TOUCH), 0),
    "reduce-system-4": dumps(Calls(os.system, TOUCH), 4),
    "eval": dumps(Calls(eval, OPEN)),
    "exec": dumps(Calls(exec, OPEN)),
    "popen": dumps(Calls(subprocess.Popen, ["touch", "marker"])),
    "import": dumps(Calls(builtins.__import__, "os")),
    "getattr": dumps(Calls(getattr, "", "join")),
    "open": dumps(Calls(open, "marker", "w")),
    "inst": b"(S'touch marker'\niposix\nsystem\n.",
    "inst-plain": b"(icollections\nOrderedDict\n.",
    "obj": b"(cposix\nsystem\nS'touch marker'\no.",
    "obj-plain": b"(ccollections\nOrderedDict\no.",
    "newobj": b"\x80\x02cposix\nsystem\nS'touch marker'\n\x85\x81.",
    "newobj-arguments": b"\x80\x02cargparse\nNamespace\n}\x85\x81.",
    "newobj-ex": b"\x80\x04\x8c\x09argparse\x8c\x09Namespace\x93)}\x92.",
    "stack-global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0ctouch marker\x85R.",
    "stack-global-dots": b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93)R.",
    "extension": b"\x80\x02\x82\x01.",
    "extension-2": b"\x80\x02\x83\x01\x00.",
    "extension-4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "setstate": b"cargparse\nNamespace\n)\x81}S'__setstate__'\ncos\nsystem\nsbS'touch marker'\nb.",
    "setstate-inert": b"cargparse\nNamespace\n)\x81}S'__setstate__'\nNsbS'touch marker'\nb.",
    "build-text": b"S'a'\n}b.",
    "call-a-text": b"S'os.system'\nS'touch marker'\n\x85R.",
    "call-a-dtype": b"ctorch\nfloat32\n)R.",
    "persistent-text": b"P0\n.",
    "persistent-call": b"(S'storage'\ncposix\nsystem\nS'0'\nS'cpu'\nI6\ntQ.",
    "persistent-module": b"(S'module'\nS'a'\nS'b'\nS'c'\nS'd'\ntQ.",
    "load-from-bytes": b"\x80\x02ctorch.storage\n_load_from_bytes\nU\x01a\x85R.",
    "numpy-object": b"\x80\x02cnumpy\ndtype\nU\x02O8\x85R.",
    "numpy-array": dumps(np.zeros(2)),
    "memo-index": b"Nr\xff\xff\xff\xff.",
    "memo-index-text": b"Np99999999999999999999\n.",
    "memo-missing": b"h\x05.",
    "long-4": b"\x8b\xff\xff\xff\x7f.",
    "long-4-negative": b"\x8b\xff\xff\xff\xff.",
    "long-text": b"L" + b"9" * 100_000 + b"L\n.",
    "bytes-8": b"\x8e" + struct.pack("<Q", 1 << 62) + b"a.",
    "bytes-8-sign": b"\x8e\xff\xff\xff\xff\xff\xff\xff\xffa.",
    "text-8": b"\x8d" + struct.pack("<Q", 1 << 40) + b"a.",
    "array-8": b"\x96" + struct.pack("<Q", 1 << 40) + b"a.",
    "buffer": b"\x80\x05\x97.",
    "marks": b"(" * 5000 + b".",
    "deep": b")" + b"\x85" * 8000 + b".",
    "dup": b"]" + b"2" * 20_000 + b".",
    "append-itself": b"]" + b"2a" * 10 + b"2" * 20_000 + b".",
    "key-nested": nested_key(),
    "key-large": b"}\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x01Ns.",
    "copies": many_sets(),
    "pops": b"0.",
    "empty": b"",
    "no-stop": b"}",
    "not-a-dict": b"]NNs.",
    "odd-items": b"}(NNNu.",
    "unknown": b"\xff.",
    "tensor-beyond": tensor((2, 3), (3, 1), 1),
    "tensor-offset": tensor((1,), (1,), 1 << 62),
    "tensor-negative": tensor((2, 3), (-3, 1), 5),
    "tensor-negative-size": tensor((-2, -3), (3, 1)),
    "tensor-huge": tensor((1 << 40, 1 << 40), (0, 0)),
    "tensor-huge-empty": tensor((0, 1 << 62, 1 << 62), (0, 0, 0)),
    "tensor-axes": tensor((1,) * 100, (1,) * 100),
    "tensor-uneven": tensor((2, 3), (1,)),
    "storage-size": tensor((2, 3), (3, 1), count=7),
    "storage-negative": tensor((2, 3), (3, 1), count=-6),
    "storage-dtype": tensor((2, 3), (3, 1), kind="DoubleStorage"),
    "storage-name": tensor((2, 3), (3, 1), key="../../data.pkl"),
    "storage-kind": tensor((2, 3), (3, 1), kind="Size"),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_hostile_description_is_refused(guarded, monkeypatch, case, legacy):
    monkeypatch.setattr(opcodes, "MAX_OPCODES", 10_000)
    monkeypatch.setattr(opcodes, "MAX_COPIED", 10_000)
    path = guarded / "x.pth"
    if legacy:
        *head, _ = legacy_parts(HOSTILE[case])
        keys = pickle.dumps(["0"], protocol=2)
        path.write_bytes(b"".join((*head, keys, struct.pack("<q", 6), FLOATS.tobytes())))
    else:
        zip_of(path, HOSTILE[case], [FLOATS.tobytes()])
    with pytest.raises(WeightsError) as error:
        read_state(path)
    text = str(error.value)
    assert text.startswith(f"{path} ") and text.endswith(".") and "\n" not in text


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("reduce-system", "posix.system"),
        ("eval", "builtins.eval"),
        ("getattr", "builtins.getattr"),
        ("inst", "posix.system"),
        ("load-from-bytes", "torch.storage._load_from_bytes"),
    ],
)
def test_the_error_names_what_was_asked_for(guarded, case, name):
    with pytest.raises(WeightsError, match=f"asks for {name},"):
        read_state(zip_of(guarded / "x.pth", HOSTILE[case]))


@pytest.mark.parametrize("place", range(5))
def test_every_pickle_of_the_older_format_is_restricted(guarded, place):
    parts = legacy_parts()
    parts[place] = HOSTILE["reduce-system"]
    (guarded / "x.pth").write_bytes(b"".join(parts))
    with pytest.raises(WeightsError):
        read_state(guarded / "x.pth")


def altered(path, function):
    """A ZIP file whose directory was changed: the entries are bytearrays."""
    data = path.read_bytes()
    start = data.index(b"PK\1\2")
    end = data.rindex(b"PK\5\6")
    pieces = [bytearray(b"PK\1\2" + piece) for piece in data[start:end].split(b"PK\1\2")[1:]]
    function(pieces)
    directory = b"".join(pieces)
    tail = bytearray(data[end:])
    struct.pack_into("<HHII", tail, 8, len(pieces), len(pieces), len(directory), start)
    path.write_bytes(data[:start] + directory + tail)
    return path


def overlap(pieces):
    pieces[-1][42:46] = pieces[-2][42:46]
    name = pieces[-2][46 : 46 + struct.unpack_from("<H", pieces[-2], 28)[0]]
    pieces[-1] = pieces[-1][:46] + name
    struct.pack_into("<H", pieces[-1], 28, len(name))


def set_sizes(pieces):
    struct.pack_into("<II", pieces[-1], 20, 1 << 30, 1 << 30)


def bomb(pieces):
    struct.pack_into("<I", pieces[-1], 24, 1 << 30)


def encrypt(pieces):
    pieces[-1][8] |= 1


def count_up(pieces):
    pieces += [pieces[-1]] * 50


@pytest.mark.parametrize("change", [overlap, set_sizes, bomb, encrypt, count_up])
def test_a_directory_that_lies_is_refused(guarded, monkeypatch, change):
    monkeypatch.setattr(archive, "MAX_MEMBERS", 40)
    path = zip_of(guarded / "x.pth", GOOD, [FLOATS.tobytes(), FLOATS.tobytes()])
    assert list(read_state(path)) == ["w"]
    with pytest.raises(WeightsError):
        read_state(altered(path, change))
    np.savez(guarded / "x.npz", a=FLOATS, b=FLOATS)
    with pytest.raises(WeightsError):
        read_state(altered(guarded / "x.npz", change))


def test_a_compressed_checkpoint_is_refused(guarded):
    zeros = [bytes(1 << 20)]
    path = zip_of(guarded / "x.pth", GOOD, zeros, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="compressed"):
        read_state(path)


@pytest.mark.parametrize("name", ["../x.npy", "/x.npy", "a/../../x.npy", "c:x.npy", "..\\x.npy"])
def test_names_outside_of_the_archive_are_refused(guarded, name):
    np.save(file := io.BytesIO(), FLOATS)
    with zipfile.ZipFile(guarded / "x.npz", "w") as archived:
        archived.writestr(name, file.getvalue())
    with pytest.raises(WeightsError, match="name"):
        read_state(guarded / "x.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_repeat_are_refused(guarded):
    with zipfile.ZipFile(guarded / "x.pth", "w") as file:
        for description in (GOOD, HOSTILE["reduce-system"]):
            file.writestr("archive/data.pkl", description)
    with pytest.raises(WeightsError, match="name"):
        read_state(guarded / "x.pth")


def test_a_damaged_tensor_is_found_when_it_is_read(guarded):
    path = zip_of(guarded / "x.pth", GOOD, [FLOATS.tobytes()])
    path.write_bytes(path.read_bytes().replace(FLOATS.tobytes(), FLOATS[::-1].tobytes()))
    with pytest.raises(WeightsError, match=r"x\.pth .*checksum"):
        read_state(path)["w"]


def test_a_file_that_shrinks_is_found(guarded):
    path = zip_of(guarded / "x.pth", GOOD, [FLOATS.tobytes()])
    state = read_state(path)
    os.truncate(path, 10)
    with pytest.raises(WeightsError, match="too early"):
        state["w"]


def test_big_endian_files_are_refused(guarded):
    with zipfile.ZipFile(guarded / "x.pth", "w") as file:
        file.writestr("archive/data.pkl", GOOD)
        file.writestr("archive/byteorder", "big")
        file.writestr("archive/data/0", FLOATS.tobytes())
    with pytest.raises(WeightsError, match="big-endian"):
        read_state(guarded / "x.pth")


def test_arrays_of_objects_are_refused(guarded):
    (guarded / "x.npz").write_bytes(OBJECTS)
    with pytest.raises(WeightsError, match="objects"):
        read_state(guarded / "x.npz")


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"


@pytest.mark.parametrize(
    "header",
    [
        HEADER % "1000000000, 1000000000,",
        HEADER % "5,",
        HEADER % ("1," * 100),
        HEADER % "-6,",
        HEADER % ("9" * 5000),
        HEADER.replace("<f4", "|O") % "6,",
        HEADER.replace("'<f4'", "[('a', '<f4')]") % "6,",
        HEADER.replace("'<f4'", "__import__('os').system('touch marker')") % "6,",
        "(" * 5000,
    ],
)
def test_headers_of_arrays_are_checked(guarded, header):
    text = header.encode() + b"\n"
    member = b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + FLOATS.tobytes()
    with zipfile.ZipFile(guarded / "x.npz", "w") as file:
        file.writestr("a.npy", member)
    with pytest.raises(WeightsError):
        read_state(guarded / "x.npz")


WEIGHT = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": WEIGHT, "b": WEIGHT},
        {"a": WEIGHT | {"shape": [2, 4]}},
        {"a": WEIGHT | {"data_offsets": [0, 48]}},
        {"a": WEIGHT | {"data_offsets": [8, 32]}},
        {"a": WEIGHT | {"shape": [1 << 40, 1 << 40]}},
        {"a": WEIGHT | {"dtype": "O"}},
        b"{" + b'"a":{' * 10_000,
        b"{not json}",
        b"{}",
    ],
)
def test_headers_of_safetensors_are_checked(guarded, header):
    with pytest.raises(WeightsError):
        read_state(safetensors_of(guarded / "x.safetensors", header, FLOATS.tobytes()))


def test_a_huge_header_is_not_read(guarded):
    (guarded / "x").write_bytes(struct.pack("<Q", 1 << 62) + b"{" + bytes(100))
    with pytest.raises(WeightsError, match="header"):
        read_state(guarded / "x")


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"cos\nsystem\n.", b"\x80\x04N.", bytes(99)])
def test_other_files_are_refused(guarded, content):
    (guarded / "x.pth").write_bytes(content)
    with pytest.raises(WeightsError, match="give"):
        read_state(guarded / "x.pth")
    with pytest.raises(WeightsError, match=r"missing\.pth .*check the path"):
        read_state(guarded / "missing.pth")


@pytest.fixture
def files(tmp_path):
    """A good file of each format."""
    state = read_state(GOLDENS / "torch_zip.pth")
    arrays = {key: np.array(state[key]) for key in ("float", "half", "int64", "scalar")}
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    pytest.importorskip("safetensors.numpy").save_file(arrays, tmp_path / "c.safetensors")
    names = ("torch_zip.pth", "torch_legacy.pth", "torch_namespace.ckpt")
    return [
        *(GOLDENS / name for name in names),
        *(tmp_path / name for name in ("a.npz", "b.npz", "c.safetensors")),
    ]


CHECKED = ("torch_zip.pth", "torch_namespace.ckpt", "a.npz", "b.npz")
"""Files of formats with checksums."""


def test_a_file_cut_anywhere_is_refused_or_read(guarded, files):
    for file in files:
        data = file.read_bytes()
        for end in range(0, len(data), 61):
            (guarded / "cut").write_bytes(data[:end])
            with pytest.raises(WeightsError):
                state = read_state(guarded / "cut")
                _ = [state[key] for key in state]


def test_a_flipped_byte_is_an_error_or_changes_nothing(guarded, files):
    """Where a format has checksums; without them the numbers or names may be others."""
    draw = random.Random(0)
    for number in range(240):
        file = files[number % len(files)]
        data = bytearray(file.read_bytes())
        data[draw.randrange(len(data))] ^= draw.randrange(1, 256)
        (guarded / "flipped").write_bytes(data)
        try:
            with read_state(guarded / "flipped") as state:
                read = {key: state[key] for key in state}
        except WeightsError:
            continue
        if file.name in CHECKED:
            with read_state(file) as good:
                assert set(read) == set(good), number
                for key in good:
                    np.testing.assert_array_equal(read[key], good[key])


# Graphs of TensorFlow.


def varint(number):
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def node(name, kind, *fields_of_tensor, op=b"Const", shape=()):
    axes = b"".join(field(2, field(1, size)) for size in shape)
    value = b"".join((field(1, kind), field(2, axes), *fields_of_tensor))
    attribute = field(1, b"value") + field(2, field(8, value))
    other = field(1, b"dtype") + field(2, field(6, kind))
    return field(1, field(1, name) + field(2, op) + field(5, other) + field(5, attribute))


def test_constants_of_a_graph(tmp_path):
    weight = RNG.normal(size=(3, 3, 2, 4)).astype(np.float32)
    floats = np.arange(3, dtype=np.float32)
    graph = b"".join(
        (
            node(b"conv/weights", 1, field(4, weight.tobytes()), shape=weight.shape),
            node(b"packed", 1, field(5, floats.tobytes()), shape=(3,)),
            node(b"apart", 1, *(b"\x2d" + x.tobytes() for x in floats), shape=(3,)),
            node(b"filled", 1, field(5, floats[2:].tobytes()), shape=(2, 2)),
            node(b"shape", 3, field(7, varint(5) + varint((1 << 64) - 1)), shape=(2,)),
            node(b"scalar", 3, field(7, 9)),
            node(b"text", 7, field(8, b"a")),
            node(b"no", 1, field(5, floats.tobytes()), op=b"Placeholder", shape=(3,)),
            field(4, field(1, 22)),
        )
    )
    (tmp_path / "x.pb").write_bytes(graph)
    constants = read_constants(tmp_path / "x.pb")
    expected = {
        "conv/weights": weight,
        "packed": floats,
        "apart": floats,
        "filled": np.full((2, 2), 2, np.float32),
        "shape": np.array([5, -1], np.int32),
        "scalar": np.array(9, np.int32),
    }
    assert list(constants) == list(expected)
    for name, array in expected.items():
        assert constants[name].dtype == array.dtype
        np.testing.assert_array_equal(constants[name], array)


@pytest.mark.parametrize(
    "graph",
    [
        b"",
        b"\xff" * 30,
        b"\x0b\x0c",
        field(1, b"")[:1] + varint(1 << 60),
        node(b"a", 1, field(4, bytes(8)), shape=(3,)),
        node(b"a", 1, field(4, bytes(7)), shape=(2,)),
        node(b"a", 1, field(5, bytes(12)), shape=(2,)),
        node(b"a", 1, field(5, bytes(4)), shape=(1 << 20, 1 << 20)),
        node(b"a", 1, shape=((1 << 64) - 1,)),
        node(b"a", 1, shape=(1,) * 100),
        node(b"a", 3, field(5, bytes(4)), shape=(1,)),
        node(b"a", 3, field(7, 1), shape=(1,)) * 2,
        node(b"\xff\xfe", 3, field(7, 1), shape=(1,)),
    ],
)
def test_a_hostile_graph_is_refused(guarded, graph):
    (guarded / "x.pb").write_bytes(graph)
    with pytest.raises(WeightsError):
        read_constants(guarded / "x.pb")


def test_a_graph_flipped_or_cut_is_an_error_or_read(guarded):
    graph = node(b"a", 1, field(4, bytes(24)), shape=(2, 3)) + node(b"b", 3, field(7, 1))
    draw = random.Random(0)
    for number in range(300):
        data = bytearray(graph)
        data[draw.randrange(len(data))] ^= draw.randrange(1, 256)
        (guarded / "x.pb").write_bytes(data if number % 2 else graph[: number // 2])
        try:
            read_constants(guarded / "x.pb")
        except WeightsError:
            continue


if __name__ == "__main__":
    import torch

    write_goldens(torch)
