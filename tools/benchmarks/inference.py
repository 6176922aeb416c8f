"""From a frame to its labels: MMSegmentation's inference_model, and every backend of ours.

All see the same weights and the same frame, in turns. 'end to end' is from a picture in memory to
labels in memory, 'network' without what is around it, 'post-processing' what follows it.
"""
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from _arguments import format_size
from benchmarks.measure import balance, build_model, mmseg_config, peak_mb, ratios, time_in_turns
from matplotlib.figure import Figure
from mmengine.config import Config

from mmseg_bisenetv2.compat import cpu_has_bf16
from mmseg_bisenetv2.datasets.toy_cityscapes import draw_scene
from mmseg_bisenetv2.deploy import Predictor
from mmseg_bisenetv2.deploy.image import read_image
from mmseg_bisenetv2.deploy.predictor import PRECISIONS
from mmseg_bisenetv2.models.upsample_argmax import upsample_argmax

from mmseg.apis import inference_model, init_model
from mmseg.models import BaseSegmentor
from mmseg.structures import SegDataSample


@torch.no_grad()
def measure(args: Namespace) -> list[dict[str, Any]]:
    """Times, memory and agreement of everything that takes part, for one size and batch."""
    torch.compiler.reset()  # PyTorch compiles the same code eight times at most.
    height, width = args.size
    frame = find_frame(args)
    frames, images = [frame] * args.batch, [torch.from_numpy(frame).permute(2, 0, 1)] * args.batch
    with tempfile.TemporaryDirectory() as folder:
        stock = build_stock(args, images, Path(folder, 'weights.pth'))
        predictors = dict(find_predictors(args, Path(folder, 'weights.pth'), stock.num_classes))
    for predictor in predictors.values():
        predictor.warm_up(height, width, args.batch)
    inputs = stock.data_preprocessor(dict(inputs=images))['inputs']
    network: dict[str, list[float]] = {name: [] for name in predictors}

    def predict(name: str) -> Any:  # a list, since it is given a list
        labels = predictors[name](frames)
        network[name].append(predictors[name].network_seconds)
        return labels

    steps: dict[str, Callable] = {
        'MMSegmentation': lambda: to_labels(inference_model(stock, frames)),
        **{name: partial(predict, name) for name in predictors},
        'network': partial(stock, inputs, mode='tensor'),
        **postprocessing(stock, stock(inputs, mode='tensor'), args.size)}
    labels = {name: step()[0] for name, step in steps.items()}
    times = time_in_turns(steps, args.pairs)
    network['MMSegmentation'] = times.pop('network')
    rows = []
    for name, own in times.items():
        base = 'MMSegmentation' if name in network else 'post-processing, MMSegmentation'
        truth = labels['torch fp32' if name in network else base]
        alone = network.get(name, [])[-args.pairs:]  # without the calls that warm up
        rows.append(dict(
            setting=f'{format_size(args.size)} x {args.batch}, {name}',
            end_to_end_ms=1000 * float(np.median(own)),
            p99_ms=1000 * float(np.quantile(own, 0.99)), fps=args.batch / float(np.median(own)),
            **ratios(times[base], own),
            network_ms=1000 * float(np.median(alone)) if alone else None,
            network_ratio=ratios(network[base], alone)['ratio'] if alone else None,
            peak_mb=peak_mb(steps[name], args.device),
            agreement=100 * float((labels[name] == truth).mean())))
    return rows


def find_frame(args: Namespace) -> np.ndarray:
    """The picture of ``--frame`` at the size that is measured; by default a drawn one."""
    if args.frame:
        return cv2.resize(read_image(args.frame), args.size[::-1], interpolation=cv2.INTER_CUBIC)
    return draw_scene(np.random.default_rng(0), args.size)[0]


def build_stock(args: Namespace, images: list[torch.Tensor], checkpoint: Path) -> BaseSegmentor:
    """MMSegmentation's own model, as init_model gives it, and a checkpoint with its weights."""
    ours = Config.fromfile(args.config)
    config = mmseg_config(ours)
    config.test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    stock = build_model(config, args.device).eval()
    stock.cfg = config
    if args.checkpoint:
        stock.load_state_dict(init_model(ours, str(args.checkpoint), device='cpu').state_dict())
    else:
        balance(stock, images)
    torch.save(dict(state_dict=stock.state_dict(), meta={}), checkpoint)
    return stock


def find_predictors(args: Namespace, checkpoint: Path, classes: int
                    ) -> Iterator[tuple[str, Predictor]]:
    """Every backend and precision that this machine has, and the files."""
    options = dict(device=args.device, size=args.size, threads=args.threads)
    emulated = ('bf16', 'fp16')[cpu_has_bf16():] if args.device == 'cpu' else ()
    for backend, precisions in PRECISIONS.items():
        for precision in [name for name in precisions if name not in emulated]:
            try:
                yield f'{backend} {precision}', Predictor(
                    args.config, checkpoint, backend=backend, precision=precision, **options)
            except (ImportError, ValueError) as error:  # not installed, or not on this device
                print(f'{backend} {precision} is left out: {error}')
    for path in args.files:
        predictor = Predictor(path, **options)
        if len(predictor.classes) != classes:
            raise SystemExit(f'{path} has {len(predictor.classes)} classes, the network {classes}: '
                             'expected an export of the same weights')
        yield f'{predictor.backend} {predictor.precision}, {Path(path).name}', predictor


def postprocessing(stock: BaseSegmentor, logits: torch.Tensor, size: tuple[int, int]
                   ) -> dict[str, Callable]:
    """From the network's logits to labels, MMSegmentation's way and ours."""
    meta = dict(ori_shape=size, img_shape=size, pad_shape=size, padding_size=[0] * 4)

    def theirs() -> list[np.ndarray]:
        full = stock.decode_head.predict_by_feat(logits, [meta] * len(logits))
        samples = [SegDataSample(metainfo=meta) for _ in logits]
        return to_labels(stock.postprocess_result(full, samples))

    def ours() -> list[np.ndarray]:
        return [upsample_argmax(low, *size, stock.align_corners).cpu().numpy() for low in logits]

    return {'post-processing, MMSegmentation': theirs, 'post-processing, ours': ours}


def to_labels(samples: list[SegDataSample]) -> list[np.ndarray]:
    """Labels in memory, as ours gives them."""
    return [sample.pred_sem_seg.data[0].cpu().numpy() for sample in samples]


def draw(rows: list[dict[str, Any]], path: str) -> None:
    """Draws how many times as fast as MMSegmentation each backend is, for the first size."""
    size = rows[0]['setting'].partition(', ')[0] + ', '
    ratios = {row['setting'].removeprefix(size): row['ratio'] for row in rows
              if row['setting'].startswith(size) and row['network_ms']}
    figure = Figure(figsize=(8, 0.8 + 0.35 * len(ratios)), layout='constrained')
    axes = figure.subplots()
    axes.bar_label(axes.barh(list(ratios), list(ratios.values())), fmt='%.1f', padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.spines[['top', 'right']].set_visible(False)
    axes.set_xlabel(f'{size}times the speed of MMSegmentation')
    figure.savefig(path, dpi=120)
