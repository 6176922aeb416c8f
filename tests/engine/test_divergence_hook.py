"""A training that has diverged ends, and what it saved before stays."""
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, LoggerHook
from trainings import Process

from mmseg_bisenetv2.engine import DivergenceError, DivergenceHook


def test_loss_that_is_not_finite(config: Path, tmp_path: Path) -> None:
    code, text = Process('poisoned', config, tmp_path / 'work', 5, log=tmp_path / 'log',
                         default_hooks__logger__interval=3).wait()
    assert code == 1
    message = text.splitlines()[-1]
    assert 'DivergenceError: The training has diverged at iteration 5: loss nan, lr 0.02' in message
    assert message.count('/img/') == 2  # the pictures of the batch
    assert 'Iter(train) [6/8]' in text  # read with the log, not in every iteration
    assert sorted(path.name for path in (tmp_path / 'work').glob('*.pth')) == [
        'iter_2.pth', 'iter_4.pth']


class Trainings:
    """What the hook sees of a training under a loss scale, read every ``interval`` iterations."""

    def __init__(self, interval: int = 10, loss_scale: Any = 'dynamic', scaler: bool = True,
                 **options: Any) -> None:
        self.scale = 65536.0
        self.lines: list[str] = []
        self.hook = DivergenceHook(**options)
        optim_wrapper = SimpleNamespace(get_lr=lambda: dict(lr=[0.1]))
        if scaler:
            optim_wrapper.loss_scaler = SimpleNamespace(
                get_scale=lambda: self.scale, get_backoff_factor=lambda: 0.5)
        self.runner = SimpleNamespace(
            iter=0, max_iters=10**6, hooks=[LoggerHook(interval=interval)], work_dir='work',
            train_dataloader=range(10**6), optim_wrapper=optim_wrapper,
            cfg=Config(dict(optim_wrapper=dict(loss_scale=loss_scale))),
            logger=SimpleNamespace(info=self.lines.append))

    def step(self, loss: float) -> None:
        self.hook.before_train_iter(self.runner, self.runner.iter)
        self.hook.after_train_iter(self.runner, self.runner.iter, None,
                                   dict(loss=torch.tensor(loss)))
        self.runner.iter += 1


def test_single_skipped_steps_are_counted_and_a_run_of_them_stops() -> None:
    training = Trainings()
    for i in range(200):
        training.step(float('inf') if i % 20 == 5 else 1.0)
        training.scale /= 2 if i in (55, 57, 95) else 1
    assert training.hook.skipped == 3
    assert 'AMP skipped 2 steps of iterations 51 to 60' in training.lines[0]
    with pytest.raises(DivergenceError, match='iteration 230: loss inf'):
        for _ in range(40):
            training.step(float('inf'))


def test_a_loss_scale_that_vanishes_stops() -> None:
    training = Trainings()
    with pytest.raises(DivergenceError, match='even at a loss scale of 6'):
        for _ in range(40):
            training.scale /= 2
            training.step(1.0)


@pytest.mark.parametrize('options', [dict(loss_scale=1.0), dict(scaler=False)])
def test_without_a_dynamic_scale_the_first_stops(options: dict) -> None:
    training = Trainings(**options)
    with pytest.raises(DivergenceError, match='iteration 4: loss nan'):
        for i in range(10):
            training.step(float('nan') if i == 3 else 1.0)


def test_a_checkpoint_by_epochs_does_not_read_the_losses_in_every_iteration() -> None:
    training = Trainings(scaler=False)
    training.runner.hooks.append(CheckpointHook(by_epoch=True, interval=1))
    with pytest.raises(DivergenceError, match='iteration 4: loss nan'):
        for i in range(20):
            training.step(float('nan') if i == 3 else 1.0)
    assert training.runner.iter == 9


def test_losses_are_looked_at_before_a_validation() -> None:
    training = Trainings(interval=100, scaler=False)
    training.step(float('nan'))
    with pytest.raises(DivergenceError):
        training.hook.before_val(training.runner)
