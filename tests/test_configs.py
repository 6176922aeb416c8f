"""Every config builds, trains a step and predicts; the recipe is the reference's."""
import copy
import dataclasses
import functools
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from golden import DATA, golden_state_dict
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from mmengine.structures import PixelData
from torch.utils.flop_counter import FlopCounterMode

import mmseg_bisenetv2  # noqa: F401
from mmseg_bisenetv2.checkpoints import convert_state_dict
from mmseg_bisenetv2.deploy.export import export_and_verify
from mmseg_bisenetv2.deploy.metadata import ExportMetadata
from mmseg_bisenetv2.deploy.network import FrameNetwork
from mmseg_bisenetv2.engine.amp import start_momentum

import mmseg
from mmseg.apis import init_model
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample

CONFIGS = Path(__file__).parents[1] / 'configs'
NAMES = sorted(path.name for path in CONFIGS.glob('*.py'))


@functools.cache
def read(name):
    return Config.fromfile(CONFIGS / name)


def load(name):
    config = copy.deepcopy(read(name))
    init_default_scope(config.default_scope)
    return config


def batch(config, size=(64, 96), num=2):
    """What the data loader yields: uint8 BGR images and label maps with an ignored border."""
    rng = np.random.default_rng(0)
    images, samples = [], []
    for _ in range(num):
        images.append(torch.from_numpy(rng.integers(0, 256, (3, *size), dtype=np.uint8)))
        label = torch.from_numpy(rng.integers(0, config.model.decode_head.num_classes, (1, *size)))
        label[:, :8] = 255
        sample = SegDataSample(gt_sem_seg=PixelData(data=label))
        sample.set_metainfo(dict(ori_shape=size, img_shape=size, pad_shape=size))
        samples.append(sample)
    return dict(inputs=images, data_samples=samples)


@pytest.fixture(scope='session')
def downloads(tmp_path_factory):
    """A cache of downloads with CoinCheung's ImageNet backbone, a dictionary for each branch."""
    parts = {}
    for key, value in golden_state_dict('coincheung').items():
        name, rest = key.split('.', 1)
        if name in ('detail', 'segment', 'bga'):
            parts.setdefault(name, {})[rest] = value
    assert len(parts) == 3
    home = tmp_path_factory.mktemp('torch')
    (home / 'hub/checkpoints').mkdir(parents=True)
    torch.save(parts, home / 'hub/checkpoints/backbone_v2.pth')
    return home


def test_all_are_here():
    assert {f'bisenetv2{name}.py' for name in (
        '_fcn_cityscapes', '_fcn_fp16_cityscapes', '_fcn_bf16_cityscapes', '_fcn_ohem_cityscapes',
        '_fcn_cityscapes_512x1024', '-large_fcn_cityscapes', '_fcn_coco-stuff10k', '_fcn_camvid',
        '_fcn_b32_cityscapes', '_fcn_head128_cityscapes', '_fcn_imagenet_cityscapes',
        '_fcn_ema_cityscapes', '_fcn_finetune_camvid', '_fcn_finetune-longer_camvid',
        '_fcn_custom', '_fcn_toy-cityscapes')} <= set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_builds_trains_and_predicts(name, downloads, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(downloads))
    config = load(name)
    config.model.data_preprocessor.size = (64, 96)
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    model.init_weights()
    model = revert_sync_batchnorm(model)  # what the runner does on one device
    # AMP refuses to start without a GPU: its settings have a test of their own
    config.optim_wrapper.type = 'OptimWrapper'
    for key in ('dtype', 'loss_scale'):
        config.optim_wrapper.pop(key, None)
    optim_wrapper = build_optim_wrapper(model, config.optim_wrapper)
    losses = model.train_step(batch(config), optim_wrapper)
    parts = [key for key in losses if key.endswith('loss_ce')]
    assert len(parts) == 5
    num_classes = config.model.decode_head.num_classes
    for part in parts:  # an untrained network knows nothing, and the losses have weight 1
        assert losses[part].item() == pytest.approx(np.log(num_classes), rel=0.5)
    model.eval()
    with torch.no_grad():
        result = model.val_step(batch(config, num=1))[0]
        logits = model(torch.randn(1, 3, 64, 96), mode='tensor')
    assert result.pred_sem_seg.data.shape == (1, 64, 96)
    assert result.pred_sem_seg.data.max() < num_classes
    assert logits.shape == (1, num_classes, 8, 12)


def test_compared_trainings_differ_in_whose_classes_they_use(monkeypatch):
    """What docs/camvid.md draws: the same weights and pictures give the same losses."""
    folder, losses, weights = CONFIGS.parent / 'docs/camvid/comparison', [], None
    monkeypatch.chdir(CONFIGS.parent)
    for name in ('ours', 'stock'):
        config = Config.fromfile(folder / f'{name}.py')
        config.model.data_preprocessor.size = (64, 96)
        model = revert_sync_batchnorm(MODELS.build(config.model)).eval()
        weights = weights or model.state_dict()
        model.load_state_dict(weights)
        data = model.data_preprocessor(batch(config), training=True)
        losses.append(model.parse_losses(model.loss(**data))[1])
    assert type(model).__module__.startswith('mmseg.')
    assert type(model.decode_head).__module__.startswith('mmseg.')
    for key, value in losses[0].items():
        assert value.item() == pytest.approx(losses[1][key].item(), rel=1e-5), key


@pytest.fixture(scope='module')
def exported():
    """What was exported of the configs so far: architecture, preprocessing, metadata."""
    return []


@pytest.mark.parametrize('name', NAMES)
def test_exports(name, tmp_path, exported):
    """The file is run and compared with PyTorch before it is kept.

    Many configs differ in the training only: where an earlier one gave the same deployed network,
    it is not exported again.
    """
    config = load(name)
    torch.manual_seed(0)
    model = init_model(config, device='cpu')
    metadata = dataclasses.replace(ExportMetadata.from_model(model), scale=None)
    assert len(metadata.classes) == config.model.decode_head.num_classes
    model.data_preprocessor.size = None  # the crop of the training
    deployed = (repr(FrameNetwork(model)), repr(vars(model.data_preprocessor)),
                dataclasses.replace(metadata, config=None))
    if deployed in exported:
        pytest.skip('deploys the same network as a config that was exported before')
    frame = np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    with torch.no_grad():  # random weights favour a class; every one shall win somewhere
        image = torch.from_numpy(frame.transpose(2, 0, 1).copy())
        inputs = model.data_preprocessor(dict(inputs=[image]))['inputs']
        logits = model(inputs)
        deviation = logits.std((0, 2, 3))
        model.decode_head.conv_seg.bias.sub_(logits.mean((0, 2, 3))).div_(deviation)
        model.decode_head.conv_seg.weight.div_(deviation[:, None, None, None])
        assert len(model(inputs).argmax(1).unique()) > 1
    figures = export_and_verify(model, metadata, tmp_path / 'net.xml', [frame])
    assert figures['agreement'] >= 99.9 and (tmp_path / 'net.xml').exists()
    exported.append(deployed)


@pytest.mark.parametrize('name', NAMES)
def test_header_says_how_to_launch_and_what_to_expect(name):
    header = (CONFIGS / name).read_text().split('_base_')[0]
    assert f'mim train mmseg configs/{name}' in header
    assert 'Expected:' in header
    config = load(name)
    iterations = config.train_cfg.max_iters
    assert f'{iterations:,} iterations' in header
    assert [s.end for s in config.param_scheduler[1:]] == [iterations + 1]
    assert config.auto_scale_lr.base_batch_size == config.train_dataloader.batch_size


@pytest.mark.parametrize('name', NAMES)
def test_preprocessor_is_a_variable_of_its_own(name):
    """Where tools of MMSegmentation look for mean and standard deviation."""
    config = load(name)
    assert config.data_preprocessor == config.model.data_preprocessor
    assert {'mean', 'std', 'size'} <= config.data_preprocessor.keys()


class GradCAM:
    """Stands in for that of the package grad-cam: Grad-CAM of one layer."""

    maps: list = []

    def __init__(self, model, target_layers, use_cuda):
        self.model, self.use_cuda = model, use_cuda
        self.handle = target_layers[0].register_forward_hook(self.keep)

    def keep(self, layer, inputs, output):
        self.activation = output
        output.register_hook(lambda gradient: setattr(self, 'gradient', gradient))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.handle.remove()

    def __call__(self, input_tensor, targets):
        outputs = self.model(input_tensor)
        sum(target(output) for target, output in zip(targets, outputs, strict=True)).backward()
        weighted = self.gradient.mean((2, 3), keepdim=True) * self.activation
        self.maps.append(weighted.sum(1).relu().detach())
        return self.maps[-1].numpy()


@pytest.mark.parametrize('layer', ['backbone.bga', 'backbone.detail.detail_branch[1][0]'])
def test_visualization_cam(layer, tmp_path, monkeypatch):
    """MMSegmentation's tool, which takes mean and standard deviation from the config."""
    inputs = []

    def preprocess_image(picture, mean, std):
        normalised = (picture - np.float32(mean)) / np.float32(std)
        inputs.append(torch.from_numpy(normalised).permute(2, 0, 1)[None].requires_grad_())
        return inputs[-1]

    stand_in = {'pytorch_grad_cam': SimpleNamespace(GradCAM=GradCAM),
                'pytorch_grad_cam.utils.image': SimpleNamespace(
                    preprocess_image=preprocess_image,
                    show_cam_on_image=lambda picture, cam, use_rgb: np.uint8(255 * picture))}
    for name, module in stand_in.items():
        monkeypatch.setitem(sys.modules, name, module)
    config = load('bisenetv2_fcn_cityscapes.py')
    config.test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    config.dump(tmp_path / 'config.py')
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'a.pth')
    cv2.imwrite(str(tmp_path / 'a.png'), np.random.default_rng(0).integers(
        0, 256, (64, 96, 3), np.uint8))
    expected = model.data_preprocessor(dict(inputs=[torch.from_numpy(
        cv2.imread(str(tmp_path / 'a.png')).transpose(2, 0, 1).copy())]))['inputs']
    with torch.no_grad():
        category = model.eval()(expected).argmax(1).flatten().mode().values
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [
        '', 'a.png', 'config.py', 'a.pth', '--target-layers', layer, '--device', 'cpu',
        '--category-index', str(int(category))])
    runpy.run_path(f'{mmseg.__path__[0]}/.mim/tools/analysis_tools/visualization_cam.py',
                   run_name='__main__')
    assert cv2.imread('prediction.png').shape == cv2.imread('vis_cam.png').shape == (64, 96, 3)
    assert torch.allclose(inputs[0], expected, atol=1e-5)
    assert GradCAM.maps[-1].max() > 0


def test_reference_recipe():
    config = load('bisenetv2_fcn_cityscapes.py')
    assert config.train_cfg.max_iters == 159960 == -(-2975 // 16) * 860
    optimizer = config.optim_wrapper.optimizer
    assert optimizer == dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=5e-4, fused=True)
    assert config.train_dataloader.batch_size == 16
    assert config.train_dataloader.dataset.pipeline[2] == dict(
        type='mmseg_bisenetv2.RandomResizeCrop', scale=(2048, 1024), ratio_range=(0.5, 2.0),
        crop_size=(1024, 1024), cat_max_ratio=0.75, flip_prob=0.5)
    heads = [config.model.decode_head, *config.model.auxiliary_head]
    assert all(head.norm_cfg.type == 'SyncBN' for head in (config.model.backbone, *heads))
    for head in heads:
        assert head.loss_decode == dict(type='mmseg_bisenetv2.UpsampleCrossEntropy')
    model = MODELS.build(config.model)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    inference = millions - sum(p.numel() for p in model.auxiliary_head.parameters()) / 1e6
    assert round(millions, 2) == 14.80
    assert round(inference, 2) == 3.36


def test_learning_rate():
    config = load('bisenetv2_fcn_cityscapes.py')
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.optim_wrapper.optimizer.lr)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(s, optimizer=optimizer)) for s in config.param_scheduler]
    expected = dict(json.loads((DATA / 'ssseg_lr.json').read_text()))
    for i in range(config.train_cfg.max_iters):
        if i in expected:
            lr = optimizer.param_groups[0]['lr']
            assert lr == pytest.approx(expected[i], rel=1e-4, abs=1e-7), i
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()


@pytest.mark.parametrize('name, dtype, loss_scale', [
    ('bisenetv2_fcn_fp16_cityscapes.py', 'float16', 'dynamic'),
    ('bisenetv2_fcn_bf16_cityscapes.py', 'bfloat16', 1.0),
])
def test_amp_settings(name, dtype, loss_scale):
    wrapper = load(name).optim_wrapper
    assert (wrapper.type, wrapper.dtype, wrapper.loss_scale) == (
        'AmpOptimWrapper', dtype, loss_scale)
    assert wrapper.optimizer == load('bisenetv2_fcn_cityscapes.py').optim_wrapper.optimizer


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('name', [
    'bisenetv2_fcn_cityscapes.py', 'bisenetv2_fcn_fp16_cityscapes.py',
    'bisenetv2_fcn_bf16_cityscapes.py', 'bisenetv2_fcn_ohem_cityscapes.py'])
def test_gpu_trains_a_step(name):
    config = load(name)
    config.model.data_preprocessor.size = (64, 96)
    torch.manual_seed(0)
    model = revert_sync_batchnorm(MODELS.build(config.model)).cuda()
    optim_wrapper = build_optim_wrapper(model, config.optim_wrapper)
    start_momentum(optim_wrapper.optimizer)
    for _ in range(3):
        losses = model.train_step(batch(config), optim_wrapper)
        assert all(value.isfinite().all() for value in losses.values())
    assert all(value.isfinite().all() for value in model.state_dict().values())
    if 'fp16' in name:  # The first scale of 65536 may be halved.
        assert optim_wrapper.loss_scaler.get_scale() >= 65536 / 2 ** 3


def test_ohem_takes_effect():
    config = load('bisenetv2_fcn_ohem_cityscapes.py')
    for head in (config.model.decode_head, *config.model.auxiliary_head):
        assert head.sampler == dict(type='OHEMPixelSampler', thresh=0.7, min_kept=100000)
        head.sampler.update(thresh=1e-9, min_kept=50)  # only the 50 hardest pixels an image
        head.dropout_ratio = 0
    config.model.data_preprocessor.size = (64, 96)  # It would pad to the crop of 1024x1024.
    torch.manual_seed(0)
    model = revert_sync_batchnorm(MODELS.build(config.model)).eval()
    data = model.data_preprocessor(batch(config), training=True)
    kept = [float(v) for k, v in model.loss(**data).items() if k.endswith('loss_ce')]
    for head in (model.decode_head, *model.auxiliary_head):
        head.sampler = None
    every = [float(v) for k, v in model.loss(**data).items() if k.endswith('loss_ce')]
    assert all(a < 0.05 * b for a, b in zip(kept, every, strict=True))


def write_data(root, dataset):
    """Two images of 40x80 and their label maps, in the folders that a data set's config names."""
    image = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    label = np.arange(3200, dtype=np.uint8).reshape(40, 80) % 2
    suffixes = dict(
        CityscapesDataset=('_leftImg8bit.png', '_gtFine_labelTrainIds.png'),
        COCOStuffDataset=('.jpg', '_labelTrainIds.png')).get(
            dataset.type.split('.')[-1], ('.jpg', '.png'))
    for folder, suffix, content in zip(
            (dataset.data_prefix.img_path, dataset.data_prefix.seg_map_path), suffixes,
            (image, label), strict=True):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in ('a', 'b'):
            cv2.imwrite(str(root / folder / f'{name}{suffix}'), content)


@pytest.mark.parametrize('name', NAMES)
def test_data_is_loaded_at_the_right_size(name, tmp_path):
    config = load(name)
    crop = config.model.data_preprocessor.size
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        write_data(tmp_path, loader.dataset)
        loader.dataset.data_root = str(tmp_path)
        dataset = DATASETS.build(loader.dataset)
        assert len(dataset) == 2
        assert len(dataset.metainfo['classes']) == config.model.decode_head.num_classes
        sample = dataset[0]
        label = sample['data_samples'].gt_sem_seg.data
        if loader is config.train_dataloader:
            assert sample['inputs'].shape[1:] == label.shape[1:]
            assert all(a <= b for a, b in zip(label.shape[1:], crop, strict=True))
        else:
            assert label.shape == (1, 40, 80)


@pytest.mark.parametrize('name', NAMES)
def test_inferencer_finds_the_loaders_it_replaces(name):
    """MMSegInferencer looks for these names, inference_model in test_pipeline."""
    config = load(name)
    for pipeline in (config.test_dataloader.dataset.pipeline, config.test_pipeline):
        types = [transform.type for transform in pipeline]
        assert types[0] == 'LoadImageFromFile' and 'LoadAnnotations' in types


def test_half_size_inference_is_scored_at_full_size(tmp_path):
    config = load('bisenetv2_fcn_cityscapes_512x1024.py')
    assert config.train_dataloader == load('bisenetv2_fcn_cityscapes.py').train_dataloader
    for loader in (config.val_dataloader, config.test_dataloader):
        write_data(tmp_path, loader.dataset)
        loader.dataset.data_root = str(tmp_path)
        sample = DATASETS.build(loader.dataset)[0]
        assert sample['inputs'].shape == (3, 512, 1024)
        model = MODELS.build(config.model).eval()
        with torch.no_grad():
            result = model.test_step(dict(
                inputs=[sample['inputs']], data_samples=[sample['data_samples']]))[0]
        assert result.pred_sem_seg.data.shape == result.gt_sem_seg.data.shape == (1, 40, 80)


def test_batch_of_32_is_all_that_differs():
    config, reference = (load(f'bisenetv2_fcn_{name}cityscapes.py') for name in ('b32_', ''))
    assert config.train_dataloader.batch_size == 32
    assert config.train_cfg == reference.train_cfg and -(-2975 // 32) * 1720 == 159960
    assert config.optim_wrapper == reference.optim_wrapper
    assert config.param_scheduler == reference.param_scheduler


def test_training_begins_from_the_imagenet_backbone(downloads, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(downloads))
    config = load('bisenetv2_fcn_imagenet_cityscapes.py')
    model = MODELS.build(config.model)
    before = model.decode_head.convs[0].conv.weight.clone()
    model.init_weights()
    expected = convert_state_dict(golden_state_dict('coincheung'))
    state = model.state_dict()
    backbone = [key for key in state if key.startswith('backbone.')]
    assert len(backbone) > 300 and all(torch.equal(state[key], expected[key]) for key in backbone)
    assert torch.equal(model.decode_head.convs[0].conv.weight, before)  # the heads are not in it
    # The network, beside its initial weights, is that of CoinCheung's other weights.
    other = load('bisenetv2_fcn_coincheung_cityscapes.py').model
    del config.model.backbone.init_cfg
    assert config.model == other


def test_large_width_reaches_the_heads():
    config = load('bisenetv2-large_fcn_cityscapes.py')
    heads = [config.model.decode_head, *config.model.auxiliary_head]
    assert [head.in_channels for head in heads] == [256, 32, 64, 128, 256]
    assert [head.channels for head in heads] == [2048, 32, 128, 512, 2048]



@pytest.mark.parametrize('name, size, gmac', [
    ('bisenetv2_fcn_cityscapes.py', (512, 1024), 24.6),
    ('bisenetv2_fcn_cityscapes.py', (1024, 2048), 98.4),
    ('bisenetv2-large_fcn_cityscapes.py', (512, 1024), 105.7),
    ('bisenetv2_fcn_head128_cityscapes.py', (512, 1024), 16.0),
])
def test_multiply_accumulates(name, size, gmac):
    model = MODELS.build(load(name).model).to('meta').eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, *size, device='meta'), mode='tensor')
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, abs=0.05)
