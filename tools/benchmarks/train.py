"""A whole training step: from uint8 images to updated weights, as the two configs have it.

From the same weights and on the same batches. Dropout is as in the configs, but none while the
results are compared, since the two draw it in another order.
"""
from argparse import Namespace
from functools import partial
from typing import Any

import torch
from benchmarks.measure import build_model, compare, draw_batch, mmseg_config
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch.nn.utils import parameters_to_vector

from mmseg.models import BaseSegmentor

SMALL = (64, 128)


def measure(args: Namespace) -> list[dict[str, Any]]:
    """Times, peak memory and differences for one size."""
    config = Config.fromfile(args.config)
    if args.with_cp:
        choice = None if args.with_cp == 'none' else args.with_cp
        for part in (config.model.backbone, config.model.decode_head, *config.model.auxiliary_head):
            part.with_cp = choice
    configs = mmseg_config(config), config
    classes = config.model.decode_head.num_classes
    data, small = (draw_batch(args.batch, crop, classes) for crop in (args.crop, SMALL))
    for each in configs:
        each.model.data_preprocessor.size = args.crop
    differences = compare_results(build_pair(configs, args.device), data, small)
    pair = build_pair(configs, args.device)
    theirs = partial(step, *pair[0], data, args.device, args.mmseg_amp or args.amp)
    ours = partial(step, *pair[1], data, args.device, args.amp)
    figures = compare(theirs, ours, args.batch, args)
    share = figures['ours_peak_mb'] / figures['mmseg_peak_mb']
    return [dict(setting=f'{args.batch} x {args.crop[0]}x{args.crop[1]}', **figures,
                 peak_share=share, **differences)]


def build_pair(configs: tuple[Config, Config], device: str
               ) -> list[tuple[BaseSegmentor, OptimWrapper]]:
    """Both models with their optimisers, from the same weights."""
    models = [build_model(config, device).train() for config in configs]
    models[1].load_state_dict(models[0].state_dict())
    return [(model, build_optim_wrapper(
        model, dict(type='OptimWrapper', optimizer=config.optim_wrapper.optimizer)))
        for model, config in zip(models, configs, strict=True)]


def step(model: BaseSegmentor, wrapper: OptimWrapper, data: dict[str, list], device: str,
         amp: str = 'none') -> None:
    """MMEngine's train_step in any precision, without loss scaling.

    Its AmpOptimWrapper refuses to start without a GPU.
    """
    dtype = None if amp == 'none' else getattr(torch, amp)
    with torch.autocast(torch.device(device).type, dtype, enabled=dtype is not None):
        losses = model(**model.data_preprocessor(data, True), mode='loss')
    wrapper.update_params(model.parse_losses(losses)[0])


def compare_results(pair: list[tuple[BaseSegmentor, OptimWrapper]], data: dict[str, list],
                    small: dict[str, list]) -> dict[str, float]:
    """How far apart the losses in FP32 are, and what a step on small images moves in FP64.

    In FP32 rounding alone turns a step by a percent, through the context embedding's BatchNorm
    over one value of each image. The models are changed.
    """
    losses, moves = [], []
    for model, wrapper in pair:
        for layer in model.modules():
            if isinstance(layer, torch.nn.Dropout2d):
                layer.p = 0.0
        with torch.no_grad():
            results = model(**model.data_preprocessor(data, True), mode='loss')
        losses.append(model.parse_losses(results)[0].item())
        model.double().data_preprocessor.size = SMALL
        before = parameters_to_vector(model.parameters()).detach()
        model.train_step(small, wrapper)
        moves.append(parameters_to_vector(model.parameters()).detach() - before)
    return dict(loss_difference=abs(losses[1] / losses[0] - 1),
                step_difference_fp64=((moves[1] - moves[0]).norm() / moves[0].norm()).item())
