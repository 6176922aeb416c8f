"""Accuracy against speed of trained weights: every backend of ours, on the validation set.

The time is that from a picture in memory to its labels in memory, as in the inference benchmark,
beside MMSegmentation's inference_model with the same weights. Half size means that the network sees
the picture at half its height and width; the labels have the size of the picture all the same.
"""
import tempfile
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _arguments import format_size
from benchmarks.inference import build_stock, find_predictors, to_labels
from benchmarks.measure import ratios, time_in_turns
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from mmengine.config import Config

from mmseg_bisenetv2.deploy.image import read_image
from mmseg_bisenetv2.metrics import IoUMetric, mean_iou

from mmseg.apis import inference_model
from mmseg.registry import DATASETS


@torch.no_grad()
def measure(args: Namespace) -> list[dict[str, Any]]:
    """MIoU and times of everything that takes part."""
    dataset = DATASETS.build(Config.fromfile(args.config).val_dataloader.dataset)
    paths = [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]
    truths = [dataset[i]['data_samples'].gt_sem_seg.data[0] for i in range(len(dataset))]
    frame = read_image(paths[0])
    height, width = frame.shape[:2]
    steps: dict[str, Callable] = {}
    with tempfile.TemporaryDirectory() as folder:
        images = [torch.from_numpy(frame).permute(2, 0, 1)]
        stock = build_stock(args, images, Path(folder, 'weights.pth'))
        steps['MMSegmentation'] = lambda image: to_labels(inference_model(stock, [image]))[0]
        for suffix, size in (('', (height, width)), (', half size', (height // 2, width // 2))):
            options = Namespace(**{**vars(args), 'size': size})
            for name, predictor in find_predictors(
                    options, Path(folder, 'weights.pth'), stock.num_classes):
                steps[name + suffix] = predictor
    times = time_in_turns({name: partial(step, frame) for name, step in steps.items()}, args.pairs)
    rows = []
    for name, step in steps.items():
        confusion = torch.zeros(stock.num_classes + 1, stock.num_classes + 1, dtype=torch.int64)
        for path, truth in zip(paths, truths, strict=True):
            confusion += IoUMetric.intersect_and_union(
                torch.from_numpy(step(read_image(path))), truth, stock.num_classes,
                dataset.ignore_index).to_dense()
        rows.append(dict(setting=f'{format_size((height, width))}, {name}',
                         miou=mean_iou(confusion), end_to_end_ms=1000 * float(
                             np.median(times[name])),
                         **ratios(times['MMSegmentation'], times[name])))
    return rows


def draw(rows: list[dict[str, Any]], path: str) -> None:
    """Draws the mIoU over the time of a picture: a line for each backend, to its half size."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        size, name, *_ = row['setting'].split(', ')
        lines.setdefault(name, []).append((row['end_to_end_ms'], row['miou']))
    figure = Figure(figsize=(8, 4.5), layout='constrained')
    axes = figure.subplots()
    for (name, points), marker in zip(lines.items(), 'so^v<>DPX', strict=False):
        axes.plot(*zip(*points, strict=True), marker=marker, linewidth=0.7, label=name)
    axes.set_xscale('log')
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter('{x:g}')
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(loc='center left', bbox_to_anchor=(1, 0.5), frameon=False)
    axes.set_xlabel(f'milliseconds for a picture of {size}, logarithmic; left ends: half size')
    axes.set_ylabel('mIoU on the validation set, %')
    figure.savefig(path, dpi=120)
