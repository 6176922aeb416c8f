"""Five heads' losses with accuracy, forward and backward: no network, only the tail."""
import torch
from benchmarks.measure import compare, saved_mb, size
from mmengine.structures import PixelData

from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

STRIDES = (8, 4, 8, 16, 32)  # of the decode head and the four auxiliary heads


def add_arguments(parser):
    """Sizes, and what is computed on them."""
    parser.add_argument('--batch', type=int, nargs='+', default=[2], help='default: 2')
    parser.add_argument('--crop', type=size, nargs='+', default=[(1024, 1024)], metavar='HxW',
                        help='default: 1024x1024')
    parser.add_argument('--classes', type=int, default=19, help='default: %(default)s')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16', 'float16'),
                        help='of the logits; default: %(default)s')
    parser.add_argument('--ohem', action='store_true', help='with OHEM in every head')


def run(args):
    """One result for every size."""
    return [measure(args, batch, crop) for batch in args.batch for crop in args.crop]


def measure(args, batch, crop):
    """Times, memory and differences for one size."""
    height, width = crop
    torch.manual_seed(0)
    labels = torch.randint(0, args.classes, (batch, 1, height // 16 + 1, width // 16 + 1))
    labels[torch.rand(labels.shape) < 0.1] = 255
    labels = labels.repeat_interleave(16, 2).repeat_interleave(16, 3)[..., :height, :width]
    samples = [SegDataSample(gt_sem_seg=PixelData(data=x)) for x in labels.to(args.device)]
    logits = [
        (3 * torch.randn(batch, args.classes, -(-height // s), -(-width // s))).to(
            args.device, getattr(torch, args.dtype)).requires_grad_() for s in STRIDES]

    def build(prefix, loss_decode):
        sampler = dict(type='OHEMPixelSampler', thresh=0.7, min_kept=100000)
        return MODELS.build(dict(
            type=f'{prefix}FCNHead', in_channels=1, channels=1, num_classes=args.classes,
            loss_decode=dict(loss_decode, type=f'{prefix}{loss_decode["type"]}'),
            sampler=sampler if args.ohem else None))

    heads = dict(
        mmseg=build('', dict(type='CrossEntropyLoss', avg_non_ignore=True)),
        ours=build('mmseg_bisenetv2.', dict(type='UpsampleCrossEntropy')))

    def forward(name):
        results = [heads[name].loss_by_feat(x, samples) for x in logits]
        return results, sum(result['loss_ce'] for result in results)

    def step(name):
        for x in logits:
            x.grad = None
        results, total = forward(name)
        total.backward()
        return [(r['loss_ce'].item(), r['acc_seg'].item(), x.grad.double())
                for r, x in zip(results, logits, strict=True)]

    theirs, ours = step('mmseg'), step('ours')
    memory = {name: saved_mb(lambda name=name: forward(name)) for name in heads}
    return dict(
        setting=f'{batch} x {height}x{width}',
        **compare(lambda: step('mmseg'), lambda: step('ours'), args.pairs),
        mmseg_saved_mb=memory['mmseg'], ours_saved_mb=memory['ours'],
        saved_share=memory['ours'] / memory['mmseg'],
        loss_difference=max(abs(a[0] / b[0] - 1) for a, b in zip(ours, theirs, strict=True)),
        accuracy_difference=max(abs(a[1] - b[1]) for a, b in zip(ours, theirs, strict=True)),
        gradient_difference=max(((a[2] - b[2]).norm() / b[2].norm()).item()
                                for a, b in zip(ours, theirs, strict=True)))
