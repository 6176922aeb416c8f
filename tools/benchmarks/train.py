"""A whole training step: from uint8 images to updated weights, as the two configs have it."""
from argparse import Namespace
from functools import partial
from typing import Any

import torch
from _arguments import format_size
from benchmarks.measure import build_model, compare, draw_batch, mmseg_config
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper

from mmseg.models import BaseSegmentor


def measure(args: Namespace) -> list[dict[str, Any]]:
    """Times and peak memory for one size, from the same weights and on the same batch."""
    config = Config.fromfile(args.config)
    if args.with_cp:
        choice = None if args.with_cp == 'none' else args.with_cp
        for part in (config.model.backbone, config.model.decode_head, *config.model.auxiliary_head):
            part.with_cp = choice
    batch = draw_batch(args.batch, args.crop, config.model.decode_head.num_classes)
    steps, weights = [], None
    for each, amp in ((mmseg_config(config), args.mmseg_amp or args.amp), (config, args.amp)):
        each.model.data_preprocessor.size = args.crop
        model = build_model(each, args.device).train()
        weights = weights or model.state_dict()
        model.load_state_dict(weights)
        wrapper = build_optim_wrapper(
            model, dict(type='OptimWrapper', optimizer=each.optim_wrapper.optimizer))
        steps.append(partial(step, model, wrapper, batch, args.device, amp))
    figures = compare(*steps, args.batch, args)
    return [dict(setting=f'{args.batch} x {format_size(args.crop)}', **figures,
                 peak_share=figures['ours_peak_mb'] / figures['mmseg_peak_mb'])]


def step(model: BaseSegmentor, wrapper: OptimWrapper, batch: dict[str, list], device: str,
         amp: str) -> None:
    """MMEngine's train_step in any precision, without loss scaling.

    Its AmpOptimWrapper refuses to start without a GPU.
    """
    dtype = None if amp == 'none' else getattr(torch, amp)
    with torch.autocast(torch.device(device).type, dtype, enabled=dtype is not None):
        losses = model(**model.data_preprocessor(batch, True), mode='loss')
    wrapper.update_params(model.parse_losses(losses)[0])
