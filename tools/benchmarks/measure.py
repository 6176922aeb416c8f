"""Time and memory of two sides in turns, the same inputs and networks."""
import ctypes
import gc
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import PixelData
from torch.optim.swa_utils import update_bn
from torch.utils.benchmark import timer  # It waits for the GPU first.

from mmseg.models import BaseSegmentor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

MMSEG = 'mmseg::bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py'


def time_in_turns(steps: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, after one of each that warms up; in every round another is first.

    A GPU is warmed up for a second, since its clocks rise under load.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    warm = timer() + (1 if torch.cuda.is_initialized() else 0)
    left = rounds + 1
    while left:
        for name in order:
            start = timer()
            steps[name]()
            times[name].append(timer() - start)
        order.append(order.pop(0))
        if left <= rounds or timer() >= warm:
            left -= 1
    return {name: values[-rounds:] for name, values in times.items()}


def ratios(base: list[float], own: list[float]) -> dict[str, Any]:
    """How many times as fast as the base: median and quartiles over the rounds."""
    low, median, high = np.quantile(np.divide(base, own), (0.25, 0.5, 0.75)).tolist()
    return dict(ratio=median, ratio_quartiles=[low, high])


def compare(theirs: Callable, ours: Callable, images: int, args: Namespace) -> dict[str, Any]:
    """Time, speed and memory of two steps that do the same with some images."""
    steps = dict(mmseg=theirs, ours=ours)
    times = time_in_turns(steps, args.pairs)
    figures: dict[str, Any] = {}
    for name, step in steps.items():
        median = float(np.median(times[name]))
        figures.update({f'{name}_ms': 1000 * median, f'{name}_images_per_s': images / median,
                        f'{name}_peak_mb': peak_mb(step, args.device)})
    return {**figures, **ratios(times['mmseg'], times['ours'])}


def peak_mb(step: Callable, device: str = 'cpu') -> float:
    """Megabytes that a call needs at most, beyond what is held before it.

    On a GPU by PyTorch's count, which leaves out what CUDA graphs hold. On the CPU the resident
    memory as Linux counts it, since other libraries than PyTorch allocate, too.
    """
    gc.collect()
    if device != 'cpu':
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - held) / 1e6
    ctypes.CDLL('libc.so.6').malloc_trim(0)  # Freed memory would hide what the call needs.
    Path('/proc/self/clear_refs').write_text('5')  # The peak, VmHWM, starts anew.
    before = resident_mb('VmRSS')
    step()
    return resident_mb('VmHWM') - before


def resident_mb(name: str) -> float:
    """A figure of Linux about this process."""
    status = Path('/proc/self/status').read_text()
    return int(re.findall(rf'{name}:\s+(\d+) kB', status)[0]) * 1024 / 1e6


def draw_batch(batch: int, crop: tuple[int, int], classes: int) -> dict[str, list]:
    """What the data loader yields: uint8 images and label maps, a tenth of them ignored."""
    height, width = crop
    grid = (batch, 1, height // 16 + 1, width // 16 + 1)
    labels = torch.randint(0, classes, grid).masked_fill(torch.rand(grid) < 0.1, 255)
    labels = labels.repeat_interleave(16, 2).repeat_interleave(16, 3)[..., :height, :width]
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label.contiguous())) for label in labels]
    return dict(inputs=list(images), data_samples=samples)


def mmseg_config(ours: Config) -> Config:
    """MMSegmentation's own config, with the classes, the normalisation and the loss of ours.

    Raises:
        SystemExit: If MMSegmentation has no such network.
    """
    backbone = ours.model.backbone
    if backbone.get('bga_upsample', 'bilinear') != 'bilinear' or not backbone.get('bga_bias', True):
        raise SystemExit('MMSegmentation has bilinear upsampling and biases in the aggregation: '
                         "expected a config without bga_upsample='nearest' and bga_bias=False")
    config = get_config(MMSEG)
    for key in ('mean', 'std', 'bgr_to_rgb'):
        config.model.data_preprocessor[key] = ours.model.data_preprocessor[key]
    for head in (config.model.decode_head, *config.model.auxiliary_head):
        head.num_classes = ours.model.decode_head.num_classes
        head.loss_decode.avg_non_ignore = True  # Ours averages over the valid pixels, too.
    return config


def build_model(config: Config, device: str) -> BaseSegmentor:
    """The network of a config, for one device."""
    return revert_sync_batchnorm(MODELS.build(config.model)).to(device)


@torch.no_grad()
def balance(model: BaseSegmentor, images: list[torch.Tensor]) -> None:
    """Lets every class of an untrained network win somewhere, so that labels have borders."""
    inputs = model.data_preprocessor(dict(inputs=images))['inputs']
    # The context embedding normalises over the images of a batch: it needs more than one.
    update_bn([torch.cat(inputs.chunk(4, dim=3))], model)
    logits = model.eval()(inputs)
    seg, deviation = model.decode_head.conv_seg, logits.std((0, 2, 3))
    seg.bias.sub_(logits.mean((0, 2, 3))).div_(deviation)
    seg.weight.div_(deviation[:, None, None, None])
