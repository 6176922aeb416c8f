"""What the benchmarks share: paired times, memory, and their command-line arguments."""
import argparse
import ctypes
import gc
import statistics
import time
import weakref

import torch


def size(text):
    """'512x1024' -> (512, 1024): height and width."""
    try:
        height, width = map(int, text.lower().split('x'))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text}: expected HxW, such as 512x1024') from None
    return height, width


def seconds(step):
    """Time of one call, the GPU's work included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(theirs, ours, pairs):
    """Times of interleaved pairs, after a first of each that warms up.

    Returns:
        Medians in ms, and the median and the quartiles of the pairs' ratios (theirs / ours).
    """
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


def peak_mb(step, device='cpu'):
    """Megabytes that a call needs at most, beyond what is held before it.

    On the CPU the resident memory of the process, as Linux counts it, so that what libraries
    allocate behind PyTorch's back is in it; on a GPU PyTorch's own count.
    """
    gc.collect()
    if device != 'cpu':
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    ctypes.CDLL('libc.so.6').malloc_trim(0)
    with open('/proc/self/clear_refs', 'w') as file:
        file.write('5')  # the peak starts anew from here
    before = _resident_kb('VmRSS')
    step()
    return (_resident_kb('VmHWM') - before) * 1024 / 1e6


def _resident_kb(name):
    with open('/proc/self/status') as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))


class _Kept:
    """A tensor saved for backward, countable for as long as the graph holds it."""

    def __init__(self, tensor):
        self.tensor = tensor


def saved_mb(forward):
    """Megabytes that autograd keeps from forward to backward, each tensor once."""
    kept = weakref.WeakSet()  # what no backward will ask for goes at once

    def pack(tensor):
        box = _Kept(tensor)
        kept.add(box)
        return box

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
        result = forward()
    sizes = {box.tensor.data_ptr(): box.tensor.nbytes for box in kept}
    del result
    return sum(sizes.values()) / 1e6


@torch.no_grad()
def balance(model, batch):
    """Makes every class of an untrained network win somewhere: labels with borders between them.

    Args:
        model (EncoderDecoder): Its running statistics and ``conv_seg`` are changed.
        batch (dict): Images as the DataLoader gives them.
    """
    inputs = model.data_preprocessor(batch, False)['inputs']
    # quarters of the picture: the context embedding normalises over the images of a batch
    inputs = torch.cat(inputs.chunk(4, dim=3))
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1
    model.train()(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    logits = model.eval()(inputs)
    seg, deviation = model.decode_head.conv_seg, logits.std((0, 2, 3))
    seg.bias.sub_(logits.mean((0, 2, 3))).div_(deviation)
    seg.weight.div_(deviation[:, None, None, None])


def as_mmseg(model):
    """A model config of ours with MMSegmentation's own parts; the weights of one fit the other.

    Args:
        model (ConfigDict): It is changed.

    Raises:
        SystemExit: If MMSegmentation cannot build this network.
    """
    backbone = model.backbone
    if backbone.get('bga_upsample', 'bilinear') != 'bilinear' or not backbone.get('bga_bias', True):
        raise SystemExit('MMSegmentation has bilinear upsampling and biases in the aggregation: '
                         "expected a config without bga_upsample='nearest' and bga_bias=False")
    model.type, model.backbone = 'EncoderDecoder', dict(type='BiSeNetV2')
    model.data_preprocessor.type = 'SegDataPreProcessor'
    model.data_preprocessor.pop('channels_last', None)
    for head in (model.decode_head, *model.auxiliary_head):
        head.type, head.loss_decode = 'FCNHead', dict(type='CrossEntropyLoss')
        head.pop('with_cp', None)
    return model
