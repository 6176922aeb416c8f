"""Losses of five heads and their accuracy, forward and backward: no network, only what follows."""
import weakref
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _arguments import format_size
from benchmarks.measure import compare, draw_batch

from mmseg.registry import MODELS

STRIDES = (8, 4, 8, 16, 32)  # of the decode head and the four auxiliary heads


def measure(args: Namespace) -> list[dict[str, Any]]:
    """Times and memory for one size."""
    height, width = args.crop
    samples = [sample.to(args.device) for sample in
               draw_batch(args.batch, args.crop, args.classes)['data_samples']]
    logits = [(3 * torch.randn(args.batch, args.classes, -(-height // stride), -(-width // stride),
                               device=args.device)).requires_grad_() for stride in STRIDES]
    cfg = dict(in_channels=1, channels=1, num_classes=args.classes, sampler=dict(
        type='OHEMPixelSampler', thresh=0.7, min_kept=100000) if args.ohem else None)
    theirs = MODELS.build(dict(
        cfg, type='FCNHead', loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True)))
    ours = MODELS.build(dict(
        cfg, type='mmseg_bisenetv2.FCNHead',
        loss_decode=dict(type='mmseg_bisenetv2.UpsampleCrossEntropy')))

    def forward(head: Any) -> torch.Tensor:
        return torch.stack([head.loss_by_feat(x, samples)['loss_ce'] for x in logits]).sum()

    def step(head: Any) -> None:
        for x in logits:
            x.grad = None
        forward(head).backward()

    mmseg_saved, ours_saved = (saved_mb(partial(forward, head)) for head in (theirs, ours))
    return [dict(
        setting=f'{args.batch} x {format_size(args.crop)}, {args.classes} classes',
        **compare(partial(step, theirs), partial(step, ours), args.batch, args),
        mmseg_saved_mb=mmseg_saved, ours_saved_mb=ours_saved, saved_share=ours_saved / mmseg_saved,
        loss_difference=abs(float((forward(ours) / forward(theirs)).detach()) - 1))]


def saved_mb(forward: Callable) -> float:
    """Megabytes that autograd keeps from forward to backward, each tensor once."""
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach()
        kept.append(weakref.ref(tensor))  # What no backward will ask for goes at once.
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()  # noqa: F841 - it holds the graph
    tensors = [tensor for reference in kept if (tensor := reference()) is not None]
    return sum({x.data_ptr(): x.nbytes for x in tensors}.values()) / 1e6
