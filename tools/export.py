"""Exports a network, runs the file in its runtime, and compares it with PyTorch.

    python tools/export.py CONFIG CHECKPOINT out.onnx                  # frames in, labels out
    python tools/export.py CONFIG CHECKPOINT out.onnx --size 2048x1024 # of one size, for TensorRT
    python tools/export.py CONFIG CHECKPOINT out.xml --images 'street/*.png'
    python tools/export.py CONFIG CHECKPOINT out.xml --precision int8 --calibrate 'street/*.png'
    python tools/export.py CONFIG CHECKPOINT out.pt2                   # torch.export

A file that disagrees with PyTorch is not kept, and the exit code is 1.
"""
import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from _arguments import SIZE, format_size, positive

import mmseg_bisenetv2  # noqa: F401 - before mmseg.apis, which needs it
from mmseg_bisenetv2.checkpoints import CheckpointError
from mmseg_bisenetv2.deploy.export import MAX_MIOU_DROP, DisagreementError, export_and_verify
from mmseg_bisenetv2.deploy.image import find_images
from mmseg_bisenetv2.deploy.metadata import ExportMetadata

from mmseg.apis import init_model
from mmseg.registry import DATASETS


def spread(items: Sequence[Any], number: int) -> list[Any]:
    """At most ``number`` of the items, evenly spread over all of them."""
    indices = np.linspace(0, len(items) - 1, min(number, len(items))).round().astype(int)
    return [items[i] for i in indices]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('out', help='ends in .onnx, .xml (OpenVINO) or .pt2 (torch.export)')
    parser.add_argument('--size', **SIZE,
                        help='of the frames, which the network sees as they are; default: any')
    parser.add_argument('--precision', choices=('fp32', 'bf16', 'int8'), default='fp32',
                        help='bf16 and int8 of an .xml only; default: %(default)s')
    parser.add_argument('--raw', action='store_true',
                        help='.onnx with normalised images in and logits out')
    compared = parser.add_mutually_exclusive_group()
    compared.add_argument('--images', nargs='+', metavar='PICTURE',
                          help='to compare on: files, folders, patterns; default: noise')
    compared.add_argument('--val', type=positive, metavar='N',
                          help='compare on N images of the config\'s validation set, with mIoU')
    parser.add_argument('--calibrate', nargs='+', default=[], metavar='PICTURE',
                        help='to quantise with; other pictures than those to compare on')
    parser.add_argument('--calibrate-number', type=positive, default=64, metavar='N',
                        help='how many of these; default: %(default)s')
    parser.add_argument('--min-agreement', type=float, metavar='PERCENT',
                        help='of labels with PyTorch FP32; default: 99.9, BF16 99, INT8 98')
    parser.add_argument('--max-miou-drop', type=float, metavar='POINTS',
                        help=f'with --val; default: {MAX_MIOU_DROP}')
    args = parser.parse_args()
    size, what, truths = args.size, 'pictures', None
    try:
        calibration = spread(find_images(args.calibrate), args.calibrate_number)
        images: list[Any] = find_images(args.images or [])
        model = init_model(args.config, args.checkpoint, device='cpu')
        tested = ExportMetadata.from_model(model, args.checkpoint)
        if args.val:
            dataset = DATASETS.build(model.cfg.val_dataloader.dataset)
            chosen = spread(range(len(dataset)), args.val)
            images = [dataset.get_data_info(i)['img_path'] for i in chosen]
            truths = [dataset[i]['data_samples'].gt_sem_seg.data[0].numpy() for i in chosen]
        elif not images:
            what = 'picture of noise (--images takes yours)'
            images = [np.random.default_rng(0).integers(
                0, 256, (*(size or (512, 1024)), 3), dtype=np.uint8)]
        figures = export_and_verify(
            model, dataclasses.replace(tested, precision=args.precision, size=size), args.out,
            images, args.raw, calibration, args.min_agreement, truths, args.max_miou_drop)
    except (CheckpointError, DisagreementError, ImportError, OSError, TypeError,
            ValueError) as error:
        sys.exit(str(error))
    print(f'{args.out}: {figures["size_mb"]:.1f} MB, {args.precision}')
    usual = tested.scale and tested.network_size(*(size or tested.scale[::-1]))
    if usual and usual != size:
        print(f'The config tests at {format_size(usual)}. ' + (
            f'This file sees {format_size(size)}, and has other labels' if size else
            'Predictor resizes to it; give frames of that size to any other runtime'))
    print(f'agreement with PyTorch FP32 on {len(images)} {what}: {figures["agreement"]:.3f} %')
    if figures['logit_difference'] is not None:
        print(f'largest difference of a logit: {figures["logit_difference"]:.2g}')
    if truths:
        print(f'mIoU: {figures["miou"]:.2f} %, PyTorch FP32 {figures["pytorch_miou"]:.2f} %')


if __name__ == '__main__':
    main()
