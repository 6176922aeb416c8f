"""Layouts of published BiSeNetV2 checkpoints: tables of key names, and conversion both ways.

A table reads as in a shell: the n-th of ``{a,b}`` on the left becomes the n-th on the right, and
``*`` is a number that stays. Left is the other layout, right MMSegmentation's, whose keys are
ours; a tensor's own name (``weight``) follows unchanged, and earlier lines go first.
"""
import functools
import itertools
import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor

# MMSegmentation's aggregation has two biases that no other has; zero makes the networks equal.
BGA_BIASES = ('backbone.bga.detail_dwconv.0.pointwise_conv.conv.bias',
              'backbone.bga.semantic_dwconv.0.pointwise_conv.conv.bias')
# The square of 1.8e19 exceeds float32; this leaves room to add up some hundred squares, as a layer
# does. Trained weights and statistics are below 1e4.
MAX_WEIGHT = 1e18
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64)


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, is refused, or does not fit."""


class Layout(NamedTuple):
    """Names of one layout, and what it has or lacks beside ours."""

    title: str
    marks: tuple[str, ...]  # a key that begins so belongs to this layout
    tables: tuple[tuple[str, str, str], ...]  # prefix there, prefix here, lines
    omitted: str = '(?!)'  # pattern of keys without a counterpart here
    reason: str = ''  # why they have none
    note: str = ''  # what its network differs in


FOREIGN_LAYOUTS = dict(
    # github.com/SegmentationBLWX/sssegmentation, {'model', 'optimizer', ...}
    sssegmentation=Layout(
        'SSSegmentation',
        ('backbone_net.detail.', 'backbone_net.semantic.', 'backbone_net.bga.'),
        (('backbone_net.', 'backbone.', """
            detail.detail_branch.*.{0,1} detail.detail_branch.*.0.{conv,bn}
            detail.detail_branch.*.{3,4} detail.detail_branch.*.1.{conv,bn}
            detail.detail_branch.*.{6,7} detail.detail_branch.*.2.{conv,bn}
            bga.{detail,semantic}_dwconv.0.depthwise_{conv,bn} \
                bga.{detail,semantic}_dwconv.0.depthwise_conv.{conv,bn}
            bga.{detail,semantic}_dwconv.0.pointwise_conv \
                bga.{detail,semantic}_dwconv.0.pointwise_conv.conv
            bga.{detail_down,semantic_conv}.{0,1} bga.{detail_down,semantic_conv}.0.{conv,bn}
            bga.conv.{0,1} bga.conv.{conv,bn}"""),
         ('backbone_net.semantic.', 'backbone.semantic.', """
            stage1.{conv_first,fuse_last}.{0,1} stage1.{conv_first,fuse_last}.{conv,bn}
            stage1.convs.{0,1,3,4} stage1.convs.{0.conv,0.bn,1.conv,1.bn}
            stage*.*.conv1.{0,1} stage*.*.conv1.{conv,bn}
            stage*.*.dwconv.{0,1,2,3} stage*.*.dwconv.{0.conv,0.bn,1.conv,1.bn}
            stage*.*.conv2.{0,1} stage*.*.conv2.0.{conv,bn}
            stage*.*.shortcut.0.{depth,point}wise_{conv,bn} \
                stage*.*.shortcut.0.{depth,point}wise_conv.{conv,bn}
            stage4_CEBlock.gap.1 stage4_CEBlock.gap.1
            stage4_CEBlock.{conv_gap,conv_last}.{0,1} stage4_CEBlock.{conv_gap,conv_last}.{conv,bn}
            """),
         ('decoder.', 'decode_head.', '{0,1,4} {convs.0.conv,convs.0.bn,conv_seg}'),
         ('auxiliary_decoder.', 'auxiliary_head.', """
            *.{0,1,3,4,7} *.{convs.0.conv,convs.0.bn,convs.1.conv,convs.1.bn,conv_seg}"""))),
    # github.com/CoinCheung/BiSeNet, a bare state dict
    coincheung=Layout(
        'CoinCheung/BiSeNet',
        ('detail.S', 'segment.S', 'bga.left', 'bga.right'),
        (('detail.', 'backbone.detail.', 'S{1,2,3}.*.{conv,bn} detail_branch.{0,1,2}.*.{conv,bn}'),
         ('segment.S1S2.', 'backbone.semantic.stage1.', """
            {conv,fuse}.{conv,bn} {conv_first,fuse_last}.{conv,bn}
            left.*.{conv,bn} convs.*.{conv,bn}"""),
         ('segment.', 'backbone.semantic.', """
            {S3,S4,S5_4}.*.conv1.{conv,bn} {stage2,stage3,stage4}.*.conv1.{conv,bn}
            {S3,S4,S5_4}.0.dwconv{1,2}.{0,1} {stage2,stage3,stage4}.0.dwconv.{0,1}.{conv,bn}
            {S3,S4,S5_4}.*.dwconv.{0,1} {stage2,stage3,stage4}.*.dwconv.0.{conv,bn}
            {S3,S4,S5_4}.*.conv2.{0,1} {stage2,stage3,stage4}.*.conv2.0.{conv,bn}
            {S3,S4,S5_4}.*.shortcut.{0,1,2,3} \
                {stage2,stage3,stage4}.*.shortcut.0.{depth,point}wise_conv.{conv,bn}
            S5_5.bn stage4_CEBlock.gap.1
            S5_5.{conv_gap,conv_last}.{conv,bn} stage4_CEBlock.{conv_gap,conv_last}.{conv,bn}"""),
         ('bga.', 'backbone.bga.', """
            {left1,right2}.{0,1} {detail,semantic}_dwconv.0.depthwise_conv.{conv,bn}
            {left1,right2}.2 {detail,semantic}_dwconv.0.pointwise_conv.conv
            {left2,right1}.{0,1} {detail_down,semantic_conv}.0.{conv,bn}
            conv.{0,1} conv.{conv,bn}"""),
         ('head.', 'decode_head.', """
            conv.{conv,bn} convs.0.{conv,bn}
            conv_out.1 conv_seg""")),
        omitted=r'aux\d.*',
        reason='its auxiliary heads are of another design',
        note='its aggregation upsamples by nearest neighbour and its normalisation is another. To '
             'test the weights as they are, use the settings of '
             'configs/bisenetv2_fcn_coincheung_cityscapes.py; to fine-tune, any config will do'))
LAYOUTS = ('mmsegmentation', *FOREIGN_LAYOUTS)


def _expand(names: str) -> list[str]:
    """Expands braces: 'a.{b,c}.{d,e}' is a.b.d, a.b.e, a.c.d, a.c.e."""
    parts = re.split(r'\{(.*?)\}', names)
    choices = [part.split(',') if i % 2 else [part] for i, part in enumerate(parts)]
    return [''.join(choice) for choice in itertools.product(*choices)]


@functools.cache
def _rules(layout: str, back: bool = False) -> list[tuple[re.Pattern[str], str]]:
    """The tables as (pattern, format string), from the layout to our keys, or ``back``."""
    rules = []
    for theirs, ours, lines in FOREIGN_LAYOUTS[layout].tables:
        words = lines.split()
        for left, right in zip(words[::2], words[1::2], strict=True):
            for pair in zip(_expand(theirs + left), _expand(ours + right), strict=True):
                source, target = reversed(pair) if back else pair
                pattern = re.escape(source).replace(r'\*', '([0-9]+)') + r'\.(\w+)'
                rules.append((re.compile(pattern), target.replace('*', '{}') + '.{}'))
    return rules


def _rename(key: str, rules: list[tuple[re.Pattern[str], str]]) -> str | None:
    """The new name of a key, or None where no rule has one."""
    matches = ((pattern.fullmatch(key), target) for pattern, target in rules)
    return next((target.format(*match.groups()) for match, target in matches if match), None)


def first_names(names: Iterable[str]) -> str:
    """The first three names for a message, shortened."""
    return ', '.join(name[:100] for name in itertools.islice(names, 3)) + ' ...'


def unwrap(checkpoint: Any) -> dict[str, Any]:
    """Finds the tensors in a checkpoint of any layout, and strips the prefixes of wrappers.

    Args:
        checkpoint: A state dict, or one in parts (CoinCheung's ``backbone_v2.pth``), or a file's
            content that holds one as ``state_dict`` (MMEngine) or ``model`` (SSSegmentation).
            Keys may begin with ``module.`` (DDP) or ``_orig_mod.`` (``torch.compile``).

    Returns:
        A new, plain dictionary: what a crafted ``OrderedDict`` carries in its attributes stays
        behind.

    Raises:
        CheckpointError: If there is no dictionary with names for keys.
    """
    for wrapper in ('state_dict', 'model'):
        if isinstance(checkpoint, dict) and wrapper in checkpoint and (
                wrapper == 'state_dict' or isinstance(checkpoint[wrapper], dict)):
            checkpoint = checkpoint[wrapper]
            break
    if isinstance(checkpoint, dict) and all(isinstance(v, dict) for v in dict.values(checkpoint)):
        checkpoint = {f'{name}.{key}': value for name, part in dict.items(checkpoint)
                      for key, value in dict.items(part)}
    if not isinstance(checkpoint, dict) or not all(isinstance(key, str) for key in checkpoint):
        raise CheckpointError(f'found a {type(checkpoint).__name__} where a state dict was '
                              'expected: a dictionary from names to tensors')
    return {re.sub(r'^((module|_orig_mod)\.)+', '', key): value
            for key, value in dict.items(checkpoint)}


def recognise(state: dict[str, Any]) -> str | None:
    """Names the layout of a bare state dict.

    Returns:
        'mmsegmentation', 'sssegmentation' or 'coincheung'; None if it holds no BiSeNetV2.
    """
    ours = ('backbone.detail.', 'backbone.semantic.', 'backbone.bga.')
    marks = {'mmsegmentation': ours,
             **{name: layout.marks for name, layout in FOREIGN_LAYOUTS.items()}}
    return next((name for name, mark in marks.items()
                 if any(key.startswith(mark) for key in state)), None)


def check_tensor(key: str, value: Any) -> None:
    """Refuses what no trained weight is.

    An expanded tensor (stride 0) declares any size without the memory for it. NaN and infinity
    are what diverged training leaves, and nothing can be computed from them. Neither can from
    numbers beyond :data:`MAX_WEIGHT`, or from a negative variance, whose root is NaN.

    Raises:
        CheckpointError: With the key, and what was found.
    """
    if not isinstance(value, torch.Tensor):
        raise CheckpointError(f'{key}: expected a tensor, found a {type(value).__name__}')
    if (value.dtype not in DTYPES or value.layout is not torch.strided or value.is_meta
            or value.numel() * value.element_size() > value.untyped_storage().nbytes()):
        raise CheckpointError(f'{key}: expected numbers, found a {value.dtype} tensor that is '
                              'sparse, quantised, complex, or larger than its data')
    if value.is_floating_point() and value.numel():
        low, high = (bound.item() for bound in value.aminmax())
        if not math.isfinite(low) or not math.isfinite(high):
            raise CheckpointError(f'{key} holds NaN or infinity: the training had diverged. Use '
                                  'an earlier checkpoint')
        if max(-low, high) > MAX_WEIGHT:
            raise CheckpointError(f'{key} holds {max(low, high, key=abs):.3g}, more than '
                                  f'{MAX_WEIGHT:.0e}: the training had diverged, or the file is '
                                  'damaged. Use an earlier checkpoint')
        if key.endswith('running_var') and low < 0:
            raise CheckpointError(f'{key} holds {low:.3g}, a negative variance: the file is '
                                  'damaged. Use an earlier checkpoint')


def convert_state_dict(checkpoint: Any, to: str = 'mmsegmentation') -> dict[str, Tensor]:
    """Converts the weights of a loaded checkpoint, of any layout, to that of another.

    Args:
        checkpoint: What was loaded, see :func:`unwrap`. Keys that no table knows are kept, so
            that strict loading complains about them.
        to: 'mmsegmentation', whose keys are this project's, 'sssegmentation' or 'coincheung'.

    Names and values are converted, not networks: CoinCheung's upsamples by nearest neighbour, so
    its weights, and those for it, belong to a backbone with ``bga_upsample='nearest'``.

    Returns:
        A bare state dict that shares its tensors with the checkpoint, but for floating-point
        counters, as all-half checkpoints have them: they become int64. What was converted is
        logged in one line.

    Raises:
        CheckpointError: If there is no state dict, or the other layout cannot carry it exactly.
    """
    state = {key: _counter(value) if key.endswith('num_batches_tracked') else value
             for key, value in unwrap(checkpoint).items()}
    layout = recognise(state)
    if layout in FOREIGN_LAYOUTS:
        state = _to_ours(state, layout)
    return state if to == 'mmsegmentation' else _from_ours(state, to)


def _counter(value: Any) -> Any:
    """BatchNorm's count of batches as int64, if it is a floating-point number of whole value.

    Above 65,504 a half is infinite. BatchNorm uses its count with ``momentum=None`` only, which
    this network has not, so the largest half stands for it.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim():
        return value
    if value.dtype == torch.float16:
        value = value.clamp(max=torch.finfo(torch.float16).max)
    return value.long() if 0 <= value.item() < 2**63 and value == value.round() else value


def _to_ours(state: dict[str, Any], layout: str) -> dict[str, Tensor]:
    title, _, _, omitted, reason, note = FOREIGN_LAYOUTS[layout]
    kept = {key: value for key, value in state.items() if not re.fullmatch(omitted, key)}
    names = {key: _rename(key, _rules(layout)) for key in kept}
    ours: dict[str, Tensor] = {}
    for key, name in names.items():
        check_tensor(key, kept[key])
        if ours.setdefault(name or key, kept[key]) is not kept[key]:
            raise CheckpointError(f'{title} weights: two tensors are {name or key}')
    for bias in BGA_BIASES:
        weight = ours.get(bias.replace('.bias', '.weight'))
        if weight is not None:
            ours.setdefault(bias, weight.new_zeros(weight.shape[:1]))
    unknown = [key for key, name in names.items() if name is None]
    print_log(
        f'{title} weights converted: {len(kept) - len(unknown)} tensors used'
        + (f', {len(state) - len(kept)} left out ({reason})' if len(kept) < len(state) else '')
        + (f', {len(unknown)} unknown ({first_names(unknown)})' if unknown else '')
        + f', {len(BGA_BIASES)} biases that it lacks set to 0' + f'; {note}' * bool(note),
        logger='current')
    return ours


def _from_ours(state: dict[str, Any], layout: str) -> dict[str, Tensor]:
    if layout not in FOREIGN_LAYOUTS:
        raise CheckpointError(f'to={layout!r}: expected one of {LAYOUTS}')
    title, _, _, _, reason, _ = FOREIGN_LAYOUTS[layout]
    for bias in BGA_BIASES:
        if torch.any(torch.as_tensor(state.pop(bias, 0)) != 0):
            raise CheckpointError(
                f'{bias} is not 0, and {title} has no such bias: it would compute something else. '
                'It can take weights that were trained with model.backbone.bga_bias=False')
    names = {key: _rename(key, _rules(layout, back=True)) for key in state}
    unknown = [key for key, name in names.items() if name is None]
    if unknown:
        raise CheckpointError(
            f'{title} has no place for {len(unknown)} tensors ({first_names(unknown)})'
            + (f': {reason}. Leave them out: tools/convert_checkpoint.py --strip' * bool(reason)))
    return {str(names[key]): value for key, value in state.items()}
