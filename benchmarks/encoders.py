"""CPU time of an image in torch, `torch.compile` and ONNX Runtime: `python -m benchmarks.encoders`.

Networks of random weights on one thread, one image at a time and 32. CPU time says more than the clock on a
machine with other work.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dml.config import EncoderConfig, PreprocessingConfig, TorchvisionConfig
from dml.models.encoder import Encoder
from dml.models.exported import difference, exported
from dml.models.package import load_package, save_package

CASES = (("squeezenet1_1", 96), ("squeezenet1_1", 224), ("resnet50", 224))
BATCHES = (1, 32)


def milliseconds(embed: Callable[[Sequence[Tensor]], object], size: int, side: int, seconds: float) -> float:
    """CPU time of an image."""
    images = list(torch.randn(size, 3, side, side))
    embed(images)
    start, spent, count = time.perf_counter(), time.process_time(), 0
    while not count or time.perf_counter() - start < seconds:
        embed(images)
        count += size
    return 1000 * (time.process_time() - spent) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each figure")
    parser.add_argument("--networks", nargs="+", default=sorted({name for name, _ in CASES}))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, side in CASES:
        if name not in arguments.networks:
            continue
        config = EncoderConfig(backbone=TorchvisionConfig(name=name), dim=128)
        with tempfile.TemporaryDirectory() as folder:
            preprocessing = PreprocessingConfig(resize=side, crop=side)
            uri = save_package(folder, Encoder(config, channels=3), preprocessing).uri
            by_torch = load_package(uri, device="cpu")
            start = time.process_time()
            by_onnx = exported(by_torch)
            spent = time.process_time() - start
            compiled = load_package(uri, device="cpu")
            compiled.encoder.compile()
            apart = difference(by_torch.runtime, by_onnx.runtime)
            print(f"{name} at {side} pixels: exported in {spent:.1f} s, components apart by {apart:.1g}")
            for size in BATCHES:
                figures = {
                    what: milliseconds(package.runtime.embed, size, side, arguments.seconds)
                    for what, package in (("torch", by_torch), ("compiled", compiled), ("ONNX", by_onnx))
                }
                said = ", ".join(f"{what} {spent_ms:.2f} ms" for what, spent_ms in figures.items())
                print(f"  {size} at once: {said}", flush=True)


if __name__ == "__main__":
    main()
