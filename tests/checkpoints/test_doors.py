"""Every layout through every way in: the numbers of the implementations come out."""
import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import golden_arrays, golden_batch, golden_input, golden_state_dict, shared
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, load_checkpoint
from mmengine.structures import PixelData

import mmseg_bisenetv2  # noqa: F401
from mmseg_bisenetv2.checkpoints import CheckpointError, convert_state_dict
from mmseg_bisenetv2.checkpoints.layouts import BGA_BIASES

from mmseg.apis import MMSegInferencer, init_model
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

CONFIGS = Path(__file__).parents[2] / 'configs'
COUNTER = itertools.count()
WRAPPED = dict(
    ssseg=lambda state: {'cur_epoch': 860, 'cur_iter': 159960, 'optimizer': {'state': {}},
                         'model': state},
    coincheung=lambda state: state)
SIZES = dict(ssseg=['64x128', '97x161'], coincheung=['64x128'])
CASES = [(name, size) for name, sizes in SIZES.items() for size in sizes]


def load_config(name='ssseg', num_classes=19):
    middle = 'coincheung_' if name == 'coincheung' else ''
    config = Config.fromfile(CONFIGS / f'bisenetv2_fcn_{middle}cityscapes.py')
    init_default_scope(config.default_scope)
    for head in (config.model.decode_head, *config.model.auxiliary_head):
        head.num_classes = num_classes
    config.model.data_preprocessor.size = (64, 128)
    return config


def build(config):
    return MODELS.build(copy.deepcopy(config.model))


def weights_equal(model, state):
    own = model.state_dict()
    return all(torch.equal(own[key], value) for key, value in state.items() if key in own)


class Samples(torch.utils.data.Dataset):
    """Images that are normalised already, with labels."""

    metainfo = dict(classes=('a', ) * 19, palette=[[0, 0, 0]] * 19)

    def __init__(self, *pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        image, label = self.pairs[index]
        size = tuple(image.shape[-2:])
        sample = SegDataSample(
            metainfo=dict(ori_shape=size, img_shape=size, pad_shape=size),
            gt_sem_seg=PixelData(data=label))
        return dict(inputs=image, data_samples=sample)


class Agreement(BaseMetric):
    """The share of pixels whose label is the expected one, the lowest of all images."""

    def process(self, data_batch, data_samples):
        for sample in data_samples:
            same = sample['pred_sem_seg']['data'] == sample['gt_sem_seg']['data']
            self.results.append(same.float().mean().item())

    def compute_metrics(self, results):
        return dict(agreement=min(results))


def runner(config, work_dir, samples, **kwargs):
    """A runner on the CPU, on images that are normalised already."""
    config = copy.deepcopy(config)
    config.model.data_preprocessor.update(
        mean=[0.0] * 3, std=[1.0] * 3, bgr_to_rgb=False, size=None, size_divisor=1)
    loader = dict(dataset=samples, batch_size=1, num_workers=0, collate_fn=dict(
        type='pseudo_collate'), sampler=dict(type='DefaultSampler', shuffle=False))
    return Runner(
        model=config.model, work_dir=str(work_dir), test_dataloader=loader, test_cfg=dict(),
        test_evaluator=[Agreement()], default_scope='mmseg',
        experiment_name=f'doors{next(COUNTER)}', **kwargs)


def trainer(config, work_dir, **kwargs):
    """One that trains for a step, and changes nothing but running statistics."""
    images, labels = golden_batch()
    labels[labels != 255] %= config.model.decode_head.num_classes
    loader = dict(
        dataset=Samples(*((image, label[None]) for image, label in
                          zip(images[..., :64, :64], labels[..., :64, :64], strict=True))),
        batch_size=2, num_workers=0, collate_fn=dict(type='pseudo_collate'),
        sampler=dict(type='InfiniteSampler', shuffle=False))
    return runner(
        config, work_dir, Samples(), train_dataloader=loader,
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0, momentum=0.9)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1),
                           logger=dict(type='LoggerHook', interval=1)), **kwargs)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('files')
    for name, wrap in WRAPPED.items():
        torch.save(wrap(golden_state_dict(name)), folder / f'{name}.pth')
    return {name: str(folder / f'{name}.pth') for name in WRAPPED}


@pytest.fixture(scope='module')
def models(files):
    return {name: init_model(load_config(name), file, device='cpu')
            for name, file in files.items()}


@pytest.fixture(scope='module')
def fresh():
    """A model for what does not get as far as changing it."""
    return build(load_config())


@pytest.fixture(params=['fresh', 'initialised'])
def unchanged(request, fresh, monkeypatch):
    """The same, before and after init_weights()."""
    monkeypatch.setattr(fresh, '_is_init', request.param == 'initialised')
    before = copy.deepcopy(fresh.state_dict())
    yield fresh
    assert weights_equal(fresh, before)


@pytest.fixture(scope='module')
def ours():
    return convert_state_dict(golden_state_dict('ssseg'))


@pytest.mark.parametrize('name, size', CASES)
@torch.no_grad()
def test_init_model_gives_the_golden_numbers(models, name, size):
    model, golden = models[name], golden_arrays(name)
    image = golden_input(*map(int, size.split('x')))
    features = model.extract_feat(image)
    outputs = dict(zip(['head', 'stage1', 'stage2', 'stage3', 'stage4'], features, strict=True))
    outputs['logits'] = model.decode_head(features)
    if name == 'ssseg':
        for i, head in enumerate(model.auxiliary_head):
            outputs[f'aux{i}_logits'] = head(features)
    for key, value in outputs.items():
        np.testing.assert_allclose(value, golden[f'{size}/{key}'], atol=2e-5, rtol=0, err_msg=key)
    labels = F.interpolate(outputs['logits'], image.shape[2:], mode='bilinear',
                           align_corners=model.align_corners).argmax(1)
    assert (labels.numpy() == golden[f'{size}/labels']).mean() >= 0.999


@pytest.mark.parametrize('name, size', CASES)
def test_runner_test_gives_the_golden_numbers(files, tmp_path, name, size):
    golden = golden_arrays(name)
    image = golden_input(*map(int, size.split('x')))[0]
    labels = torch.from_numpy(golden[f'{size}/labels'].astype(np.int64))
    run = runner(load_config(name), tmp_path, Samples((image, labels), (image, labels)),
                 load_from=files[name])
    logits = []
    run.model.decode_head.conv_seg.register_forward_hook(lambda *args: logits.append(args[-1]))
    assert run.test()['agreement'] >= 0.999
    for value in logits:
        np.testing.assert_allclose(value, golden[f'{size}/logits'], atol=2e-5, rtol=0)
    assert len(logits) == 2


def test_training_step_gives_the_golden_numbers(files):
    golden = golden_arrays('ssseg')
    config = load_config()
    for head in (config.model.decode_head, *config.model.auxiliary_head):
        head.dropout_ratio = 0.0
    model = init_model(config, files['ssseg'], device='cpu')
    model = revert_sync_batchnorm(model).double().train()
    images, labels = golden_batch()
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in labels]
    with torch.no_grad():  # the gradients are tested with the network
        losses = model.loss(images.double(), samples)
    losses = [value.item() for key, value in losses.items() if 'loss' in key]
    expected = [golden['train/loss_cls'], *(golden[f'train/loss_aux{i}'] for i in range(1, 5))]
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    statistics = {key.removeprefix('updated/'): torch.from_numpy(golden[key])
                  for key in golden if key.startswith('updated/')}
    assert len(statistics) == 3
    for key, value in convert_state_dict(statistics).items():
        if key not in BGA_BIASES:
            np.testing.assert_allclose(model.state_dict()[key], value, rtol=1e-6, err_msg=key)


@pytest.mark.parametrize('name', WRAPPED)
def test_plain_load_state_dict(name):
    state = WRAPPED[name](golden_state_dict(name))
    config = load_config(name)
    if name == 'coincheung':
        config.model.auxiliary_head = None
    model = build(config)
    keys = list(state)
    assert str(model.load_state_dict(state)) == '<All keys matched successfully>'
    assert list(state) == keys  # the caller's dictionary is as it was
    assert weights_equal(model, convert_state_dict(state))


def test_an_all_half_checkpoint(fresh, ours, tmp_path):
    torch.save({key: value.half() for key, value in ours.items()}, tmp_path / 'half.pth')
    load_checkpoint(fresh, str(tmp_path / 'half.pth'), strict=True)
    assert weights_equal(fresh, {
        key: value.half().float() if value.is_floating_point() else value
        for key, value in ours.items()})


@pytest.mark.parametrize('key, value, reason', [
    ('backbone.detail.detail_branch.0.0.conv.weight', 1e38, r'holds 1e\+38, more than 1e\+18'),
    ('backbone.detail.detail_branch.0.0.bn.running_var', -1.0, 'holds -1, a negative variance')])
def test_what_would_overflow_is_named_when_loaded(unchanged, ours, tmp_path, key, value, reason):
    torch.save({**ours, key: torch.full_like(ours[key], value)}, tmp_path / 'bad.pth')
    with pytest.raises(CheckpointError, match=rf'bad.pth: {key} {reason}'):
        load_checkpoint(unchanged, str(tmp_path / 'bad.pth'))


def test_without_the_bias(ours, fresh):
    config = load_config()
    config.model.backbone.bga_bias = False
    model = build(config)
    model.load_state_dict(golden_state_dict('ssseg'))
    with pytest.raises(CheckpointError, match='bga_bias=True'):
        model.load_state_dict({**ours, BGA_BIASES[1]: torch.ones(128)})
    with pytest.raises(CheckpointError, match=r'are missing.*bga_bias=False'):
        fresh.load_state_dict(model.state_dict())


def test_inferencer(files, models):
    image = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    config = load_config()
    config.test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    inferencer = MMSegInferencer(config, files['ssseg'], device='cpu')
    assert weights_equal(inferencer.model, models['ssseg'].state_dict())
    assert inferencer(image, show=False)['predictions'].shape == (64, 128)


def test_distributed_prefix_and_test_time_augmentation(files, ours, tmp_path):
    torch.save({f'module.{key}': value for key, value in golden_state_dict('ssseg').items()},
               tmp_path / 'ddp.pth')
    config = load_config()
    plain = runner(config, tmp_path, Samples())
    plain.load_checkpoint(str(tmp_path / 'ddp.pth'))
    assert weights_equal(plain.model, ours)
    run = runner(config, tmp_path, Samples())
    run.model = MODELS.build(dict(type='SegTTAModel', module=run.model))  # as mim test --tta does
    run.load_checkpoint(files['ssseg'])
    assert weights_equal(run.model.module, ours)


def test_pretrained_backbone(files, ours):
    config = load_config('coincheung')
    config.model.backbone.init_cfg = dict(
        type='Pretrained', checkpoint=files['ssseg'], prefix='backbone.')
    model = build(config)
    model.init_weights()
    assert weights_equal(model.backbone, {
        key.removeprefix('backbone.'): value for key, value in ours.items()
        if key.startswith('backbone.')})


def test_pretrained_segmentor_of_other_classes(files, ours, log):
    config = load_config(num_classes=11)
    config.model.init_cfg = dict(type='Pretrained', checkpoint=files['ssseg'])
    model = build(config)
    model.init_weights()
    assert any('19 classes, the config 11' in line for line in log)
    assert weights_equal(model, {k: v for k, v in ours.items() if 'conv_seg' not in k})


def test_our_own_checkpoint_resumes_and_is_not_converted(ours, tmp_path, log):
    config = load_config()
    torch.save(ours, tmp_path / 'start.pth')
    first = trainer(config, tmp_path, load_from=str(tmp_path / 'start.pth'))
    first.train()
    log.clear()
    second = trainer(config, tmp_path, load_from=str(tmp_path / 'iter_1.pth'), resume=True)
    second.train_loop._max_iters = 2
    second.train()
    assert 'resumed epoch: 0, iter: 1' in log
    assert not any('converted' in line for line in log)
    momentum = second.optim_wrapper.optimizer.state_dict()['state']
    assert len(momentum) == len(list(second.model.parameters()))
    assert len(second.message_hub.log_scalars['train/loss'].data[0]) == 2
    model = init_model(config, str(tmp_path / 'iter_2.pth'), device='cpu')
    assert model.dataset_meta['classes'] == Samples.metainfo['classes']
    assert weights_equal(model, second.model.state_dict())


def test_fine_tuning_on_other_classes(files, ours, tmp_path, log):
    run = trainer(load_config(num_classes=11), tmp_path, load_from=files['ssseg'])
    run.train()
    assert ('the checkpoint has 19 classes, the config 11: 10 tensors of the classifiers are left '
            'out and start anew') in log
    assert weights_equal(run.model, {key: value for key, value in ours.items()
                                     if 'conv_seg' not in key and not key.endswith(
                                         ('running_mean', 'running_var', 'tracked'))})


def test_fine_tuning_on_other_classes_with_ema(files, ours, tmp_path):
    config = load_config(num_classes=11)
    run = trainer(config, tmp_path, load_from=files['ssseg'],
                  custom_hooks=[dict(type='EMAHook')])
    run.train()
    assert torch.equal(run.model.backbone.bga.conv.conv.weight,
                       ours['backbone.bga.conv.conv.weight'])


def test_other_classes_cannot_be_tested(files, tmp_path):
    config = load_config(num_classes=11)
    message = f'{files["ssseg"]}: the checkpoint has 19 classes, the config 11.*num_classes=19'
    with pytest.raises(CheckpointError, match=message):
        init_model(config, files['ssseg'], device='cpu')
    with pytest.raises(CheckpointError, match=message):
        MMSegInferencer(config, files['ssseg'], device='cpu')
    with pytest.raises(CheckpointError, match=message):
        runner(config, tmp_path, Samples(), load_from=files['ssseg']).test()
    with pytest.raises(CheckpointError, match='19 classes, the config 11'):
        build(config).load_state_dict(golden_state_dict('ssseg'), strict=False)


@pytest.mark.parametrize('change, reason', [
    ({'backbone_net.bga.conv.1.running_mean': None}, 'backbone.bga.conv.bn.running_mean'),
    ({'auxiliary_decoder.3.7.bias': None}, 'auxiliary_head.3.conv_seg.bias'),
    ({'decoder.9.weight': torch.zeros(1)}, 'decoder.9.weight')])
def test_missing_and_superfluous_tensors_in_strict_mode(fresh, change, reason, tmp_path):
    state = {**golden_state_dict('ssseg'), **change}
    state = {key: value for key, value in state.items() if value is not None}
    with pytest.raises(RuntimeError, match=reason):
        fresh.load_state_dict(state)
    torch.save(state, tmp_path / 'broken.pth')
    with pytest.raises(RuntimeError, match=reason):
        load_checkpoint(fresh, str(tmp_path / 'broken.pth'), strict=True)


def test_half_a_network_cannot_be_tested_but_fine_tuned(fresh, ours, tmp_path, monkeypatch):
    part = {key: value for key, value in ours.items() if not key.startswith('backbone.semantic')}
    torch.save(part, tmp_path / 'part.pth')
    with pytest.raises(CheckpointError, match=r'part.pth: \d+ tensors that inference needs'):
        load_checkpoint(fresh, str(tmp_path / 'part.pth'))
    monkeypatch.setattr(fresh.training_began, 'is_set', True)
    load_checkpoint(fresh, str(tmp_path / 'part.pth'))
    assert weights_equal(fresh, part)


@pytest.mark.parametrize('state', [
    {}, {'fc.weight': torch.zeros(1)}, {'backbone.layer1.0.conv1.weight': torch.zeros(64, 64)},
    {'backbone.detail.detail_branch.0.0.conv.weight': torch.zeros(64, 3, 3, 3)}])
def test_what_fits_nothing_is_an_error_always(unchanged, state, tmp_path):
    for strict in (True, False):
        with pytest.raises(CheckpointError, match=r'fits \d of the 385 tensors'):
            unchanged.load_state_dict(state, strict=strict)
    file = tmp_path / 'other.pth'
    for content in (state, {'meta': {}, 'state_dict': state}):
        torch.save(content, file)
        with pytest.raises(CheckpointError, match=r'other.pth: the checkpoint fits \d of the 385'):
            load_checkpoint(unchanged, str(file))


@pytest.mark.parametrize('change', [
    torch.zeros(32, 3, 3, 3), torch.zeros(()), torch.zeros(64, 3, 3, 3, dtype=torch.int64),
    torch.full((64, 3, 3, 3), float('nan')), torch.full((64, 3, 3, 3), float('inf')), 'text', None])
def test_a_tensor_that_does_not_fit_is_named(unchanged, ours, change):
    key = 'backbone.detail.detail_branch.0.0.conv.weight'
    with pytest.raises(CheckpointError, match=key):
        unchanged.load_state_dict({**ours, key: change}, strict=False)


def test_the_hook_outlives_copies(ours):
    model = copy.deepcopy(build(load_config()))
    model.load_state_dict(golden_state_dict('ssseg'))
    assert weights_equal(model, ours)
    outer = torch.nn.ModuleDict(dict(teacher=model, student=torch.nn.Linear(1, 1)))
    outer.load_state_dict({'student.weight': torch.ones(1, 1)}, strict=False)
    torch.nn.init.zeros_(model.decode_head.conv_seg.weight)
    outer.load_state_dict({f'teacher.{key}': value for key, value in
                           golden_state_dict('ssseg').items()}, strict=False)
    assert weights_equal(model, ours)


@pytest.fixture(scope='module')
def rugd():
    config = load_config('coincheung', num_classes=25)
    file = str(shared('weights/rugd25/bisenetv2_rugd25.pth'))
    return config, file, np.load(shared('weights/rugd25/golden.npz'))


@torch.no_grad()
def test_trained_weights_give_the_golden_numbers(rugd, tmp_path):
    config, file, golden = rugd
    model = init_model(config, file, device='cpu')
    features = model.extract_feat(torch.from_numpy(golden['input']))
    np.testing.assert_allclose(features[0], golden['head'], atol=1e-4, rtol=0)
    np.testing.assert_allclose(model.decode_head(features), golden['logits'], atol=1e-4, rtol=0)
    labels = torch.from_numpy(golden['labels'].astype(np.int64))
    run = runner(config, tmp_path, Samples((torch.from_numpy(golden['input'][0]), labels)),
                 load_from=file)
    assert run.test()['agreement'] >= 0.9999


def test_trained_weights_see_the_creek(rugd):
    config, file, _ = rugd
    config = copy.deepcopy(config)
    config.test_pipeline = [
        dict(type='LoadImageFromFile'), dict(type='Resize', scale=(192, 128), keep_ratio=False),
        dict(type='PackSegInputs')]
    classes = shared('weights/rugd25/README.md').read_text().split('Classes: ')[1].split('.')[0]
    classes = classes.split()
    inferencer = MMSegInferencer(config, file, device='cpu')
    inferencer.model.dataset_meta = dict(  # what CoinCheung's files do not hold
        classes=classes, palette=np.random.default_rng(0).integers(0, 256, (25, 3)).tolist())
    result = inferencer(str(shared('weights/rugd25/creek_00156.png')), return_vis=True)
    labels = result['predictions']
    share = dict(zip(classes, np.bincount(labels.ravel(), minlength=25) / labels.size,
                     strict=True))
    assert labels.shape == (550, 688)
    assert result['visualization'].shape == (550, 688, 3)
    assert share['tree'] > 0.3 and share['rock_bed'] > 0.25, share
    assert min(share['sky'], share['bush'], share['water'], share['vehicle']) > 0.02, share
