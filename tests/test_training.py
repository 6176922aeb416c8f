"""Training and testing as users start them: through mim, in processes of their own."""
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from mmseg_bisenetv2.datasets.toy_cityscapes import make_toy_cityscapes

CONFIGS = Path(__file__).parents[1] / 'configs'
TOY = CONFIGS / 'bisenetv2_fcn_toy-cityscapes.py'
IN_PROCESS = [f'{loader}_dataloader.{option}' for loader in ('train', 'val', 'test')
              for option in ('num_workers=0', 'persistent_workers=False')]


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    root = tmp_path_factory.mktemp('toy')
    make_toy_cityscapes(root, num_train=8, num_val=2, size=(64, 128))
    return root


def mim(*arguments, ok=True, **kwargs):
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'mim', *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)
    assert (result.returncode == 0) == ok, result.stdout
    return result.stdout


def options(toy, *more):
    roots = [f'{loader}_dataloader.dataset.data_root={toy}' for loader in ('train', 'val', 'test')]
    return ['--cfg-options', *IN_PROCESS, *roots, 'default_hooks.logger.interval=1', *more]


def losses(work_dir):
    """The loss of each iteration of the newest run."""
    log = sorted(work_dir.glob('*/vis_data/scalars.json'))[-1]
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return {row['iter']: row['loss'] for row in rows if 'loss' in row}


def test_train_resume_and_test(toy, tmp_path):
    schedule = ['train_cfg.max_iters=4', 'train_cfg.val_interval=4',
                'default_hooks.checkpoint.interval=2', 'default_hooks.checkpoint.max_keep_ckpts=9',
                'randomness.seed=0']
    work = tmp_path / 'work'
    out = mim('train', 'mmseg', TOY, '--work-dir', work, *options(toy, *schedule))
    assert 'mIoU' in out
    straight = torch.load(work / 'iter_4.pth', weights_only=True)
    first = losses(work)
    assert sorted(first) == [1, 2, 3, 4]

    (work / 'iter_4.pth').unlink()
    (work / 'last_checkpoint').write_text(str(work / 'iter_2.pth'))
    out = mim('train', 'mmseg', TOY, '--work-dir', work, '--resume', *options(toy, *schedule))
    assert 'resumed' in out
    assert sorted(losses(work)) == [3, 4]
    resumed = torch.load(work / 'iter_4.pth', weights_only=True)
    assert resumed['state_dict'].keys() == straight['state_dict'].keys()
    assert resumed['meta']['iter'] == 4
    assert resumed['param_schedulers'][1]['last_step'] == straight['param_schedulers'][1][
        'last_step']

    out = mim('test', 'mmseg', TOY, '--checkpoint', work / 'iter_4.pth', '--work-dir',
              tmp_path / 'test', *options(toy))
    assert 'mIoU' in out and 'bicycle' in out


GLOO = '''
"""Several processes without a GPU: a group that exists before MMEngine looks for one."""
import os

import torch

torch.distributed.init_process_group('gloo')
'''


def test_two_processes_agree(toy, tmp_path):
    (tmp_path / 'gloo_group.py').write_text(GLOO)
    (tmp_path / 'config.py').write_text(textwrap.dedent(f'''
        _base_ = {str(TOY)!r}
        custom_imports = dict(imports=['gloo_group', 'mmseg_bisenetv2'])
        norm_cfg = dict(type='BN', requires_grad=True)  # SyncBN has no CPU implementation
        model = dict(
            backbone=dict(norm_cfg=norm_cfg), decode_head=dict(norm_cfg=norm_cfg),
            auxiliary_head=[dict(h, norm_cfg=norm_cfg) for h in _base_.model.auxiliary_head])
        model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)
        train_dataloader = dict(batch_size=2)
        default_hooks = dict(save=dict(type='SaveEveryRank'))
    '''))
    (tmp_path / 'gloo_group.py').write_text(GLOO + textwrap.dedent(f'''
        from mmengine.hooks import Hook
        from mmengine.registry import HOOKS


        @HOOKS.register_module()
        class SaveEveryRank(Hook):
            def after_train(self, runner):
                torch.save(runner.model.module.state_dict(),
                           {str(tmp_path)!r} + f'/rank{{runner.rank}}.pth')
    '''))
    import os
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(
        [str(tmp_path), os.environ.get('PYTHONPATH', '')]), OMP_NUM_THREADS='1')
    mim('train', 'mmseg', tmp_path / 'config.py', '--launcher', 'pytorch', '--gpus', 2,
        '--work-dir', tmp_path / 'work', *options(
            toy, 'train_cfg.max_iters=3', 'train_cfg.val_interval=3'), env=env)
    first, second = (torch.load(tmp_path / f'rank{rank}.pth') for rank in (0, 1))
    statistics = ('running_mean', 'running_var', 'num_batches_tracked')
    for name, value in first.items():
        if not name.endswith(statistics):  # plain BN: each rank has its own
            assert torch.equal(value, second[name]), name
    start = Path(tmp_path / 'work').glob('*.pth')
    assert any(start)


def test_backbone_in_another_config(tmp_path):
    from mmengine.config import Config
    from mmengine.model import revert_sync_batchnorm
    from mmengine.structures import PixelData

    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample
    (tmp_path / 'pspnet.py').write_text(textwrap.dedent('''
        _base_ = 'mmseg::pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py'
        custom_imports = dict(imports=['mmseg_bisenetv2'], allow_failed_imports=False)
        model = dict(
            pretrained=None,
            backbone=dict(_delete_=True, type='mmseg_bisenetv2.BiSeNetV2'),
            decode_head=dict(in_channels=128, in_index=0, channels=64),
            auxiliary_head=dict(in_channels=128, in_index=4, channels=32))
    '''))
    config = Config.fromfile(tmp_path / 'pspnet.py')
    assert config.model.type == 'EncoderDecoder'  # MMSegmentation's, its PSPHead and FCNHead too
    model = revert_sync_batchnorm(MODELS.build(config.model))
    label = torch.randint(0, 150, (1, 64, 64))
    sample = SegDataSample(gt_sem_seg=PixelData(data=label))
    losses = model.loss(torch.randn(2, 3, 64, 64), [sample, sample])
    sum(v for k, v in losses.items() if 'loss' in k).backward()
    assert model.backbone.detail.detail_branch[0][0].conv.weight.grad.abs().sum() > 0


def test_missing_data_names_path_and_preparation(tmp_path):
    out = mim('train', 'mmseg', CONFIGS / 'bisenetv2_fcn_cityscapes.py', cwd=tmp_path, ok=False)
    assert str(tmp_path / 'data/cityscapes/leftImg8bit/train') in out
    assert 'mim run mmseg cityscapes data/cityscapes' in out


def test_label_ids_in_place_of_train_ids(toy, tmp_path):
    out = mim('train', 'mmseg', TOY, '--work-dir', tmp_path, *options(
        toy, 'train_dataloader.dataset.seg_map_suffix=_gtFine_labelIds.png'), ok=False)
    assert '_gtFine_labelIds.png: class ids [' in out
    assert 'labelTrainIds' in out.split('class ids')[1]
