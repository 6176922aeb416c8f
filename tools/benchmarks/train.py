"""A whole training step: from uint8 images to updated weights, as the two configs have it.

MMSegmentation's BiSeNetV2 with its own model, preprocessor and optimiser, and ours, from the same
weights and on the same batches. In MMSegmentation's config the losses average over the valid
pixels, as ours do, so that both learn the same. Differences are without dropout and come before
anything is timed; the timed steps have each config's dropout.
"""
import contextlib
from pathlib import Path

import torch
from benchmarks.measure import compare, peak_mb, size
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData

from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

MMSEG = 'mmseg::bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py'
OURS = Path(__file__).parents[2] / 'configs/bisenetv2_fcn_cityscapes.py'
SMALL = (64, 128)


def add_arguments(parser):
    """Sizes, precision, and our config."""
    parser.add_argument('--batch', type=int, nargs='+', default=[2], help='default: 2')
    parser.add_argument('--crop', type=size, nargs='+', default=[(512, 1024)], metavar='HxW',
                        help='default: 512x1024')
    parser.add_argument('--amp', choices=('bfloat16', 'float16'), help='default: FP32')
    parser.add_argument('--mmseg-amp', choices=('bfloat16', 'float16', 'none'),
                        help="MMSegmentation's precision; default: that of --amp")
    parser.add_argument('--config', default=OURS, help='ours; default: %(default)s')
    parser.add_argument('--with-cp', action='store_true', help='activation checkpointing in ours')


def run(args):
    """One result for every size."""
    init_default_scope('mmseg')
    return [measure(args, batch, crop) for batch in args.batch for crop in args.crop]


def measure(args, batch, crop):
    """Times, peak memory and differences for one size."""
    mmseg_config, our_config = get_config(MMSEG), Config.fromfile(args.config)
    for head in (mmseg_config.model.decode_head, *mmseg_config.model.auxiliary_head):
        head.loss_decode.avg_non_ignore = True
    if args.with_cp:
        our_config.model.backbone.with_cp = 'stages'
    mmseg_amp = args.amp if args.mmseg_amp is None else args.mmseg_amp.replace('none', '')
    theirs = Trainee(mmseg_config, crop, mmseg_amp, args.device)
    ours = Trainee(our_config, crop, args.amp, args.device)
    ours.model.load_state_dict(theirs.model.state_dict())
    data = draw_batch(batch, crop, our_config.model.decode_head.num_classes)

    differences = difference(theirs, ours, data)
    memory = {name: peak_mb(lambda each=each: each.step(data), args.device)
              for name, each in (('mmseg', theirs), ('ours', ours))}
    times = compare(lambda: theirs.step(data), lambda: ours.step(data), args.pairs)
    return dict(
        setting=f'{batch} x {crop[0]}x{crop[1]}', **times,
        mmseg_images_per_s=1000 * batch / times['mmseg_ms'],
        ours_images_per_s=1000 * batch / times['ours_ms'],
        mmseg_peak_mb=memory['mmseg'], ours_peak_mb=memory['ours'],
        peak_share=memory['ours'] / memory['mmseg'], **differences)


class Trainee:
    """A model with its optimiser, as a config has them."""

    def __init__(self, config, crop, amp, device):
        config.model.data_preprocessor.size = crop
        torch.manual_seed(0)
        self.model = revert_sync_batchnorm(MODELS.build(config.model)).to(device).train()
        self.device = device
        self.amp = getattr(torch, amp) if amp else None
        self.wrapper = build_optim_wrapper(self.model, dict(
            config.optim_wrapper, type='OptimWrapper'))
        self.scaler = torch.amp.GradScaler(device, enabled=amp == 'float16')

    def step(self, data):
        """MMEngine's training step, in the precision asked for.

        MMEngine's AmpOptimWrapper is these lines, but refuses to start without a GPU.
        """
        if self.amp is None:
            return self.model.train_step(data, self.wrapper)
        with torch.autocast(torch.device(self.device).type, self.amp):
            inputs = self.model.data_preprocessor(data, True)
            losses = self.model(**inputs, mode='loss')
        loss, log = self.model.parse_losses(losses)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.wrapper.optimizer)
        self.scaler.update()
        self.wrapper.zero_grad()
        return log


def difference(theirs, ours, data):
    """How far apart the two are; their weights are put back.

    The losses at full size in FP32. What a step moves the weights by on small parts of the images
    in FP64: FP32 rounding alone turns it by a percent, through the context embedding's BatchNorm
    over one value an image.
    """
    height, width = SMALL
    small = dict(
        inputs=[image[:, :height, :width].contiguous() for image in data['inputs']],
        data_samples=[SegDataSample(gt_sem_seg=PixelData(
            data=sample.gt_sem_seg.data[:, :height, :width])) for sample in data['data_samples']])
    losses, moves = [], []
    for each in (theirs, ours):
        model, preprocessor = each.model, each.model.data_preprocessor
        before = {key: value.clone() for key, value in model.state_dict().items()}
        size, amp, each.amp = preprocessor.size, each.amp, None
        with no_dropout(model):
            with torch.no_grad():
                inputs = preprocessor(data, True)
                losses.append(model.parse_losses(model(**inputs, mode='loss'))[0].item())
            preprocessor.size = SMALL
            model.double()
            each.step(small)
        moves.append(torch.cat([(value.detach() - before[key]).flatten()
                                for key, value in model.named_parameters()]))
        model.float().load_state_dict(before)
        preprocessor.size, each.amp = size, amp
        each.wrapper.optimizer.state.clear()
    return dict(loss_difference=abs(losses[1] / losses[0] - 1),
                step_difference_fp64=((moves[1] - moves[0]).norm() / moves[0].norm()).item())


@contextlib.contextmanager
def no_dropout(model):
    """Within it nothing is dropped."""
    drops = [(layer, layer.p) for layer in model.modules() if isinstance(layer, torch.nn.Dropout2d)]
    for layer, _ in drops:
        layer.p = 0.0
    yield
    for layer, p in drops:
        layer.p = p


def draw_batch(batch, crop, classes):
    """What the data loader yields: uint8 BGR images and label maps, a tenth of them ignored."""
    height, width = crop
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(
        0, classes, (batch, 1, height // 16 + 1, width // 16 + 1), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    labels = labels.repeat_interleave(16, 2).repeat_interleave(16, 3)[..., :height, :width]
    images = torch.randint(
        0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label.contiguous())) for label in labels]
    return dict(inputs=list(images), data_samples=samples)
