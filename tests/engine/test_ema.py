"""The EMA config: checkpoints hold the average as their weights, and a resume changes nothing."""
from pathlib import Path

import torch
from mmengine.config import Config
from trainings import CONFIGS, Process, differing

HOOK = Config.fromfile(CONFIGS / 'bisenetv2_fcn_ema_cityscapes.py').custom_hooks[0].to_dict()


def read(path: Path) -> tuple[dict, dict]:
    """State dict and EMA state dict of a checkpoint."""
    content = torch.load(path, weights_only=True)
    ema = {key.removeprefix('module.'): value for key, value in content['ema_state_dict'].items()}
    return content['state_dict'], ema


def test_average_is_what_checkpoints_hold_and_resume_is_exact(config: Path, tmp_path: Path) -> None:
    momentum = 0.1  # that of the config would change nothing within eight iterations
    options = dict(custom_hooks=[dict(HOOK, momentum=momentum)], train_cfg__val_interval=4,
                   default_hooks__checkpoint__interval=1)
    code, text = Process('train', config, tmp_path / 'straight', log=tmp_path / 'log',
                         **options).wait(600)
    assert code == 0, text
    average, _ = read(tmp_path / 'straight/iter_1.pth')
    for iteration in range(2, 9):
        state, ema = read(tmp_path / f'straight/iter_{iteration}.pth')
        assert len(state) > 300
        for name, value in state.items():
            if value.is_floating_point():  # BatchNorm's statistics, too
                # Of the training's own weights, which stand where MMEngine keeps the average.
                average[name] = average[name].lerp(ema[name], momentum)
                torch.testing.assert_close(value, average[name])
    name = 'backbone.detail.detail_branch.0.0.bn.running_mean'
    assert not torch.equal(state[name], ema[name])

    work = tmp_path / 'killed'
    code, text = Process('killed_while_saving', config, work, 5, True, log=tmp_path / 'log',
                         **options).wait(600)
    assert code == -9, text
    code, text = Process('train', config, work, log=tmp_path / 'log', resume=True,
                         **options).wait(600)
    assert code == 0, text
    assert 'the newest whole checkpoint' in text
    last = 'iter_8.pth'
    assert differing(tmp_path / 'straight' / last, work / last) == []
    for one, other in zip(read(tmp_path / 'straight' / last), read(work / last), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
