"""Tiny trainings in processes of their own, which may be killed; forked where nothing is imported.

A fresh Python needs seconds to import MMSegmentation. The processes here come from a server that
has imported it once.
"""
import contextlib
import importlib
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.utils.data
from mmengine.config import Config
from small import NORM, PREPROCESSOR, WIDTHS

CONFIGS = Path(__file__).parents[1] / 'configs'
CONFIG = f'''
_base_ = ['{CONFIGS}/_base_/schedules/schedule_40k.py', 'mmseg::_base_/default_runtime.py']
custom_imports = dict(imports=['mmseg_bisenetv2'], allow_failed_imports=False)
crop_size = (32, 32)
model = dict(
    type='mmseg_bisenetv2.EncoderDecoder',
    data_preprocessor={dict(PREPROCESSOR, type='mmseg_bisenetv2.SegDataPreProcessor')},
    backbone=dict(type='mmseg_bisenetv2.BiSeNetV2', norm_cfg={NORM}, **{WIDTHS}),
    decode_head=dict(
        type='mmseg_bisenetv2.FCNHead', in_channels=16, channels=16, num_convs=1, in_index=0,
        concat_input=False, dropout_ratio=0.1, num_classes=4, norm_cfg={NORM},
        align_corners=False, init_cfg=None,
        loss_decode=dict(type='mmseg_bisenetv2.UpsampleCrossEntropy')),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
pipeline = [
    dict(type='mmseg_bisenetv2.LoadImageFromFile'),
    dict(type='mmseg_bisenetv2.LoadAnnotations'),
    dict(type='mmseg_bisenetv2.RandomResizeCrop', scale=(48, 40), crop_size=crop_size),
    dict(type='mmseg_bisenetv2.PhotoMetricDistortion'),
    dict(type='mmseg_bisenetv2.PackSegInputs'),
]
dataset = dict(
    type='mmseg_bisenetv2.BaseSegDataset', data_prefix=dict(img_path='img', seg_map_path='ann'),
    metainfo=dict(classes=('a', 'b', 'c', 'd'), palette=[[i, i, i] for i in range(4)]),
    img_suffix='.png', seg_map_suffix='.png', pipeline=pipeline)
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dataset)
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(dataset, pipeline=[pipeline[0], pipeline[1], pipeline[4]]))
test_dataloader = val_dataloader
val_evaluator = dict(type='mmseg_bisenetv2.IoUMetric')
test_evaluator = val_evaluator
randomness = dict(seed=0, deterministic=True)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=1e-4, begin=0, end=9, by_epoch=False)]
train_cfg = dict(max_iters=8, val_interval=100)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2, max_keep_ckpts=99))
'''


def make_data(root: Path) -> Path:
    """Seven pictures of noise and their labels, and the config of a training on them."""
    rng = np.random.default_rng(0)
    for folder in ('img', 'ann'):
        (root / folder).mkdir(parents=True)
    for i in range(7):
        cv2.imwrite(f'{root}/img/{i}.png', rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
        cv2.imwrite(f'{root}/ann/{i}.png', rng.integers(0, 4, (40, 48), dtype=np.uint8))
    text = CONFIG.replace("type='mmseg_bisenetv2.BaseSegDataset'",
                          f"type='mmseg_bisenetv2.BaseSegDataset', data_root='{root}'")
    (root / 'config.py').write_text(text)
    return root / 'config.py'


def build(config: Path, work_dir: Path, **options: Any) -> Any:
    """The runner of a training; ``options`` are config options, with __ for the dot."""
    from mmengine.config import config as config_module
    from mmengine.runner import Runner
    config_module.FormatCode = lambda text, **_: (text, True)  # half of the time of a tiny training
    loaded = Config.fromfile(config)
    loaded.work_dir = str(work_dir)
    loaded.experiment_name = os.urandom(8).hex()
    loaded.merge_from_dict({key.replace('__', '.'): value for key, value in options.items()})
    return Runner.from_cfg(loaded)


def train(config: Path, work_dir: Path, **options: Any) -> Any:
    """Trains in this process."""
    runner = build(config, work_dir, **options)
    runner.train()
    return runner


def test(config: Path, work_dir: Path, **options: Any) -> None:
    """Tests in this process."""
    build(config, work_dir, **options).test()


def poisoned(config: Path, work_dir: Path, iteration: int, **options: Any) -> None:
    """Trains with weights that become NaN before an iteration."""
    from mmengine.hooks import Hook

    class Poison(Hook):
        def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            if runner.iter + 1 == iteration:
                next(runner.model.parameters()).data.fill_(float('nan'))

    runner = build(config, work_dir, **options)
    runner.register_hook(Poison())
    runner.train()


def _run(log: str, target: tuple[str, str], arguments: tuple, options: dict) -> None:
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    torch.set_num_threads(1)
    try:
        getattr(importlib.import_module(target[0]), target[1])(*arguments, **options)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


class Process:
    """A function of this module, or of ``module``, in a process of its own."""

    def __init__(self, function: Callable | str, *arguments: Any, log: Path,
                 module: str = 'trainings', **options: Any) -> None:
        context = multiprocessing.get_context('forkserver')
        context.set_forkserver_preload([
            'trainings', 'mmseg_bisenetv2.engine', 'mmseg.apis', 'mmseg.visualization',
            'matplotlib.pyplot', 'mmengine.visualization.visualizer'])
        name = function if isinstance(function, str) else function.__name__
        self.log = log
        self.process = context.Process(
            target=_run, args=(str(log), (module, name), arguments, options))
        self.process.start()

    def wait(self, timeout: float = 120) -> tuple[int, str]:
        """Its exit code, negative for a signal, and all that it printed."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        code = self.process.exitcode
        assert code is not None
        return code, self.log.read_text()


def killed_while_saving(config: Path, work_dir: Path, count: int, after: bool,
                        **options: Any) -> None:
    """Trains, and kills itself with SIGKILL before or after a file is put in its place."""
    original, calls = os.replace, []

    def kill(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == count and not after:
            os.kill(os.getpid(), 9)
        original(*arguments)
        if len(calls) == count:
            os.kill(os.getpid(), 9)

    os.replace = kill  # type: ignore[assignment]
    train(config, work_dir, **options)


def gloo_rank(config: Path, work_dir: Path, rank: int, port: int, stop: int | None = None,
              **options: Any) -> None:
    """One of two processes of a training; rank 0 kills itself before iteration ``stop``."""
    from mmengine.hooks import Hook
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2',
                      MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.distributed.init_process_group('gloo')
    runner = build(config, work_dir, launcher='pytorch', model_wrapper_cfg=dict(
        type='MMDistributedDataParallel', device_ids=None), **options)
    if stop is not None:
        class Kill(Hook):
            def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any) -> None:
                if runner.iter == stop:
                    os.kill(os.getpid(), 9)
        runner.register_hook(Kill())
    runner.train()
    with contextlib.suppress(Exception):
        torch.distributed.destroy_process_group()


def state(path: Path) -> dict[str, torch.Tensor]:
    """Weights and momentum of a checkpoint."""
    content = torch.load(path, weights_only=True)
    momentum = {f'momentum {i}': value['momentum_buffer']
                for i, value in content['optimizer']['state'].items()}
    return dict(content['state_dict'], **momentum)


def differing(first: Path, second: Path) -> list[str]:
    """Names of the tensors in which two checkpoints differ, in any bit."""
    one, other = state(first), state(second)
    assert one.keys() == other.keys() and len(one) > 100
    return [name for name, value in one.items() if not torch.equal(value, other[name])]


class Numbers(torch.utils.data.Dataset):
    """A data set of its own indices, which notes what was loaded."""

    loaded: list[int] = []
    metainfo = dict(classes=('a', ))

    def __len__(self) -> int:
        return 101

    def __getitem__(self, index: int) -> int:
        self.loaded.append(index)
        return index


class OneWeight(torch.nn.Module):
    """A model for :class:`Numbers`, of one weight, which training moves by -0.1 an iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, torch.Tensor]:
        loss = self.weight.sum()
        optim_wrapper.update_params(loss)
        return dict(loss=loss)


def number_runner(work_dir: Path, max_iters: int, loop: str = 'mmseg_bisenetv2.',
                  interval: int = 10, hook: dict | None = None, **options: Any) -> Any:
    """The runner of a training that takes no time."""
    from mmengine.runner import Runner
    return Runner(
        OneWeight(), str(work_dir), train_dataloader=dict(
            dataset=Numbers(), batch_size=4, num_workers=0, sampler=dict(type='InfiniteSampler')),
        train_cfg=dict(type=f'{loop}IterBasedTrainLoop', max_iters=max_iters),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        randomness=dict(seed=5), default_hooks=dict(checkpoint=dict(dict(
            type='mmseg_bisenetv2.CheckpointHook', by_epoch=False, interval=interval),
            **hook or {})),
        default_scope='mmseg', experiment_name=os.urandom(8).hex(), **options)
