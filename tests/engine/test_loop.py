"""A resumed training goes on at once, and exactly as if it had never stopped."""
import itertools
import pickle
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import BatchSampler
from trainings import Numbers, Process, differing, number_runner

from mmseg_bisenetv2.engine.batch_sampler import ResumableBatchSampler
from mmseg_bisenetv2.engine.seeding import PlacedIndex, SeededDataset

from mmseg.registry import DATASETS


@pytest.mark.parametrize('workers, count, after', [
    (0, 2, False),  # iter_4.pth is written, but not yet in its place
    (2, 2, True),  # iter_4.pth is in its place, but last_checkpoint does not name it yet
    (0, 4, False),  # iter_4.pth is written again after a new best
])
def test_killed_while_saving_and_resumed(config: Path, straight: Path, tmp_path: Path,
                                         workers: int, count: int, after: bool) -> None:
    options = dict(train_dataloader__num_workers=workers, train_cfg__val_interval=4,
                   train_dataloader__persistent_workers=workers > 0)
    work = tmp_path / 'work'
    code, text = Process('killed_while_saving', config, work, count, after,
                         log=tmp_path / 'first', **options).wait()
    assert code == -9, text
    assert not (work / 'iter_6.pth').exists()
    code, text = Process('train', config, work, log=tmp_path / 'second', resume=True,
                         **options).wait()
    assert code == 0, text
    newest = 2 if count == 2 and not after else 4
    assert f'iter_{newest}.pth is the newest whole checkpoint' in text
    assert f'resumed epoch: 0, iter: {newest}' in text
    assert differing(straight / 'iter_8.pth', work / 'iter_8.pth') == []


@pytest.mark.slow
def test_killed_five_times_at_random(config: Path, tmp_path: Path) -> None:
    options = dict(train_cfg__max_iters=60, train_dataloader__num_workers=2)
    code, text = Process('train', config, tmp_path / 'straight', log=tmp_path / 'log',
                         **options).wait(600)
    assert code == 0, text
    work = tmp_path / 'work'
    rng = np.random.default_rng(0)
    for _ in range(5):
        saved = len(list(work.glob('iter_*.pth')))
        training = Process('train', config, work, log=tmp_path / 'log', resume=True, **options)
        while training.process.is_alive() and len(list(work.glob('iter_*.pth'))) < saved + 3:
            time.sleep(0.05)
        time.sleep(rng.random())
        training.process.kill()
        assert training.wait()[0] == -9
    code, text = Process('train', config, work, log=tmp_path / 'log', resume=True,
                         **options).wait(600)
    assert code == 0, text
    assert differing(tmp_path / 'straight/iter_60.pth', work / 'iter_60.pth') == []


def test_two_ranks(config: Path, tmp_path: Path) -> None:
    def run(name: str, **options: Any) -> list[tuple[int, str]]:
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        ranks = [Process('gloo_rank', config, tmp_path / name, rank, port,
                         log=tmp_path / f'{name}{rank}', **options) for rank in (0, 1)]
        return [rank.wait() for rank in ranks]

    assert [code for code, _ in run('straight')] == [0, 0]
    assert run('killed', stop=5)[0][0] == -9
    for code, text in run('killed', resume=True):
        assert code == 0, text
    assert differing(tmp_path / 'straight/iter_8.pth', tmp_path / 'killed/iter_8.pth') == []


def test_without_a_seed_that_of_the_checkpoint_goes_on(config: Path, tmp_path: Path) -> None:
    options = dict(randomness=dict(seed=None, deterministic=True))
    code, text = Process('train', config, tmp_path / 'one', log=tmp_path / 'log', **options).wait()
    assert code == 0, text
    (tmp_path / 'other').mkdir()
    shutil.copy(tmp_path / 'one/iter_4.pth', tmp_path / 'other')
    code, text = Process('train', config, tmp_path / 'other', log=tmp_path / 'log', resume=True,
                         **options).wait()
    assert code == 0, text
    assert differing(tmp_path / 'one/iter_8.pth', tmp_path / 'other/iter_8.pth') == []


def test_a_run_that_mmengines_loop_and_hook_began(config: Path, tmp_path: Path) -> None:
    code, text = Process(
        'train', config, tmp_path / 'work', log=tmp_path / 'log', train_cfg__max_iters=4,
        train_cfg__type='IterBasedTrainLoop', default_hooks__checkpoint__type='CheckpointHook',
        default_hooks__runtime_info__type='RuntimeInfoHook').wait()
    assert code == 0, text
    code, text = Process('train', config, tmp_path / 'work', log=tmp_path / 'log',
                         resume=True).wait()
    assert code == 0, text
    assert 'resumed epoch: 0, iter: 4' in text
    assert (tmp_path / 'work/iter_8.pth').exists()


def test_the_order_is_mmengines(tmp_path: Path) -> None:
    orders = []
    for name, loop in (('theirs', ''), ('ours', 'mmseg_bisenetv2.')):
        Numbers.loaded.clear()
        number_runner(tmp_path / name, 60, loop).train()
        orders.append(list(Numbers.loaded))
    assert orders[0] == orders[1] and len(orders[0]) == 240


def test_past_data_are_not_touched(tmp_path: Path) -> None:
    number_runner(tmp_path, 10).train()
    path = tmp_path / 'iter_10.pth'
    checkpoint = torch.load(path, weights_only=True)
    checkpoint['meta']['iter'] = 100_000
    torch.save(checkpoint, path)
    Numbers.loaded.clear()
    begin = time.process_time()
    number_runner(tmp_path, 100_003, load_from=str(path), resume=True).train()
    assert time.process_time() - begin < 5
    sampler = InfiniteSampler(range(101), seed=5)
    assert Numbers.loaded == list(itertools.islice(sampler, 400_000, 400_012))


def test_finite_samplers_begin_again_as_in_mmengines_loop() -> None:
    sampler = DefaultSampler(range(7), seed=3)
    expected = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        expected += list(BatchSampler(sampler, 2, drop_last=False))
    sampler.set_epoch(0)
    batches = ResumableBatchSampler(BatchSampler(sampler, 2, drop_last=False))
    assert list(itertools.islice(batches, 12)) == expected
    sampler.set_epoch(0)
    batches.begin(seed=0, rank=0, start=5)
    assert list(itertools.islice(batches, 7)) == expected[5:]


def test_too_few_samples_for_a_batch_end_with_an_error() -> None:
    batches = ResumableBatchSampler(BatchSampler(range(3), 4, drop_last=True))
    with pytest.raises(ValueError, match='too few for a batch'):
        next(iter(batches))


@pytest.mark.parametrize('wrapper', [
    lambda dataset: dataset,
    lambda dataset: dict(type='RepeatDataset', times=3, dataset=dataset),
    lambda dataset: dict(
        type='MultiImageMixDataset',
        dataset=dict(dataset, type='BaseSegDataset', pipeline=dataset['pipeline'][:2]),
        pipeline=[dict(type='RandomMosaic', prob=1, img_scale=(32, 32)),
                  dict(type='RandomRotate', prob=1, degree=30)]),
], ids=['plain', 'repeat', 'mosaic'])
def test_augmentation_follows_from_the_place(config: Path, wrapper: Any) -> None:
    from mmengine.config import Config
    dataset = DATASETS.build(wrapper(Config.fromfile(config).train_dataloader.dataset.to_dict()))
    seeded = SeededDataset(dataset)
    assert len(seeded) == len(dataset) and seeded.metainfo == dataset.metainfo

    def load(place: int) -> np.ndarray:
        index = PlacedIndex(3)
        index.place = (0, place, 0, 1)
        sample = pickle.loads(pickle.dumps(seeded))[pickle.loads(pickle.dumps(index))]
        return np.asarray(sample['inputs'] if 'inputs' in sample else sample['img'])

    assert np.array_equal(load(8), load(8))
    assert any(load(8).shape != load(i).shape or not np.array_equal(load(8), load(i))
               for i in range(3))
