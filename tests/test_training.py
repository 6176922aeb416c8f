"""Training and testing as users start them: through mim, in processes of their own."""
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mmseg_bisenetv2.datasets.toy_cityscapes import make_toy_cityscapes

CONFIGS = Path(__file__).parents[1] / 'configs'
TOY = CONFIGS / 'bisenetv2_fcn_toy-cityscapes.py'
IN_PROCESS = [f'{loader}_dataloader.{option}' for loader in ('train', 'val', 'test')
              for option in ('num_workers=0', 'persistent_workers=False')]


@pytest.fixture(scope='module')
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('toy')
    make_toy_cityscapes(root, num_train=8, num_val=2, size=(64, 128))
    return root


def run(*arguments: object, ok: bool = True, **kwargs: Any) -> str:
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)
    assert (result.returncode == 0) == ok, result.stdout
    return result.stdout


def mim(*arguments: object, **kwargs: Any) -> str:
    return run('-m', 'mim', *arguments, **kwargs)


def options(toy: Path, *more: str) -> list[str]:
    roots = [f'{loader}_dataloader.dataset.data_root={toy}' for loader in ('train', 'val', 'test')]
    return ['--cfg-options', *IN_PROCESS, *roots, 'default_hooks.logger.interval=1', *more]


def log(work_dir: Path) -> dict[int, dict]:
    """What the newest run logged of each training iteration."""
    path = sorted(work_dir.glob('*/vis_data/scalars.json'))[-1]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row['iter']: row for row in rows if 'loss' in row}


def test_train_resume_and_test(toy: Path, tmp_path: Path) -> None:
    schedule = ['train_cfg.max_iters=4', 'train_cfg.val_interval=4',
                'default_hooks.checkpoint.interval=2', 'default_hooks.checkpoint.max_keep_ckpts=9',
                'randomness.seed=0']
    work = tmp_path / 'work'
    out = mim('train', 'mmseg', TOY, '--work-dir', work, *options(toy, *schedule))
    assert 'mIoU' in out
    straight, first = log(work), torch.load(work / 'iter_4.pth', weights_only=True)
    assert sorted(straight) == [1, 2, 3, 4]

    (work / 'iter_4.pth').unlink()
    (work / 'last_checkpoint').unlink()
    out = mim('train', 'mmseg', TOY, '--work-dir', work, '--resume', *options(toy, *schedule))
    assert 'iter_2.pth is the newest whole checkpoint' in out
    resumed, last = log(work), torch.load(work / 'iter_4.pth', weights_only=True)
    assert {i: row['lr'] for i, row in resumed.items()} == {
        i: row['lr'] for i, row in straight.items() if i > 2}
    assert last['meta']['iter'] == 4
    momentum = last['optimizer']['state']
    assert momentum.keys() == first['optimizer']['state'].keys() and len(momentum) > 150
    assert all(value['momentum_buffer'].abs().sum() > 0 for value in momentum.values())

    test = tmp_path / 'test'
    out = mim('test', 'mmseg', TOY, '--checkpoint', work / 'iter_4.pth', '--work-dir', test,
              *options(toy, 'default_hooks.results.pictures=1'))
    assert 'mIoU' in out and 'bicycle' in out
    assert len(list((test / 'test_pictures').glob('*.png'))) == 1
    assert (work / 'training_curve.png').exists()
    # The last line of `make demo`.
    recipe, = re.findall(r'^\t@(awk .*)', (CONFIGS.parent / 'Makefile').read_text(), re.MULTILINE)
    command = recipe.replace('$$', '$').replace('$(WORK)', str(tmp_path))
    printed = subprocess.check_output(command, shell=True, text=True)
    score = float(re.findall(r'mIoU: (\S+)', out)[-1])
    assert printed.split() == ['mIoU:', f'{score:.2f}', '%']


GLOO = '''
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

# Without a GPU: a group that exists before MMEngine, which would ask for CUDA, looks for one
torch.distributed.init_process_group('gloo')


@HOOKS.register_module()
class SaveEveryRank(Hook):
    def after_train(self, runner):
        torch.save(runner.model.module.state_dict(), f'{runner.work_dir}/rank{runner.rank}.pth')
'''


def test_two_processes_agree(toy: Path, tmp_path: Path) -> None:
    (tmp_path / 'gloo_group.py').write_text(GLOO)
    (tmp_path / 'config.py').write_text(textwrap.dedent(f'''
        _base_ = {str(TOY)!r}
        custom_imports = dict(imports=['gloo_group', 'mmseg_bisenetv2'])
        norm_cfg = dict(type='BN', requires_grad=True)  # DDP refuses SyncBN on the CPU
        model = dict(
            backbone=dict(norm_cfg=norm_cfg), decode_head=dict(norm_cfg=norm_cfg),
            auxiliary_head=[dict(h, norm_cfg=norm_cfg) for h in _base_.model.auxiliary_head])
        model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)
        train_dataloader = dict(batch_size=2)
        default_hooks = dict(save=dict(type='SaveEveryRank'))
    '''))
    work = tmp_path / 'work'
    path = os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')])
    mim('train', 'mmseg', tmp_path / 'config.py', '--launcher', 'pytorch', '--gpus', 2,
        '--work-dir', work,
        *options(toy, 'train_cfg.max_iters=3', 'train_cfg.val_interval=3'),
        env=dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS='1'))
    first, second = (torch.load(work / f'rank{rank}.pth') for rank in (0, 1))
    statistics = ('running_mean', 'running_var', 'num_batches_tracked')
    for name, value in first.items():
        if not name.endswith(statistics):  # plain BN: each rank has its own
            assert torch.equal(value, second[name]), name
    name = 'backbone.bga.conv.bn.running_mean'
    assert not torch.equal(first[name], second[name])  # they did see different images


@pytest.mark.slow
def test_killing_mim_leaves_a_training_that_refuses_a_second(toy: Path, tmp_path: Path) -> None:
    command = ['train', 'mmseg', TOY, '--work-dir', tmp_path, *options(
        toy, 'train_cfg.max_iters=100000', 'default_hooks.checkpoint.interval=2')]
    launcher = subprocess.Popen([sys.executable, '-m', 'mim', *map(str, command)])
    deadline = time.time() + 300
    while not (tmp_path / 'iter_2.pth').exists() and time.time() < deadline:
        time.sleep(0.2)
    launcher.kill()
    launcher.wait()
    pid = json.loads((tmp_path / 'training.lock').read_text())['pid']
    try:
        out = mim(*command[:5], '--resume', *command[5:], ok=False)
        assert f'End it (kill {pid})' in out
    finally:
        os.kill(pid, signal.SIGKILL)


def test_missing_data_names_path_and_preparation(tmp_path: Path) -> None:
    out = mim('train', 'mmseg', CONFIGS / 'bisenetv2_fcn_cityscapes.py', cwd=tmp_path, ok=False)
    assert str(tmp_path / 'data/cityscapes/leftImg8bit/train') in out
    assert 'mim run mmseg cityscapes data/cityscapes' in out


def test_label_ids_in_place_of_train_ids(toy: Path, tmp_path: Path) -> None:
    out = mim('train', 'mmseg', TOY, '--work-dir', tmp_path, *options(
        toy, 'train_dataloader.dataset.seg_map_suffix=_gtFine_labelIds.png'), ok=False)
    assert '_gtFine_labelIds.png: class ids [' in out
    assert 'labelTrainIds' in out.split('class ids')[1]
