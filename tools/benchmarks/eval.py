"""Evaluation as `mim test` runs it: files, network, labels, mIoU; MMSegmentation's and ours.

Both read the same drawn images from PNG, with the same random weights (the classes balanced, so
that there are borders), each through its own data set, segmentor and metric.
"""
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from _arguments import format_size
from benchmarks.data import FOLDERS, SUFFIXES, draw_images
from benchmarks.measure import balance, build_model, compare, mmseg_config
from mmengine.config import Config
from mmengine.dataset import pseudo_collate

from mmseg.registry import DATASETS, METRICS

IMAGES = 2


class Evaluation:
    """Data set, model and metric of MMSegmentation, or with a prefix ours."""

    def __init__(self, prefix: str, config: Config, root: str, args: Namespace) -> None:
        meta = dict(classes=[str(i) for i in range(args.classes)],
                    palette=[[0, 0, 0]] * args.classes)
        self.dataset = DATASETS.build(dict(
            type=f'{prefix}BaseSegDataset', data_root=root, data_prefix=dict(FOLDERS), **SUFFIXES,
            test_mode=True, metainfo=meta, pipeline=[
                dict(type=f'{prefix}LoadImageFromFile'),
                dict(type='Resize', scale=args.size[::-1], keep_ratio=True),
                dict(type=f'{prefix}LoadAnnotations'), dict(type=f'{prefix}PackSegInputs')]))
        self.model = build_model(config, args.device).eval()
        self.metric = METRICS.build(dict(type=f'{prefix}IoUMetric', iou_metrics=['mIoU']))
        self.metric.dataset_meta = meta

    def run(self) -> float:
        """The mIoU of all images."""
        for i in range(IMAGES):
            samples = self.model.val_step(pseudo_collate([self.dataset[i]]))
            self.metric.process({}, [sample.to_dict() for sample in samples])
        return float(self.metric.evaluate(IMAGES)['mIoU'])


@torch.no_grad()
def measure(args: Namespace) -> list[dict[str, Any]]:
    """Times, memory and scores for one size and number of classes."""
    config = Config.fromfile(args.config)
    for head in (config.model.decode_head, *config.model.auxiliary_head):
        head.num_classes = args.classes
    with tempfile.TemporaryDirectory() as root:
        draw_images(Path(root), IMAGES, args.size)
        theirs = Evaluation('', mmseg_config(config), root, args)
        ours = Evaluation('mmseg_bisenetv2.', config, root, args)
        balance(theirs.model, [theirs.dataset[0]['inputs']])
        ours.model.load_state_dict(theirs.model.state_dict())
        return [dict(setting=f'{format_size(args.size)}, {args.classes} classes',
                     **compare(theirs.run, ours.run, IMAGES, args),
                     mmseg_miou=theirs.run(), ours_miou=ours.run())]
