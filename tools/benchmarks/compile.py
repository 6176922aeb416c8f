"""The deployed network on its device: as it is, compiled, as a CUDA graph, and as both.

From frames on the device to low-resolution logits on the device, without what is around it.
Predictor.warm_up() chooses 'compiled, CUDA graph', for frames of any size.
"""
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _arguments import format_size
from benchmarks.measure import build_model, ratios, time_in_turns
from mmengine.config import Config
from torch import Tensor

from mmseg_bisenetv2.datasets.toy_cityscapes import draw_scene
from mmseg_bisenetv2.deploy.network import FrameNetwork
from mmseg_bisenetv2.deploy.predictor import DTYPES


def measure(args: Namespace) -> list[dict[str, Any]]:
    """Times of each way and the seconds of its first call, for one size and batch."""
    torch.compiler.reset()
    model = build_model(Config.fromfile(args.config), 'cpu').eval()
    network = FrameNetwork(model).set_precision(DTYPES[args.precision]).to(args.device)
    frame, _ = draw_scene(np.random.default_rng(0), args.size)
    frames = torch.from_numpy(frame).expand(args.batch, -1, -1, -1).contiguous().to(args.device)
    ways: dict[str, Callable[[Tensor], Tensor]] = dict(
        eager=network, compiled=torch.compile(network, dynamic=True))
    if frames.is_cuda:
        ways['CUDA graph'] = record(network, frames)
        ways['compiled, CUDA graph'] = torch.compile(
            network, dynamic=True, mode='reduce-overhead')

    def run(name: str) -> Tensor:
        with torch.inference_mode():
            return ways[name](frames)

    first, logits = {}, {}
    for name in ways:
        start = time.perf_counter()
        logits[name] = run(name).float().cpu()  # a copy, which waits for the GPU
        first[name] = time.perf_counter() - start
        for _ in range(2):  # PyTorch records its graph when a size comes again.
            run(name)
    times = time_in_turns({name: lambda name=name: run(name) for name in ways}, args.pairs)
    scale = float(logits['eager'].std())
    return [dict(
        setting=f'{format_size(args.size)} x {args.batch}, {args.precision}, {name}',
        network_ms=1000 * float(np.median(own)), fps=args.batch / float(np.median(own)),
        **ratios(times['eager'], own), first_call_s=first[name],
        logit_difference=float((logits[name] - logits['eager']).abs().max()) / scale)
        for name, own in times.items()]


def record(network: FrameNetwork, frames: Tensor) -> Callable[[Tensor], Tensor]:
    """A CUDA graph of the network as it is; it reads the given frames and no others."""
    with torch.inference_mode():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # cuDNN and cuBLAS set themselves up outside the graph.
                network(frames)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = network(frames)

    def replay(_: Tensor) -> Tensor:
        graph.replay()
        return logits

    return replay
