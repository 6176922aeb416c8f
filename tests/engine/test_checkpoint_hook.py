"""The last whole checkpoint is never lost, and it is the one that a training goes on from."""
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.runner import find_latest_checkpoint
from trainings import Process, build, number_runner

from mmseg_bisenetv2.engine import CheckpointHook, ResumeError
from mmseg_bisenetv2.engine.resume import check_resumable


def choose(folder: Path, lines: list[str] | None = None,
           hook: CheckpointHook | None = None) -> str | None:
    """What ``--resume`` takes in a work directory, and says of it."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    runner = SimpleNamespace(
        cfg=Config(dict(resume=True)), work_dir=str(folder),
        optim_wrapper=OptimWrapper(torch.optim.SGD([parameter], lr=0.1)),
        logger=SimpleNamespace(info=[].append if lines is None else lines.append))
    (hook or CheckpointHook(by_epoch=False)).before_run(runner)
    return find_latest_checkpoint(str(folder))


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """Work directory of a training that saved at 10, 20, 30 and 40."""
    number_runner(tmp_path / 'work', 40).train()
    return tmp_path / 'work'


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == 'torn':
        content = content[:len(content) // 2]
    elif how == 'empty':
        content = bytearray()
    else:  # after a loss of power: the size is right, some of it was never written
        position = content.index(b'data/0') + 64
        content[position:position + 64] = bytes(64)
    path.write_bytes(content)


@pytest.mark.parametrize('last', [None, '', 'iter_4', '/before/it/was/moved/iter_40.pth'])
@pytest.mark.parametrize('how', ['torn', 'empty', 'zeros'])
def test_the_newest_whole_checkpoint_is_taken(numbers: Path, how: str,
                                              last: str | None) -> None:
    moved = numbers.rename(numbers.parent / 'moved')
    damage(moved / 'iter_40.pth', how)
    if last is None:
        (moved / 'last_checkpoint').unlink()
    else:
        (moved / 'last_checkpoint').write_text(last)
    lines: list[str] = []
    assert choose(moved, lines) == str(moved / 'iter_30.pth')
    assert len(lines) == 1
    assert 'iter_30.pth is the newest whole' in lines[0] and 'iter_40.pth: ' in lines[0]


def test_an_older_longer_run_in_the_same_folder_is_not_the_newest(numbers: Path) -> None:
    (numbers / 'last_checkpoint').unlink()
    checkpoint = torch.load(numbers / 'iter_40.pth', weights_only=True)
    checkpoint['meta']['time'] = '20010101_000000'
    torch.save(checkpoint, numbers / 'iter_40.pth')
    assert choose(numbers) == str(numbers / 'iter_30.pth')


@pytest.mark.parametrize('name', ['max_keep_ckpt', 'filename'])
def test_an_unknown_argument_is_refused_before_the_first_iteration(
        tmp_path: Path, name: str) -> None:
    runner = number_runner(tmp_path, 20, hook={name: 1})
    with pytest.raises(ValueError, match=rf'^CheckpointHook has no argument {name}.*name$'):
        runner.train()
    assert runner.iter == 0 and not list(tmp_path.glob('iter_*.pth'))


def test_an_argument_that_only_this_runner_takes_is_handed_on(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, notes = number_runner(tmp_path, 20, hook=dict(note='mine')), []
    save = runner.save_checkpoint

    def save_checkpoint(*args: Any, note: str, **kwargs: Any) -> None:
        notes.append(note)
        save(*args, **kwargs)

    monkeypatch.setattr(runner, 'save_checkpoint', save_checkpoint)
    runner.train()
    assert set(notes) == {'mine'}


def test_other_names_of_checkpoints(tmp_path: Path) -> None:
    names = dict(filename_tmpl='it_{:06d}.pth')
    number_runner(tmp_path, 20, hook=names).train()
    (tmp_path / 'last_checkpoint').unlink()
    lines: list[str] = []
    hook = CheckpointHook(by_epoch=False, **names)
    assert choose(tmp_path, lines, hook) == str(tmp_path / 'it_000020.pth')


def test_a_runner_that_was_built_in_python(numbers: Path, tmp_path: Path) -> None:
    damage(numbers / 'iter_40.pth', 'torn')
    runner = number_runner(numbers, 50, resume=True)  # its config does not say "resume"
    runner.train()
    assert runner.iter == 50
    checkpoint = torch.load(numbers / 'iter_30.pth', weights_only=True)
    checkpoint['optimizer']['state'][0]['momentum_buffer'] = torch.ones(3)
    torch.save(checkpoint, tmp_path / 'other.pth')
    runner = number_runner(tmp_path / 'other', 50, resume=True,
                           load_from=str(tmp_path / 'other.pth'))
    with pytest.raises(ResumeError, match=r'other.pth cannot be resumed from.*is of \(3,\)'):
        runner.train()


def test_no_whole_checkpoint_is_an_error_with_the_remedy(numbers: Path) -> None:
    for i in (10, 20, 30, 40):
        damage(numbers / f'iter_{i}.pth', 'torn')
    with pytest.raises(ResumeError, match=r'iter_10.pth.*iter_40.pth.*without --resume'):
        choose(numbers)
    for path in numbers.glob('*.pth'):
        path.unlink()
    with pytest.raises(ResumeError, match=r'last_checkpoint names .*iter_40.pth.*does not exist'):
        choose(numbers)
    (numbers / 'last_checkpoint').unlink()
    assert choose(numbers) is None  # the first start of a command that always says --resume


def test_a_new_checkpoint_comes_before_the_old_one_goes(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number_runner(tmp_path, 10, hook=dict(max_keep_ckpts=2)).train()
    seen = []
    remove = os.remove

    def spy(path: str) -> None:
        seen.append((os.path.basename(path), (tmp_path / 'last_checkpoint').read_text()))
        remove(path)

    monkeypatch.setattr(os, 'remove', spy)
    number_runner(tmp_path, 40, hook=dict(max_keep_ckpts=2), resume=True).train()
    assert seen == [('iter_10.pth', str(tmp_path / 'iter_30.pth')),
                    ('iter_20.pth', str(tmp_path / 'iter_40.pth'))]
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['iter_30.pth', 'iter_40.pth']


def test_what_is_new_reaches_the_disk_before_the_old_one_goes(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr('mmseg_bisenetv2.engine.checkpoint_hook.flush_to_disk',
                        lambda path: seen.append(os.path.basename(path)))
    monkeypatch.setattr(os, 'remove', lambda path: seen.append(f'remove {os.path.basename(path)}'))
    number_runner(tmp_path, 20, hook=dict(max_keep_ckpts=1)).train()
    assert seen == ['iter_10.pth', tmp_path.name, 'last_checkpoint', tmp_path.name,
                    'iter_20.pth', tmp_path.name, 'last_checkpoint', tmp_path.name,
                    'remove iter_10.pth']


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=300k', 'tmpfs', str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('mounting a tmpfs is not allowed here')
    yield folder
    subprocess.run(['umount', '-l', str(folder)], check=True)


def test_full_disk(small_disk: Path, tmp_path: Path) -> None:
    page = 4096  # a checkpoint takes two
    (small_disk / 'ballast').write_bytes(bytes(300 * 1024 - 3 * page))
    runner = number_runner(tmp_path / 'work', 40, hook=dict(
        out_dir=str(small_disk), max_keep_ckpts=1))
    with pytest.raises(OSError, match=r'No space left.*nothing of the new file was kept') as error:
        runner.train()
    saved = small_disk / 'work'
    last = Path((tmp_path / 'work/last_checkpoint').read_text())
    assert error.value.filename == str(saved / 'iter_20.pth')
    assert os.listdir(saved) == ['iter_10.pth'] and last == saved / 'iter_10.pth'
    assert torch.load(last, weights_only=True)['meta']['iter'] == 10


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    runner = number_runner(tmp_path, 10)
    runner.model.weight.data.fill_(float('inf'))
    with pytest.raises(FloatingPointError, match=r'state_dict\.weight'):
        runner.train()
    assert not list(tmp_path.glob('*.pth'))
    averaged = dict(state_dict=dict(weight=torch.ones(1)),
                    ema_state_dict=dict(weight=torch.tensor(float('nan'))))
    with pytest.raises(FloatingPointError, match=r'ema_state_dict\.weight'):
        CheckpointHook().before_save_checkpoint(runner, averaged)


def test_last_checkpoint_on_a_full_disk(tmp_path: Path) -> None:
    last = tmp_path / 'last_checkpoint'
    last.symlink_to('/dev/full')
    with pytest.raises(OSError, match='No space left') as error:
        number_runner(tmp_path, 10).train()
    assert error.value.filename == str(last)
    assert not last.is_symlink()  # the file would be empty
    assert choose(tmp_path) == str(tmp_path / 'iter_10.pth')


def test_only_best_checkpoints_of_this_run_are_deleted(tmp_path: Path) -> None:
    first, second = tmp_path / 'first', tmp_path / 'second'
    options = dict(hook=dict(save_best='mIoU'))

    def validate(runner: Any, score: float) -> None:
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook):
                hook.after_val_epoch(runner, dict(mIoU=score))
                hook.after_train(runner)  # waits until what is outdated has been deleted

    runner = number_runner(first, 10, **options)
    runner.train()
    validate(runner, 10.0)
    assert (first / 'best_mIoU_iter_10.pth').exists()
    for name in (str(first / 'best_mIoU_iter_10.pth'), str(tmp_path / 'precious'), '../precious'):
        (tmp_path / 'precious').mkdir(exist_ok=True)
        checkpoint = torch.load(first / 'iter_10.pth', weights_only=True)
        checkpoint['message_hub']['runtime_info'].update(
            best_ckpt=name, keep_ckpt_ids=['/../../precious', 1, 2, 3])
        torch.save(checkpoint, tmp_path / 'from.pth')
        runner = number_runner(second, 20, hook=dict(save_best='mIoU', max_keep_ckpts=1),
                               resume=True, load_from=str(tmp_path / 'from.pth'))
        runner.train()
        validate(runner, 20.0)
        assert (first / 'best_mIoU_iter_10.pth').exists()
        assert (tmp_path / 'precious').exists()
        assert (second / 'best_mIoU_iter_20.pth').exists()
    # its own goes, even where the folder was moved since
    moved = second.rename(tmp_path / 'moved')
    runner = number_runner(moved, 30, resume=True, **options)
    runner.train()
    validate(runner, 30.0)
    assert [path.name for path in moved.glob('best_*')] == ['best_mIoU_iter_30.pth']


@pytest.fixture(scope='module')
def fresh(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model and optimiser wrapper before a training."""
    runner = build(config, tmp_path_factory.mktemp('fresh'), randomness__deterministic=False)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    return runner


def first_momentum(checkpoint: dict) -> dict:
    return checkpoint['optimizer']['state'][0]


CHANGES = dict(
    optimizer=lambda c: c.pop('optimizer'),
    message_hub=lambda c: c.pop('message_hub'),
    iteration=lambda c: c['meta'].update(iter=10**30),
    negative=lambda c: c['meta'].update(iter=-1),
    text=lambda c: c['meta'].update(iter='4'),
    seed=lambda c: c['meta'].update(seed=2**32),
    classes=lambda c: c['state_dict'].update(
        {'decode_head.conv_seg.weight': torch.zeros(9, 16, 1, 1)}),
    shape=lambda c: first_momentum(c).update(momentum_buffer=torch.zeros(1, 1, 3, 3)),
    infinite=lambda c: first_momentum(c)['momentum_buffer'].fill_(float('inf')),
    expanded=lambda c: first_momentum(c).update(
        momentum_buffer=torch.zeros(1).expand_as(first_momentum(c)['momentum_buffer'])),
    words=lambda c: first_momentum(c).update(momentum_buffer='none'),
    stray=lambda c: c['optimizer']['state'].update({10**6: {}}),
    fewer=lambda c: c['optimizer']['param_groups'][0]['params'].pop(),
    rate=lambda c: c['optimizer']['param_groups'][0].update(lr=float('nan')),
    adam=lambda c: c['optimizer']['param_groups'][0].pop('momentum'),
    no_groups=lambda c: c['optimizer'].pop('param_groups'),
)
WORDS = dict(
    optimizer='it holds no optimizer', message_hub='it holds no message_hub',
    iteration='its iter is 1000', negative='its iter is -1', text='its iter is 4',
    seed='its seed is 4294967296',
    classes=r'conv_seg.weight is of \(9, 16, 1, 1\) in the file and of \(4, 16, 1, 1\)',
    shape=r'momentum_buffer of backbone.* is of \(1, 1, 3, 3\), the parameter of',
    infinite='momentum_buffer of backbone.* holds NaN or infinity',
    expanded='unexpected layout', words='is a str', stray='1000000, which does not exist',
    fewer='cannot be loaded: ValueError: .*size of optimizer', rate='lr nan',
    adam='no momentum, which SGD needs', no_groups="cannot be loaded: KeyError: 'param_groups'")


@pytest.mark.parametrize('change', CHANGES)
def test_what_does_not_fit_is_refused(straight: Path, fresh: Any, change: str) -> None:
    checkpoint = torch.load(straight / 'iter_4.pth', weights_only=True)
    arguments: Any = ('iter_4.pth', fresh.model, fresh.optim_wrapper, dict(iter=8, epoch=1))
    check_resumable(checkpoint, *arguments)
    CHANGES[change](checkpoint)
    with pytest.raises(ResumeError, match=f'iter_4.pth cannot be resumed from.*{WORDS[change]}'):
        check_resumable(checkpoint, *arguments)


def test_factored_states_are_resumed() -> None:
    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.Adafactor(model.parameters())
    model(torch.rand(2, 3)).sum().backward()
    optimizer.step()
    wrapper = OptimWrapper(optimizer)
    checkpoint = dict(meta=dict(iter=1, epoch=0), state_dict=model.state_dict(), message_hub={},
                      optimizer=wrapper.state_dict())
    check_resumable(checkpoint, 'file', model, wrapper, dict(iter=8, epoch=1))


def test_resuming_with_other_classes_or_from_the_best_says_how_to_fine_tune(
        config: Path, straight: Path, tmp_path: Path) -> None:
    shutil.copytree(straight, tmp_path / 'work')
    code, text = Process('train', config, tmp_path / 'work', log=tmp_path / 'log', resume=True,
                         model__decode_head__num_classes=5).wait()
    assert code == 1  # fused SGD used to write behind the momentum: a segmentation fault
    assert 'give it as load_from without --resume' in text.splitlines()[-1]
    best = next(straight.glob('best_*.pth'))
    code, text = Process('train', config, tmp_path / 'work', log=tmp_path / 'log', resume=True,
                         load_from=str(best)).wait()
    assert code == 1
    assert f'{best} cannot be resumed from: it holds no optimizer' in text.splitlines()[-1]
