"""The training step: preprocessing, layout, optimiser, checkpointing and log, against the plain."""
import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import PixelData

import mmseg_bisenetv2  # noqa: F401
from mmseg_bisenetv2.datasets.toy_cityscapes import draw_scene
from mmseg_bisenetv2.models import SegDataPreProcessor

from mmseg.models import SegDataPreProcessor as MMSegDataPreProcessor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

CONFIG = Path(__file__).parents[2] / 'configs/bisenetv2_fcn_cityscapes.py'
MMSEG = 'mmseg::bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py'
SIZE = (64, 96)


def batch(sizes=(SIZE, SIZE), image_dtype=torch.uint8, label_dtype=torch.int64, channels=3):
    """What the data loader yields, the same every time."""
    generator = torch.Generator().manual_seed(0)
    images, samples = [], []
    for size in sizes:
        image = torch.randint(0, 256, (channels, *size), generator=generator)
        label = torch.randint(0, 19, (1, *size), generator=generator)
        label[:, :5] = 255
        images.append(image.to(image_dtype))
        samples.append(SegDataSample(
            gt_sem_seg=PixelData(data=label.to(label_dtype)), metainfo=dict(ori_shape=size)))
    return dict(inputs=images, data_samples=samples)


NORMALISE = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
COLOUR = dict(NORMALISE, bgr_to_rgb=True)


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('options, data', [
    (dict(COLOUR, size=SIZE), {}),
    (dict(COLOUR, size=SIZE, pad_val=-7.5, seg_pad_val=254), dict(sizes=[(50, 96), (64, 70)])),
    (dict(COLOUR, size=(40, 40)), {}),  # smaller than the images: not cropped
    (dict(COLOUR, size_divisor=32), dict(sizes=[(50, 61), (33, 90)])),
    (dict(COLOUR, size=SIZE, test_cfg=dict(size_divisor=64)), {}),
    (dict(COLOUR, size=SIZE), dict(label_dtype=torch.uint8, sizes=[SIZE, (30, 31)])),
    (dict(COLOUR, size=SIZE), dict(image_dtype=torch.float32)),
    (dict(NORMALISE, size=SIZE, rgb_to_bgr=True), {}),
    (dict(size=SIZE, bgr_to_rgb=True), {}),
    (dict(mean=[1.5], std=[2], bgr_to_rgb=True, size=SIZE), dict(channels=1)),
    (dict(mean=[1, 2, 3], std=[2, 3, 4], size=SIZE), {}),
], ids=lambda value: ','.join(value) or 'plain')
def test_preprocessor_equals_mmseg(options, data, training, channels_last):
    theirs = MMSegDataPreProcessor(**options)
    ours = SegDataPreProcessor(**options, channels_last=channels_last)
    sizes = set(data.get('sizes', []))
    if not training and len(sizes) > 1:
        with pytest.raises(AssertionError, match='should be the same'):
            ours(batch(**data), training)
        return
    expected, result = theirs(batch(**data), training), ours(batch(**data), training)
    assert result['inputs'].dtype == expected['inputs'].dtype
    assert torch.equal(result['inputs'], expected['inputs'])
    assert result['inputs'].is_contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    for mine, other in zip(result['data_samples'], expected['data_samples'], strict=True):
        assert mine.metainfo == other.metainfo
        assert mine.gt_sem_seg.data.dtype == other.gt_sem_seg.data.dtype
        assert torch.equal(mine.gt_sem_seg.data, other.gt_sem_seg.data)


def test_preprocessor_leaves_the_batch_alone_and_needs_no_labels_to_predict():
    ours = SegDataPreProcessor(**COLOUR, size=SIZE)
    data = batch(sizes=[(50, 96), (64, 70)])
    ours(data, True)
    for mine, before in zip(data['inputs'], batch(sizes=[(50, 96), (64, 70)])['inputs'],
                            strict=True):
        assert torch.equal(mine, before)
    assert ours(dict(inputs=batch()['inputs']))['data_samples'] is None


def test_preprocessor_follows_the_models_type():
    theirs, ours = (kind(**COLOUR, size=SIZE).double()
                    for kind in (MMSegDataPreProcessor, SegDataPreProcessor))
    assert torch.equal(ours(batch(), True)['inputs'], theirs(batch(), True)['inputs'])
    assert ours(batch(), True)['inputs'].dtype == torch.float64


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_preprocessor_is_pickled(protocol):
    ours = SegDataPreProcessor(**COLOUR, size=SIZE, channels_last=True)
    again = pickle.loads(pickle.dumps(ours, protocol))
    result, expected = again(batch(), True)['inputs'], ours(batch(), True)['inputs']
    assert torch.equal(result, expected) and result.stride() == expected.stride()


def build(config=CONFIG, size=SIZE, **optimizer):
    """A model without dropout, and its optimiser, from a config."""
    if config == MMSEG:
        config = get_config(MMSEG)
        for head in (config.model.decode_head, *config.model.auxiliary_head):
            head.loss_decode.avg_non_ignore = True
    else:
        config = Config.fromfile(config)
    config.model.data_preprocessor.size = size
    for head in (config.model.decode_head, *config.model.auxiliary_head):
        head.dropout_ratio = 0
    torch.manual_seed(0)
    model = revert_sync_batchnorm(MODELS.build(config.model)).train()
    optimizer = dict(config.optim_wrapper.optimizer, **optimizer)
    return model, build_optim_wrapper(model, dict(type='OptimWrapper', optimizer=optimizer))


def test_step_equals_mmseg_in_float64():
    models, wrappers = zip(build(MMSEG), build(), strict=True)
    models[0].load_state_dict(models[1].state_dict())
    layouts = []
    models[1].backbone.detail.detail_branch[2].register_forward_hook(
        lambda module, inputs, output: layouts.append(
            output.is_contiguous(memory_format=torch.channels_last)))
    for model in models:
        model.double()
    for bound in (1e-10, 1e-8):  # the second step enlarges what rounding did in the first
        expected, losses = (model.train_step(batch(), wrapper)
                            for model, wrapper in zip(models, wrappers, strict=True))
        assert losses.keys() == expected.keys()
        for key in losses:  # accuracies are float32
            assert losses[key].item() == pytest.approx(
                expected[key].item(), rel=1e-6 if 'acc' in key else 1e-9), key
        theirs, ours = (model.state_dict() for model in models)
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=bound, atol=bound)
    assert list(losses) == list(expected)  # in the order of the log
    assert layouts == [True, True]
    assert all(value.is_contiguous() for value in ours.values())  # checkpoints stay as they are


def test_backward_begins_with_the_decode_head():
    model, wrapper = build()
    heads = dict(decode=model.decode_head, auxiliary=model.auxiliary_head[-1])
    order = []
    for name, head in heads.items():
        head.conv_seg.weight.register_post_accumulate_grad_hook(
            lambda _, name=name: order.append(name))
    model.train_step(batch(), wrapper)
    assert order == ['decode', 'auxiliary']


@pytest.mark.parametrize('channels', [3, 128])
def test_fused_sgd_equals_the_plain_loop(channels):
    results = []
    for fused in (True, False):
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(channels, 64, 3)
        options = Config.fromfile(CONFIG).optim_wrapper.optimizer
        assert options.fused
        options.update({} if fused else dict(fused=False, foreach=False))
        wrapper = build_optim_wrapper(layer, dict(type='OptimWrapper', optimizer=options))
        for _ in range(5):
            for parameter in layer.parameters():
                parameter.grad = torch.randn_like(parameter)
            wrapper.step()
        results.append(layer.weight.detach())
    assert (results[0] - results[1]).norm() <= 1e-6 * results[1].norm()


def test_fused_sgd_skips_a_step_that_overflowed():
    model, wrapper = build()
    scaler = torch.amp.GradScaler('cpu')
    for value, moves in ((1.0, True), (float('inf'), False)):
        before = copy.deepcopy(model.state_dict())
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, value)
        scaler.scale(torch.ones(()))  # sets the scale up
        scaler.step(wrapper.optimizer)
        scaler.update()
        moved = any(not torch.equal(before[key], tensor)
                    for key, tensor in model.state_dict().items())
        assert moved == moves


@pytest.mark.parametrize('dtype', [
    torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])  # CPUs emulate it
def test_autocast_on_the_cpu(dtype):
    model, wrapper = build()
    reference, _ = build()
    scaler = torch.amp.GradScaler('cpu', enabled=dtype == torch.float16)
    for i in range(2):
        with torch.autocast('cpu', dtype):
            losses = model(**model.data_preprocessor(batch(), True), mode='loss')
        total, log = model.parse_losses(losses)
        if i == 0:
            expected, _ = reference.parse_losses(
                reference(**reference.data_preprocessor(batch(), True), mode='loss'))
            assert total.item() == pytest.approx(expected.item(), rel=0.02)
            assert total.dtype == torch.float32
        scaler.scale(total).backward()
        scaler.step(wrapper.optimizer)
        scaler.update()
        wrapper.zero_grad()
        assert all(torch.isfinite(value).all() for value in log.values())
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_compiled_step_equals_eager():
    (model, wrapper), (other, other_wrapper) = build(), build()
    step = torch.compile(other.train_step, backend='eager')  # as MMEngine's cfg.compile does
    for _ in range(2):
        expected, losses = model.train_step(batch(), wrapper), step(batch(), other_wrapper)
        for key, value in expected.items():
            assert losses[key].item() == pytest.approx(value.item(), rel=1e-3), key
    torch._dynamo.reset()


class Model(torch.nn.Module):
    """Returns the losses of a script."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.calls = 0

    def train_step(self, data, optim_wrapper):
        self.calls += 1
        return dict(loss=torch.tensor(1 / self.calls), acc=torch.tensor(self.calls * 1.5))


@pytest.mark.parametrize('max_iters, interval', [(7, 3), (6, 3), (5, 9)])
def test_log_and_checkpoints_are_mmengines(tmp_path, monkeypatch, max_iters, interval):
    logged, reads = {}, []
    original = HOOKS.get('RuntimeInfoHook').after_train_iter

    def spy(self, runner, batch_idx, data_batch=None, outputs=None):
        reads.append(runner.iter)
        original(self, runner, batch_idx, outputs=outputs)

    monkeypatch.setattr(HOOKS.get('RuntimeInfoHook'), 'after_train_iter', spy)
    for kind in ('RuntimeInfoHook', 'mmseg_bisenetv2.RuntimeInfoHook'):
        reads.clear()
        work = tmp_path / kind
        Runner(
            Model(), str(work), train_dataloader=dict(
                dataset=list(range(40)), batch_size=1, num_workers=0,
                sampler=dict(type='InfiniteSampler', shuffle=False)),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=99),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            default_hooks=dict(
                runtime_info=dict(type=kind), logger=dict(type='LoggerHook', interval=interval),
                checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4)),
            default_scope='mmseg', experiment_name=f'{kind}{max_iters}{interval}').train()
        scalars = ''.join(path.read_text() for path in work.glob('*/vis_data/scalars.json'))
        lines = [json.loads(line) for line in scalars.splitlines()]
        lines = [(line['step'], line['loss'], line['acc']) for line in lines]
        states = {}
        for path in sorted(work.glob('iter_*.pth')):
            history = torch.load(path, weights_only=False)['message_hub']['log_scalars']
            states[path.name] = {key: np.array(history[key].data) for key in (
                'train/loss', 'train/acc')}
        logged[kind] = lines, states, list(reads)
    (lines, states, every), (our_lines, our_states, ours) = logged.values()
    assert every == list(range(max_iters))
    # all were read, and only where the log, a checkpoint or the end wanted them
    assert len(ours) == max_iters
    assert set(ours) <= {i for i in range(max_iters)
                         if (i + 1) % interval == 0 or (i + 1) % 4 == 0 or i + 1 == max_iters}
    assert states.keys() == our_states.keys() and states
    for name, state in states.items():
        for key, value in state.items():
            np.testing.assert_array_equal(our_states[name][key], value)
    assert lines == our_lines
    assert len(lines) == max_iters // interval


def scenes(number, size=(32, 32)):
    """Parts of toy scenes as a data loader would yield them, two at a time."""
    batches = []
    for seed in range(number):
        images, samples = [], []
        for i in range(2):
            image, label = draw_scene(np.random.default_rng([seed, i]), (64, 128))
            image, label = (torch.from_numpy(x[16:16 + size[0], 32:32 + size[1]].copy())
                            for x in (image, label))
            images.append(image.permute(2, 0, 1).contiguous())
            samples.append(SegDataSample(gt_sem_seg=PixelData(data=label.long()[None])))
        batches.append(dict(inputs=images, data_samples=samples))
    return batches


@pytest.mark.parametrize('iterations', [8, pytest.param(100, marks=pytest.mark.slow)])
def test_every_step_of_a_training_equals_mmsegs(iterations):
    """Iterations in float64, each from the same weights: the same loss, and the same move.

    Left to themselves two trainings part, however equal: BatchNorm over a handful of values is
    chaotic. MMSegmentation, its weights turned by 1e-15, is 1e-9, 1e-6, 1e-3 and 1e-2 away from
    itself after as many iterations.
    """
    batches = scenes(8)
    (theirs, their_wrapper), (ours, our_wrapper) = (
        build(config, size=batches[0]['inputs'][0].shape[1:], lr=0.05)
        for config in (MMSEG, CONFIG))
    theirs.double(), ours.double()
    losses = []
    for i in range(iterations):
        before = copy.deepcopy(ours.state_dict())
        theirs.load_state_dict(before)
        expected = theirs.train_step(batches[i % 8], their_wrapper)['loss'].item()
        losses.append(ours.train_step(batches[i % 8], our_wrapper)['loss'].item())
        assert losses[-1] == pytest.approx(expected, rel=1e-9), i
        moves = [torch.cat([(value - before[key]).flatten()
                            for key, value in model.named_parameters()])
                 for model in (theirs, ours)]
        assert (moves[1] - moves[0]).norm() < 1e-6 * moves[0].norm(), i
    if iterations == 100:
        assert np.mean(losses[-8:]) < 0.5 * np.mean(losses[:8])


def test_losses_are_read_before_a_validation():
    from types import SimpleNamespace

    from mmengine.logging import MessageHub
    hook = HOOKS.build(dict(type='mmseg_bisenetv2.RuntimeInfoHook'))
    runner = SimpleNamespace(message_hub=MessageHub.get_instance('before_val'))
    hook.before_val(runner)  # nothing kept: a validation alone
    hook._kept, hook._batch_idx = [dict(loss=torch.tensor(2.0)), dict(loss=torch.tensor(3.0))], 1
    hook.before_val(runner)
    assert runner.message_hub.get_scalar('train/loss').data[0].tolist() == [2.0, 3.0]
    assert hook._kept == []
