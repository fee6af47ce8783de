"""The official PyTorch code of xAR at work, in a process of its own.

    python -m benchmarks.peer_worker CHECKOUT

Imports PyTorch and the checkout alone; nothing of the checkout is kept here. Training is the
checkout's own parts in a loop that does not log, or its own `train_one_epoch`, which reads the loss
of every step and keeps statistics; sampling is its own `sample_tokens`. Batches are in memory. On
a machine without CUDA, `.cuda()` changes nothing.
Source: OliverRensu/xAR main_mar.py, engine_xar.py, models/xar.py.
"""

import argparse
import copy
import functools
import sys
import time
from typing import Any

from benchmarks import peer_modules
from benchmarks.pipe import serve

SCALE = 0.2325
"""Of the latents, as the released loop scales them."""


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
        """Makes the model; `run` then takes steps, or draws batches. See `run_released`, too.

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
        modules = peer_modules.load(self._root, sizes["side"])
        model = _model(modules["models.xar"], sizes)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        model.to(self._device)
        make = {"train": self._training, "sample": self._sampling}[what]
        self._runs = make(torch, modules, model, batch, sizes, compiled)
        return {
            "parameters": sum(p.numel() for p in model.parameters()),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if self._device == "cuda" else "cpu",
        }

    def run(self, *, count: int) -> dict[str, Any]:
        """Returns the seconds of `count` steps without logging, or of batches, all work done."""
        return self._timed("run", count)

    def run_released(self, *, count: int) -> dict[str, Any]:
        """Returns the seconds of `count` steps of the released loop; sampling has no other loop."""
        return self._timed("run_released", count)

    def _timed(self, kind, count):
        import torch  # pyright: ignore

        began = time.perf_counter()
        self._runs[kind](count)
        if self._device == "cuda":
            torch.cuda.synchronize()
        return {"seconds": time.perf_counter() - began}

    def device_peak(self) -> dict[str, Any]:
        """Returns the peak of the device's memory in bytes, None on a CPU."""
        import torch  # pyright: ignore

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
        kept = (data.to(self._device), labels.to(self._device))

        def released(count):
            engine.train_one_epoch(
                *(called, None, params, average, [(data, labels)] * count, optimizer),
                *(torch.device(self._device), 0, scaler, None, options),
            )

        def without_logging(count):
            called.train(True)
            optimizer.zero_grad()
            for number in range(count):
                engine.lr_sched.adjust_learning_rate(optimizer, number / count, options)
                with torch.no_grad():
                    latents = engine.DiagonalGaussianDistribution(kept[0]).sample().mul_(SCALE)
                with torch.cuda.amp.autocast():
                    loss = called(latents, kept[1])
                scaler(loss, optimizer, clip_grad=options.grad_clip, parameters=params)
                optimizer.zero_grad()
                engine.update_ema(average, params, rate=options.ema_rate)

        return {"run": without_logging, "run_released": released}

    def _sampling(self, torch, modules, model, batch, sizes, compiled):
        model.eval()
        labels = (torch.arange(batch) % sizes["num_classes"]).cuda()
        if compiled:
            model.sample_inference = torch.compile(model.sample_inference)

        def batches(count):
            with torch.no_grad(), torch.cuda.amp.autocast():
                for _ in range(count):
                    model.sample_tokens(sizes["steps"], cfg=sizes["guidance"], label=labels)

        return {"run": batches}


def _torch(dtype: str) -> Any:
    """Returns PyTorch with its mixed precision set to a dtype, and with `.cuda()` on any machine.

    The release runs under float16; bfloat16 needs no scaling of the loss, float32 no mixing.
    """
    import torch  # pyright: ignore

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
    serve(
        {
            "prepare": peer.prepare,
            "run": peer.run,
            "run_released": peer.run_released,
            "device_peak": peer.device_peak,
        }
    )


if __name__ == "__main__":
    main()
