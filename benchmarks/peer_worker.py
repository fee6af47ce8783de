"""The official PyTorch code of xAR at work, in a process of its own.

    python -m benchmarks.peer_worker CHECKOUT

Imports PyTorch and the checkout alone; nothing of the checkout is kept here. Training is the
checkout's own `train_one_epoch` over batches in memory, sampling its own `sample_tokens`. On a
machine without CUDA, `.cuda()` changes nothing. The release fixes the 16 x 16 grid and its cells of
8 x 8 in constants; for another grid they are replaced while the modules are read.
Source: OliverRensu/xAR main_mar.py, engine_xar.py, models/xar.py.
"""

import argparse
import ast
import copy
import functools
import importlib
import importlib.machinery
import os
import sys
import time
import types
from typing import Any

from benchmarks.pipe import serve

ABSENT = ("cv2", "torch_fidelity", "flash_attn", "torchvision", "tensorboard")
"""What the checkout imports and these runs never call: empty where it is not installed."""

UNFOUND = "the checkout is not the code that this worker knows: {} has no {} in {}"


def constants(side: int) -> dict[tuple[str, str], dict[int, int]]:
    """Returns the constants of each scope that hold the geometry, and what they become.

    Args:
      side: Tokens along an edge of the grid, of 2 x 2 cells.
    """
    cell = (side // 2) ** 2
    return {
        ("models.xar", "Attention.__init__"): {16: side},
        ("models.xar", "Attention.forward"): {64: cell},
        ("models.xar", "Block.forward"): {64: cell},
        ("models.xar", "xAR.unclusterify"): {8: side // 2, 16: side},
        ("models.xar", "xAR.sample_tokens"): {64: cell},
        ("models.sampler", "euler_sampler"): {},
        ("models.sampler", "euler_maruyama_sampler"): {64: cell},
        ("models.rope", "VisionRotaryEmbeddingFast.__init__"): {256: side * side},
    }


class _Resized(importlib.machinery.SourceFileLoader):
    """Reads a module and replaces constants in some of its functions."""

    changes: dict[str, dict[int, int]]

    def source_to_code(self, data: Any, path: Any, **_: Any) -> Any:
        tree = ast.parse(data)
        for scope, table in self.changes.items():
            found = set()
            for node in ast.walk(_scope(tree, scope, self.name)):
                if isinstance(node, ast.Constant) and type(node.value) is int:
                    if node.value in table:
                        found.add(node.value)
                        node.value = table[node.value]
            if missing := set(table) - found:
                raise ImportError(UNFOUND.format(self.name, f"constant {missing}", scope))
        return compile(tree, path, "exec")

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _scope(tree: ast.AST, scope: str, module: str) -> ast.AST:
    for name in scope.split("."):
        inner = [n for n in getattr(tree, "body", []) if getattr(n, "name", None) == name]
        if not inner:
            raise ImportError(UNFOUND.format(module, name, scope))
        tree = inner[-1]
    return tree


class _Names(type):
    """A class in which every name is itself."""

    def __getattr__(cls, name: str) -> str:
        return name


class _Empty(types.ModuleType):
    """A module in which every name is a class with nothing in it."""

    __path__: list[str] = []  # noqa: RUF012 -- a package, whose modules are found likewise

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Names(name, (), {})


class _Absent:
    """Finds empty modules in place of those that are not installed; asked after all others."""

    def find_spec(self, name: str, *_: Any) -> Any:
        known = name.split(".")[0] in ABSENT
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: Any) -> Any:
        return _Empty(spec.name)

    def exec_module(self, module: Any) -> None:
        pass


class _Finder:
    """Finds the modules that are read resized."""

    def __init__(self, root: str, side: int):
        self._root, self._table = root, constants(side)

    def find_spec(self, name: str, *_: Any) -> Any:
        changes = {scope: table for (module, scope), table in self._table.items() if module == name}
        if not changes:
            return None
        loader = _Resized(name, os.path.join(self._root, *name.split(".")) + ".py")
        loader.changes = changes
        return importlib.machinery.ModuleSpec(name, loader, origin=loader.path)


class Peer:
    """The official model and what trains or samples it.

    Args:
      root: Folder of the checkout.
    """

    def __init__(self, root: str):
        self._root = root

    def prepare(
        self, *, what: str, batch: int, dtype: str, threads: int, compiled: bool, sizes: Any
    ) -> dict[str, Any]:
        """Makes the model; `run` then takes steps, or draws batches.

        Args:
          what: "train" or "sample".
          batch: Images in a step or sampling.
          dtype: "float32", or "bfloat16" under automatic mixed precision.
          threads: Of the CPU.
          compiled: Whether to use `torch.compile`.
          sizes: Of the model and its optimiser, see `benchmarks.peer.sizes`.
        """
        torch = _torch(dtype)
        torch.set_num_threads(threads)
        modules = _modules(self._root, sizes["side"])
        model = _model(modules["models.xar"], sizes)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        model.to(self._device)
        make = {"train": self._training, "sample": self._sampling}[what]
        self._step = make(torch, modules, model, batch, sizes, compiled)
        return {
            "parameters": sum(p.numel() for p in model.parameters()),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if self._device == "cuda" else "cpu",
        }

    def run(self, *, count: int) -> dict[str, Any]:
        """Returns the seconds of `count` steps or batches, all work done."""
        import torch

        began = time.perf_counter()
        self._step(count)
        if self._device == "cuda":
            torch.cuda.synchronize()
        return {"seconds": time.perf_counter() - began}

    def device_peak(self) -> dict[str, Any]:
        """Returns the peak of the device's memory in bytes, None on a CPU."""
        import torch

        peak = torch.cuda.max_memory_allocated() if self._device == "cuda" else None
        return {"peak": peak}

    def _training(self, torch, modules, model, batch, sizes, compiled):
        misc, engine = modules["util.misc"], modules["engine_xar"]
        groups = misc.add_weight_decay(model, sizes["weight_decay"])
        optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(sizes["beta1"], sizes["beta2"]))
        params = list(model.parameters())
        average, scaler = copy.deepcopy(params), misc.NativeScalerWithGradNormCount()
        options = argparse.Namespace(
            use_cached=True,
            grad_clip=sizes["clip_norm"],
            ema_rate=sizes["ema"],
            warmup_epochs=1,
            lr=1e-4,
            min_lr=1e-5,
        )
        side, classes = sizes["side"], sizes["num_classes"]
        data = torch.randn(batch, 2 * sizes["channels"], side, side)
        labels = torch.arange(batch) % classes
        called = torch.compile(model) if compiled else model

        def steps(count):
            engine.train_one_epoch(
                *(called, None, params, average, [(data, labels)] * count, optimizer),
                *(torch.device(self._device), 0, scaler, None, options),
            )

        return steps

    def _sampling(self, torch, modules, model, batch, sizes, compiled):
        model.eval()
        labels = (torch.arange(batch) % sizes["num_classes"]).cuda()
        if compiled:
            model.sample_inference = torch.compile(model.sample_inference)

        def batches(count):
            with torch.no_grad(), torch.cuda.amp.autocast():
                for _ in range(count):
                    model.sample_tokens(sizes["steps"], cfg=sizes["guidance"], label=labels)

        return batches


def _torch(dtype: str) -> Any:
    """Returns PyTorch with its mixed precision set to a dtype, and with `.cuda()` on any machine.

    The release runs under float16; bfloat16 needs no scaling of the loss, float32 no mixing.
    """
    import torch

    mixed = dtype != "float32"
    kind = getattr(torch, dtype)
    torch.cuda.amp.autocast = functools.partial(  # pyright: ignore
        torch.autocast, "cuda" if torch.cuda.is_available() else "cpu", dtype=kind, enabled=mixed
    )
    torch.cuda.amp.GradScaler = functools.partial(  # pyright: ignore
        torch.amp.GradScaler, enabled=False
    )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda self, *_, **__: self
        torch.cuda.synchronize = lambda *_, **__: None
    return torch


def _modules(root: str, side: int) -> dict[str, Any]:
    """Returns the modules of the checkout, resized where the grid is not the release's."""
    sys.path.insert(0, root)
    sys.meta_path.append(_Absent())  # pyright: ignore
    if side != 16:
        sys.meta_path.insert(0, _Finder(root, side))  # pyright: ignore
    names = ("models.xar", "util.misc", "engine_xar")
    return {name: importlib.import_module(name) for name in names}


def _model(module: Any, sizes: dict[str, Any]) -> Any:
    """Returns the official model of these sizes, with its own initial values."""
    encoder, decoder = sizes["depth"]
    return module.xAR(
        img_size=16 * sizes["side"],
        vae_stride=16,
        vae_embed_dim=sizes["channels"],
        encoder_embed_dim=sizes["width"],
        encoder_depth=encoder,
        encoder_num_heads=sizes["heads"],
        decoder_embed_dim=sizes["width"],
        decoder_depth=decoder,
        decoder_num_heads=sizes["heads"],
        mlp_ratio=sizes["mlp_ratio"],
        label_drop_prob=sizes["label_dropout"],
        attn_dropout=sizes["attention_dropout"],
        proj_dropout=sizes["dropout"],
    )


def main() -> None:
    """Serves until standard input ends."""
    peer = Peer(sys.argv[1])
    serve({"prepare": peer.prepare, "run": peer.run, "device_peak": peer.device_peak})


if __name__ == "__main__":
    main()
