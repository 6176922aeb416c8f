"""MMSegmentation and this package, same inputs, interleaved pairs in one process.

    python tools/benchmark.py loss                          # 2 crops of 1024x1024
    python tools/benchmark.py loss --batch 8 --crop 512 1024 --ohem --json loss.json

Prints medians, their ratio with its quartiles, and how far the two's results lie apart.
"""
import argparse
import json
import platform
import statistics
import time
import weakref

import torch
from mmengine.structures import PixelData

import mmseg_bisenetv2  # noqa: F401 - before mmseg

from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules

STRIDES = (8, 4, 8, 16, 32)  # of the decode head and the four auxiliary heads


def seconds(step):
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(theirs, ours, pairs):
    """Times of interleaved pairs, after a first of each that warms up."""
    theirs(), ours()
    times = []
    for i in range(pairs):
        if i % 2:  # neither is always the first
            times.append((seconds(theirs), seconds(ours)))
        else:
            times.append((seconds(ours), seconds(theirs))[::-1])
    ratios = sorted(a / b for a, b in times)
    quarter = len(ratios) // 4
    return dict(
        mmseg_ms=1000 * statistics.median(a for a, _ in times),
        ours_ms=1000 * statistics.median(b for _, b in times),
        ratio=statistics.median(ratios),
        ratio_quartiles=[ratios[quarter], ratios[-1 - quarter]])


class Kept:
    """A tensor saved for backward, countable for as long as the graph holds it."""

    def __init__(self, tensor):
        self.tensor = tensor


def saved_bytes(forward):
    """Bytes that autograd keeps from forward to backward, each tensor once."""
    kept = weakref.WeakSet()  # what no backward will ask for goes at once

    def pack(tensor):
        box = Kept(tensor)
        kept.add(box)
        return box

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
        result = forward()
    sizes = {box.tensor.data_ptr(): box.tensor.nbytes for box in kept}
    del result
    return sum(sizes.values())


def loss(args):
    """Five heads' losses with accuracy, forward and backward: no network, only the tail."""
    height, width = args.crop
    torch.manual_seed(0)
    labels = torch.randint(0, args.classes, (args.batch, 1, height // 16 + 1, width // 16 + 1))
    labels[torch.rand(labels.shape) < 0.1] = 255
    labels = labels.repeat_interleave(16, 2).repeat_interleave(16, 3)[..., :height, :width]
    samples = [SegDataSample(gt_sem_seg=PixelData(data=x)) for x in labels.to(args.device)]
    logits = [
        (3 * torch.randn(args.batch, args.classes, -(-height // s), -(-width // s))).to(
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
    memory = {name: saved_bytes(lambda name=name: forward(name)) for name in heads}
    return dict(
        compare(lambda: step('mmseg'), lambda: step('ours'), args.pairs),
        mmseg_saved_mb=memory['mmseg'] / 1e6, ours_saved_mb=memory['ours'] / 1e6,
        saved_share=memory['ours'] / memory['mmseg'],
        loss_difference=max(abs(a[0] / b[0] - 1) for a, b in zip(ours, theirs, strict=True)),
        accuracy_difference=max(abs(a[1] - b[1]) for a, b in zip(ours, theirs, strict=True)),
        gradient_difference=max(((a[2] - b[2]).norm() / b[2].norm()).item()
                                for a, b in zip(ours, theirs, strict=True)))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument('--pairs', type=int, default=9, help='default: %(default)s')
    common.add_argument('--device', default='cpu', help='default: %(default)s')
    common.add_argument('--threads', type=int, help='default: as PyTorch chooses')
    common.add_argument('--json', metavar='FILE', help='writes the results there too')

    command = commands.add_parser('loss', parents=[common], help=loss.__doc__)
    command.add_argument('--batch', type=int, default=2, help='default: %(default)s')
    command.add_argument('--crop', type=int, nargs=2, default=(1024, 1024), metavar=('H', 'W'))
    command.add_argument('--classes', type=int, default=19, help='default: %(default)s')
    command.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16', 'float16'),
                         help='of the logits; default: %(default)s')
    command.add_argument('--ohem', action='store_true', help='with OHEM in every head')
    command.set_defaults(run=loss)

    args = parser.parse_args()
    register_all_modules()
    if args.threads:
        torch.set_num_threads(args.threads)
    results = args.run(args)
    machine = dict(device=args.device, machine=platform.machine(), torch=torch.__version__,
                   threads=torch.get_num_threads())
    if args.device != 'cpu':
        machine['gpu'] = torch.cuda.get_device_name()
    print(', '.join(f'{key} {value}' for key, value in machine.items()))
    for name, value in results.items():
        values = value if isinstance(value, list) else [value]
        print(f'{name:<22}', *(f'{x:.4g}' for x in values))
    if args.json:
        options = {key: value for key, value in vars(args).items() if key != 'run'}
        with open(args.json, 'w') as file:
            json.dump(dict(options=options, machine=machine, results=results), file, indent=2)


if __name__ == '__main__':
    main()
