"""Two trainings never write to one folder."""
import json
import os
import socket
import time
from pathlib import Path

import pytest
from trainings import Process, number_runner

from mmseg_bisenetv2.engine import WorkDirLockedError


def test_second_training_is_refused_until_the_first_has_ended(
        config: Path, straight: Path, tmp_path: Path) -> None:
    work = tmp_path / 'work'
    endless = dict(train_cfg__max_iters=10**6, train_dataloader__num_workers=1)
    first = Process('train', config, work, log=tmp_path / 'first', **endless)
    deadline = time.time() + 100
    while not (work / 'iter_2.pth').exists() and time.time() < deadline:
        time.sleep(0.1)
    second = Process('train', config, work, log=tmp_path / 'second', resume=True)
    code, text = second.wait()
    assert code == 1
    message = text.splitlines()[-1]
    assert f'Process {first.process.pid} on {socket.gethostname()} has trained in {work}' in message
    assert f'kill {first.process.pid}' in message
    code, text = Process('test', config, work, log=tmp_path / 'test',
                         load_from=str(straight / 'iter_8.pth')).wait()
    assert code == 0, text
    first.process.kill()
    first.wait()
    code, text = Process('train', config, work, log=tmp_path / 'third', resume=True,
                         train_cfg__max_iters=0).wait()
    assert 'has trained in' not in text


def test_lock_of_another_host_says_how_to_remove_it(tmp_path: Path) -> None:
    hook = dict(work_dir_lock=dict(type='mmseg_bisenetv2.WorkDirLockHook'))
    runner = number_runner(tmp_path, 10)
    runner.register_default_hooks(hook)
    lock = tmp_path / 'training.lock'
    lock.write_text(json.dumps(dict(host='elsewhere', pid=1, start='yesterday')))
    with pytest.raises(WorkDirLockedError, match=f'Process 1 on elsewhere.*rm {lock}'):
        runner.train()
    lock.unlink()
    runner.train()
    assert lock.read_text() == ''
    lock.write_text(json.dumps(dict(host=socket.gethostname(), pid=os.getpid(), start='before')))
    runner = number_runner(tmp_path, 10)  # of a process that ended without giving it back
    runner.register_default_hooks(hook)
    runner.train()
