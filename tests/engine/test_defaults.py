"""All configs of this package have it, and others get it by three lines."""
from pathlib import Path

import pytest
from mmengine.config import Config
from trainings import CONFIGS, build

LINES = '''
custom_imports = dict(imports=['mmseg_bisenetv2'], allow_failed_imports=False)
train_cfg = dict(type='mmseg_bisenetv2.IterBasedTrainLoop')
default_hooks = dict(
    checkpoint=dict(type='mmseg_bisenetv2.CheckpointHook'),
    divergence=dict(type='mmseg_bisenetv2.DivergenceHook'),
    work_dir_lock=dict(type='mmseg_bisenetv2.WorkDirLockHook'))
'''
HOOKS = ('CheckpointHook', 'DivergenceHook', 'WorkDirLockHook')


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.py')), ids=lambda path: path.name)
def test_configs(path: Path) -> None:
    config = Config.fromfile(path)
    assert config.train_cfg.type == 'mmseg_bisenetv2.IterBasedTrainLoop'
    types = [hook.type for hook in config.default_hooks.values()]
    for name in (*HOOKS, 'RuntimeInfoHook'):
        assert f'mmseg_bisenetv2.{name}' in types


def test_three_lines_in_a_config_of_mmsegmentation(config: Path, tmp_path: Path) -> None:
    base = Config.fromfile(config)
    for key in ('train_cfg', 'val_cfg', 'test_cfg', 'default_hooks', 'custom_imports', 'optimizer',
                'param_scheduler', 'optim_wrapper'):
        base.pop(key)
    base.dump(tmp_path / 'base.py')
    (tmp_path / 'other.py').write_text(
        "_base_ = ['./base.py', 'mmseg::_base_/schedules/schedule_40k.py']\n" + LINES)
    runner = build(tmp_path / 'other.py', tmp_path / 'work', randomness__deterministic=False)
    assert type(runner.train_loop).__module__ == 'mmseg_bisenetv2.engine.loop'
    ours = {type(hook).__name__ for hook in runner.hooks
            if type(hook).__module__.startswith('mmseg_bisenetv2.')}
    assert ours == set(HOOKS)
    checkpoint = next(h for h in runner.hooks if type(h).__name__ == 'CheckpointHook')
    assert checkpoint.interval == 4000 and not checkpoint.by_epoch
