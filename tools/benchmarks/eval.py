"""Evaluation as `mim test` runs it: files, network, labels, mIoU; MMSegmentation's and ours.

Both read the same drawn images from PNG, with the same random weights (the classes balanced, so
that there are borders), each through its own data set, segmentor and metric. The memory is that
of what follows the network, from its logits to the counts: the part that grows with the classes.
"""
import copy
import tempfile
from pathlib import Path

import torch
from benchmarks.data import FOLDERS, SUFFIXES, prepare
from benchmarks.measure import as_mmseg, balance, compare, peak_mb, size
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope

from mmseg.registry import DATASETS, METRICS, MODELS

CONFIG = Path(__file__).parents[2] / 'configs/bisenetv2_fcn_cityscapes.py'


def add_arguments(parser):
    """Sizes and classes."""
    parser.add_argument('--size', type=size, nargs='+', default=[(1024, 2048)], metavar='HxW',
                        help='of the images; default: 1024x2048')
    parser.add_argument('--classes', type=int, nargs='+', default=[19], help='default: 19')
    parser.add_argument('--images', type=int, default=2, help='files; default: %(default)s')
    parser.set_defaults(data_root=None)


def run(args):
    """One result for every size and number of classes."""
    init_default_scope('mmseg')
    return [measure(args, image_size, classes)
            for image_size in args.size for classes in args.classes]


@torch.no_grad()
def measure(args, image_size, classes):
    """Times, memory, scores and differing labels."""
    with tempfile.TemporaryDirectory() as root:
        prepare(Path(root), args, image_size)
        theirs = Evaluation('', root, image_size, classes, args.device)
        ours = Evaluation('mmseg_bisenetv2.', root, image_size, classes, args.device)
        balance(theirs.model, theirs.batch(0))
        ours.model.load_state_dict(theirs.model.state_dict())
        memory = {name: each.tail_peak_mb() for name, each in (('mmseg', theirs), ('ours', ours))}
        labels = [torch.stack([each.predict(i)[0].pred_sem_seg.data for i in range(args.images)])
                  for each in (theirs, ours)]
        times = compare(theirs.run, ours.run, args.pairs)
        return dict(
            setting=f'{image_size[0]}x{image_size[1]}, {classes} classes', **times,
            mmseg_images_per_s=1000 * args.images / times['mmseg_ms'],
            ours_images_per_s=1000 * args.images / times['ours_ms'],
            mmseg_tail_peak_mb=memory['mmseg'], ours_tail_peak_mb=memory['ours'],
            mmseg_miou=theirs.run()['mIoU'], ours_miou=ours.run()['mIoU'],
            differing_pixels=int((labels[0] != labels[1]).sum()), pixels=labels[0].numel(),
            predicted_classes=len(labels[0].unique()))


class Evaluation:
    """Data set, model and metric of one side."""

    def __init__(self, prefix, root, image_size, classes, device):
        self.device = device
        names = [str(i) for i in range(classes)]
        self.dataset = DATASETS.build(dict(
            type=f'{prefix}BaseSegDataset', data_root=root, data_prefix=dict(FOLDERS),
            img_suffix=SUFFIXES[0], seg_map_suffix=SUFFIXES[1], test_mode=True,
            metainfo=dict(classes=names, palette=[[0, 0, 0]] * classes),
            pipeline=[
                dict(type=f'{prefix}LoadImageFromFile'),
                dict(type='Resize', scale=image_size[::-1], keep_ratio=True),
                dict(type=f'{prefix}LoadAnnotations'),
                dict(type=f'{prefix}PackSegInputs')]))
        config = Config.fromfile(CONFIG).model
        torch.manual_seed(0)
        for head in (config.decode_head, *config.auxiliary_head):
            head.num_classes = classes
        if not prefix:
            as_mmseg(config)
        self.model = revert_sync_batchnorm(MODELS.build(config)).to(device).eval()
        self.metric = METRICS.build(dict(type=f'{prefix}IoUMetric', iou_metrics=['mIoU']))
        self.metric.dataset_meta = self.dataset.metainfo

    def batch(self, i):
        """Image i as the DataLoader gives it."""
        return pseudo_collate([self.dataset[i]])

    def predict(self, i):
        """Image i with its prediction."""
        return self.model.val_step(self.batch(i))

    def run(self):
        """All images; returns the scores."""
        for i in range(len(self.dataset)):
            self.metric.process({}, [sample.to_dict() for sample in self.predict(i)])
        return self.metric.evaluate(len(self.dataset))

    def tail_peak_mb(self):
        """Memory from the logits to the counts; the network's own is the same on both sides."""
        model = copy.deepcopy(self.model)
        data = model.data_preprocessor(self.batch(0), False)
        logits = model.decode_head(model.extract_feat(data['inputs']))
        model.backbone.forward = lambda inputs: inputs
        model.decode_head.forward = lambda features: logits

        def tail():
            samples = model.predict(data['inputs'], data['data_samples'])
            self.metric.process({}, [sample.to_dict() for sample in samples])

        tail()
        peak = peak_mb(tail, self.device)
        self.metric.results.clear()
        return peak
