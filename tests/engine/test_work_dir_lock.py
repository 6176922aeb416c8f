"""Two trainings never write to one folder."""
import gc
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapper
from trainings import Process, number_runner
from trainings import test as run_test

from mmseg_bisenetv2.engine import WorkDirLockedError, WorkDirLockHook


def lock_runner(work_dir: Path) -> Any:
    """What the hook looks at in a training that begins."""
    return SimpleNamespace(work_dir=str(work_dir), optim_wrapper=OptimWrapper(
        torch.optim.SGD([torch.zeros(1)], lr=0.1)))


def test_second_training_is_refused_until_the_first_has_ended(
        config: Path, straight: Path, tmp_path: Path) -> None:
    work = tmp_path / 'work'
    endless = dict(train_cfg__max_iters=10**6, train_dataloader__num_workers=1)
    first = Process('train', config, work, log=tmp_path / 'first', **endless)
    deadline = time.time() + 100
    while not (work / 'iter_2.pth').exists() and time.time() < deadline:
        time.sleep(0.1)
    runner = lock_runner(work)
    with pytest.raises(WorkDirLockedError) as error:
        WorkDirLockHook().before_run(runner)
    assert (f'Process {first.process.pid} on {socket.gethostname()} has trained in {work}'
            in str(error.value))
    assert f'kill {first.process.pid}' in str(error.value)
    run_test(config, work, load_from=str(straight / 'iter_8.pth'), randomness__deterministic=False)
    first.process.kill()
    assert first.wait()[0] == -9
    hook = WorkDirLockHook()
    hook.before_run(runner)
    hook.after_run(runner)


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


def test_a_training_that_is_begun_again_in_the_same_process_is_locked(tmp_path: Path) -> None:
    runner = lock_runner(tmp_path)
    broken_off, hook = WorkDirLockHook(), WorkDirLockHook()
    broken_off.before_run(runner)  # and never after_run
    hook.before_run(runner)
    del broken_off
    gc.collect()
    lock = 'import fcntl, sys; fcntl.lockf(open(sys.argv[1], "a"), fcntl.LOCK_EX | fcntl.LOCK_NB)'
    command = [sys.executable, '-c', lock, str(tmp_path / 'training.lock')]
    assert b'BlockingIOError' in subprocess.run(command, capture_output=True, check=False).stderr
    hook.after_run(runner)
    subprocess.run(command, check=True)
