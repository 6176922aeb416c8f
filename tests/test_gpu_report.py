"""tools/gpu_report.py names what goes wrong, and goes on; its rehearsal on the CPU runs."""
import argparse
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.config import Config, DictAction

import mmseg_bisenetv2  # noqa: F401 - before the tools import mmseg

ROOT = Path(__file__).parents[1]
FACTS = dict(device='cuda', gpu='a GPU', date='2026-01-01')


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools')
    import gpu_report
    monkeypatch.setattr(gpu_report, 'MIN_SECONDS', 0)
    monkeypatch.setattr(signal, 'signal', lambda *_: None)
    return gpu_report


def run(tool, tmp_path, script, read=lambda _: [], batch=1, seconds=300.0, deadline=300.0, **more):
    """Runs a stage of one shell command, in which $1 is the batch."""
    stage = tool.Stage('one', 'One', lambda number: ['sh', '-c', script, 'sh', str(number)], read,
                       seconds, batch, **more)
    return tool.run_stage(stage, 'cpu', tmp_path, time.monotonic() + deadline)


def test_stage_that_passes(tool, tmp_path):
    record = run(tool, tmp_path, 'echo "devices: $CUDA_VISIBLE_DEVICES."',
                 lambda printed: [dict(setting=printed.splitlines()[-1])])
    assert record['status'] == 'passed' and record['notes'] == []
    assert record['results'] == [dict(setting='devices: .')]  # A rehearsal sees no GPU.
    assert (tmp_path / 'logs/one.log').read_text().startswith('sh -c')


def test_stage_that_fails_names_its_error(tool, tmp_path):
    record = run(tool, tmp_path, 'echo "ValueError: no such thing"; echo and more; exit 3')
    assert record['status'] == 'failed'
    assert record['notes'] == ['exit code 3: ValueError: no such thing']
    # The error of a training, and mim's own, which says nothing of it.
    record = run(tool, tmp_path, 'echo "RuntimeError: why"; '
                 'echo "subprocess.CalledProcessError: train.py returned 1"; exit 1')
    assert record['notes'] == ['exit code 1: RuntimeError: why']
    assert run(tool, tmp_path, 'kill -9 $$')['notes'][0].startswith('exit code -9')


def test_stage_whose_results_are_wrong_or_missing(tool, tmp_path):
    def wrong(_):
        raise tool.StageError('the loss is not finite')

    record = run(tool, tmp_path, 'true', wrong)
    assert record['status'] == 'failed' and record['notes'] == ['the loss is not finite']
    record = run(tool, tmp_path, 'true', lambda _: json.loads(Path('/none.json').read_text()))
    assert record['status'] == 'failed' and '/none.json' in record['notes'][0]


def test_stage_that_hangs_ends_with_all_its_processes(tool, tmp_path):
    record = run(tool, tmp_path, f'sleep 1000 & echo $! > {tmp_path}/pid; echo waiting; wait',
                 seconds=2)
    assert record['status'] == 'out of time' and record['notes'][0].endswith('waiting')
    status = Path('/proc', (tmp_path / 'pid').read_text().strip(), 'status')
    deadline = time.monotonic() + 30  # A busy machine takes a while to end what was killed.
    while status.exists() and 'State:\tR' in status.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not status.exists() or 'State:\tZ' in status.read_text()


def test_no_time_is_left(tool, tmp_path):
    record = run(tool, tmp_path, f'touch {tmp_path}/started', deadline=-1)
    assert record['status'] == 'out of time' and not (tmp_path / 'started').exists()


def test_stage_that_is_left_out(tool, tmp_path):
    record = run(tool, tmp_path, 'false', missing='not installed')
    assert record['status'] == 'left out' and record['notes'] == ['not installed']


def test_batch_is_halved_where_the_memory_is_too_small(tool, tmp_path):
    script = 'echo "CUDA out of memory. Tried"; test $1 -le 2'
    record = run(tool, tmp_path, script, lambda _: [dict(setting='x')], batch=8)
    assert record['status'] == 'passed' and record['command'][-1] == '2'
    assert record['notes'] == ['out of memory with a batch of 8: tried 4',
                               'out of memory with a batch of 4: tried 2']
    record = run(tool, tmp_path, 'echo "CUDA out of memory"; exit 1', batch=2)
    assert record['status'] == 'failed' and len(record['notes']) == 2


@pytest.mark.parametrize('cuda, driver, expected', [
    (None, True, 'is the build for CPUs.*\n'), ('13.0', False, '^PyTorch .* finds no GPU'),
    ('13.0', True, 'its driver is too old or out of reach\n')])
def test_why_there_is_no_gpu(tool, monkeypatch, cuda, driver, expected):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.version, 'cuda', cuda)
    monkeypatch.setattr(shutil, 'which', lambda name: f'/usr/bin/{name}' if driver else None)
    with pytest.raises(SystemExit, match=expected):
        tool.describe_machine('cuda')


def test_head_of_the_report(tool, monkeypatch, tmp_path):
    ones = torch.ones
    monkeypatch.setattr(torch, 'ones', lambda *size, device: ones(*size))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda: (70 * 2 ** 30, 80 * 2 ** 30))
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda _: argparse.Namespace(
        uuid='0123', major=9, minor=0))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda _: 'a GPU')
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    driver = tmp_path / 'nvidia-smi'
    driver.write_text('#!/bin/sh\necho "580.1, 700.00 W, 1980 MHz"\n')
    driver.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    facts = tool.describe_machine('cuda')
    assert facts['torch'] == torch.__version__
    assert (facts['gpu'], facts['capability']) == ('a GPU', '9.0')
    assert (facts['gpu_memory_free_gib'], facts['gpu_memory_gib']) == (70.0, 80.0)
    assert (facts['driver'], facts['sm_clock_limit'], facts['cuda']) == (
        '580.1', '1980 MHz', '13.0')
    assert facts['tf32_convolutions'] == torch.backends.cudnn.allow_tf32

    def fail(*_, **__):
        raise RuntimeError('CUDA error: no kernel image is available')

    monkeypatch.setattr(torch, 'ones', fail)
    with pytest.raises(SystemExit, match=r'no kernel image is available$'):
        tool.describe_machine('cuda')
    driver.write_text('#!/bin/sh\nexit 9\n')
    assert tool.ask_driver('0') == dict(driver='unknown')


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_one_sentence_says_so(tool, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, 'argv', ['gpu_report.py', '--out', str(tmp_path / 'out')])
    monkeypatch.setattr(tool, 'ProcessPoolExecutor', InThisProcess)
    with pytest.raises(SystemExit, match='PyTorch'):
        tool.main()
    assert not (tmp_path / 'out').exists()


class InThisProcess:
    """Stands for a pool of processes, each of which would need seconds to start."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments):
        self.result = lambda: function(*arguments)
        return self


def test_batch_fills_the_card(tool):
    assert [tool.choose_sizes('cuda', gib).batch for gib in (0.5, 10, 22, 39, 78, 139)] == [
        1, 4, 8, 16, 32, 32]


def test_commands_are_understood(tool, monkeypatch, tmp_path):
    """For a GPU, on which nobody may have run them yet."""
    monkeypatch.setattr(shutil, 'which', lambda name, **_: f'/opt/{name}')
    monkeypatch.chdir(ROOT)
    stages = {stage.name: stage for stage in tool.plan('cuda', tool.Sizes(batch=32), tmp_path)}
    tools = 0
    for stage in stages.values():
        command = stage.command(stage.batch)
        if command[1].startswith('tools/'):
            tools += 1
            namespace = runpy.run_path(command[1], run_name='not main')
            monkeypatch.setattr(sys, 'argv', command[1:])
            args = namespace['parse_args']()
            assert args.device == 'cuda'
            if args.command in ('inference', 'compile'):
                assert args.batch == [1, 16]
    assert tools == 7
    config = 'configs/bisenetv2_fcn_fp16_cityscapes.py'
    command = stages['training-fp16'].command(16)
    assert command[5] == config
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    options = parser.parse_args(command[command.index('--cfg-options'):]).cfg_options
    config = Config.fromfile(config)
    assert config.train_dataloader.dataset.pipeline[2].crop_size == (1024, 1024)
    config.merge_from_dict(options)
    assert config.train_dataloader.dataset.pipeline[2].crop_size == (512, 1024)
    assert config.val_dataloader.dataset.pipeline[1].scale == (2048, 1024)
    assert config.optim_wrapper.type == 'AmpOptimWrapper'
    assert config.train_cfg.max_iters == 200


@pytest.fixture
def training(tool, tmp_path):
    """Writes the log of a training and returns what is read of it."""
    def read(losses, printed='batch_size=4 AMP skipped 2 steps AMP skipped 1 steps', name='fp16'):
        log = tmp_path / f'training-{name}/20260101_000000/vis_data/scalars.json'
        log.parent.mkdir(parents=True, exist_ok=True)
        rows = [dict(loss=loss, iter=10 * i, step=10 * i, time=0.5, data_time=0.1, memory=100 + i)
                for i, loss in enumerate(losses, 1)]
        log.write_text('\n'.join(map(json.dumps, [*rows, dict(mIoU=12.5, step=40)])))
        sizes = tool.Sizes(batch=1, iterations=40)
        return tool.read_training(tmp_path / f'training-{name}', f'{name}.py', sizes, printed)

    return read


def test_training_is_read(training):
    row, = training([9.0, 8.0, 7.0, 6.0])
    assert row['setting'] == '`fp16.py`, 4 x 1024x512'
    assert (row['first_loss'], row['last_loss'], row['miou']) == (9.0, 6.0, 12.5)
    assert (row['images_per_s'], row['data_share'], row['peak_mib']) == (8.0, 0.2, 104)
    assert row['skipped_steps'] == 3


@pytest.mark.parametrize('losses, expected', [
    ([9.0, float('nan'), 7.0, 6.0], r'not finite at iterations \[20\]'),
    ([9.0, 8.0, 7.0], 'before iteration 40'), ([], 'before iteration 40')])
def test_training_that_failed(tool, training, losses, expected):
    with pytest.raises(tool.StageError, match=expected):
        training(losses)


def test_a_gpu_test_that_was_skipped_on_a_gpu_is_a_failure(tool):
    want, other = (f'SKIPPED [1] tests/a.py:12: {why}\n' for why in ('needs a GPU', 'slow'))
    last = '2 passed, 1 skipped, 40 deselected in 3.21s'
    for device, text in (('cpu', want), ('cuda', other)):
        row, = tool.read_tests(device, text + last)
        assert (row['passed'], row['skipped']) == (2, 1)
    for later in ('', '\nnanobind: leaked 3 instances!'):  # said when the interpreter ends
        assert tool.read_tests('cuda', f'7 passed in 1.00s{later}')[0]['skipped'] == 0
    with pytest.raises(tool.StageError, match=r'tests/a\.py:12: needs a GPU'):
        tool.read_tests('cuda', want + last)
    for last in ('1 skipped in 1.00s', 'no tests ran in 0.01s', ''):
        with pytest.raises(tool.StageError, match='no test has passed'):
            tool.read_tests('cpu', last)


def test_tests_that_fail_are_named(tool, tmp_path):
    record = run(tool, tmp_path, 'echo "FAILED tests/a.py::test_b - AssertionError: no"; '
                 'echo "ERROR tests/c.py::test_d"; echo "1 failed, 1 error in 1s"; exit 1')
    assert record['notes'] == ['exit code 1: tests/a.py::test_b, tests/c.py::test_d']


def test_tensorrt(tool, monkeypatch, tmp_path):
    fake = tmp_path / 'trtexec'
    fake.write_text('#!/bin/sh\n[ "$2" = --fp16 ] || exit 1\n'
                    'echo "[I] Latency: min = 1 ms, max = 3 ms, mean = 2 ms, median = 1.5 ms"\n'
                    'echo "[I] GPU Compute Time: min = 1 ms, max = 2 ms, median = 1.25 ms"\n')
    fake.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    monkeypatch.setattr(sys, 'executable', 'echo')  # in place of the export
    sizes = tool.Sizes(batch=1)
    record = tool.run_stage(tool.tensorrt_stage(sizes, tmp_path), 'cpu', tmp_path,
                            time.monotonic() + 300)
    assert record['status'] == 'passed', record
    row, = record['results']
    assert (row['end_to_end_ms'], row['network_ms']) == (1.5, 1.25)
    printed = (tmp_path / 'logs/tensorrt.log').read_text()
    assert f'training-fp32/iter_200.pth {tmp_path}/bisenetv2.onnx --size 2048x1024\n' in printed
    with pytest.raises(tool.StageError, match='Latency'):
        tool.read_trtexec('something else')


def test_report(tool, training, tmp_path):
    row = dict(setting='2 x 64x128', mmseg_ms=4.0, ours_ms=2.0, ratio=2.0,
               ratio_quartiles=[1.5, 2.5])
    command = 'python tools/benchmark.py loss --device cuda --json gpu_loss.json'
    stages = [dict(name='loss', title='The losses', status='passed', notes=['half | the batch'],
                   results=[row], command=command),
              dict(name='eval', title='Evaluation', status='failed', notes=['it broke'],
                   results=[], command=command)]
    for name in ('fp32', 'fp16'):
        results = training([9.0, 8.0, 7.0, 6.0], name=name)
        stages.append(dict(name=f'training-{name}', title='Training', status='passed', notes=[],
                           results=results, command='mim train'))
    (tmp_path / 'benchmarks').mkdir()
    tool.write_report(tmp_path, FACTS, [dict(stage, seconds=1.0) for stage in stages])
    text = (tmp_path / 'report.md').read_text()
    lines = [re.sub(' +', ' ', line) for line in text.splitlines()]  # Columns are padded.
    assert 'rehearsal' not in text and '| gpu | a GPU |' in lines
    for line in ('| stage | loss | eval | training-fp32 | training-fp16 |',
                 '| result | passed | failed | passed | passed |',
                 '| notes | half / the batch | it broke | | |',
                 '| setting | 2 x 64x128 |', '| ratio | 2 |', '| ratio_quartiles | 1.5 - 2.5 |',
                 '| setting | `fp32.py`, 4 x 1024x512 | `fp16.py`, 4 x 1024x512 |',
                 '| first_loss | 9 | 9 |', f'`{command}`'):
        assert line in lines, text
    assert '### Evaluation' not in text and text.count('Trainings by mim') == 1
    picture = tmp_path / re.findall(r'\]\((.*)\)', text)[0]
    assert cv2.imread(str(picture)).std() > 10
    content = json.loads((tmp_path / 'benchmarks/gpu.json').read_text())
    assert content['machine'] == FACTS
    assert [stage['results'] for stage in content['stages'][:2]] == [[row], []]


@pytest.mark.parametrize('script, code', [('true', 0), ('exit 1', 1), ('sleep 1000', 1)])
def test_exit_code(tool, monkeypatch, tmp_path, script, code):
    """The stage after the one that fails runs all the same."""
    def plan(*_):
        return [tool.Stage(name, name, lambda _, text=text: ['sh', '-c', text], lambda _: [], 2)
                for name, text in (('first', script), ('second', 'true'), ('third', 'exit 9'))]

    monkeypatch.setattr(tool, 'ProcessPoolExecutor', InThisProcess)
    monkeypatch.setattr(tool, 'plan', plan)
    monkeypatch.setattr(sys, 'argv', ['gpu_report.py', '--device', 'cpu', '--out', str(tmp_path),
                                      '--stages', 'first', 'second'])
    with pytest.raises(SystemExit) as end:
        tool.main()
    assert int(end.value.code) == code
    stages = json.loads((tmp_path / 'benchmarks/gpu.json').read_text())['stages']
    assert [stage['name'] for stage in stages] == ['first', 'second']
    assert stages[1]['status'] == 'passed'
    monkeypatch.setattr(sys, 'argv', [*sys.argv[:-2], 'fourth'])
    with pytest.raises(SystemExit, match='--stages fourth: expected some of first second third'):
        tool.main()


def rehearse(out, *arguments):
    result = subprocess.run(
        [sys.executable, ROOT / 'tools/gpu_report.py', '--device', 'cpu', '--out', out, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout
    content = json.loads((out / 'benchmarks/gpu.json').read_text())
    assert content['machine']['torch'] == torch.__version__
    text = (out / 'report.md').read_text()
    for command in re.findall(r'`(python tools/benchmark.py .*)`', text):
        assert (out / 'benchmarks' / shlex.split(command)[-1]).exists()
    for name in re.findall(r'`(bisenetv2\S+)`', text):
        assert (ROOT / 'configs' / name).exists()
    return {stage['name']: stage for stage in content['stages']}


def test_short_rehearsal(tmp_path):
    loss, = rehearse(tmp_path, '--stages', 'loss').values()
    assert loss['status'] == 'passed' and loss['results'][0]['ratio'] > 0
    text = (tmp_path / 'report.md').read_text()
    assert '### The losses of five heads' in text and 'its figures mean nothing' in text


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('g++'), reason='PyTorch compiles with g++ for a CPU')
def test_rehearsal(tmp_path):
    """All that `make gpu` does, but for TensorRT, with tiny sizes."""
    stages = rehearse(tmp_path, '--minutes', '60')
    assert {name: stage['status'] for name, stage in stages.items()} == {
        **dict.fromkeys((
            'tests', 'training-fp32', 'training-bf16', 'training-fp16', 'train-none',
            'train-bfloat16', 'inference', 'compile', 'loss', 'eval', 'data'), 'passed'),
        'tensorrt': 'passed' if shutil.which('trtexec') else 'left out'}
    assert stages['tests']['results'][0]['skipped'] > 0
    for name in ('fp32', 'bf16', 'fp16'):
        row, = stages[f'training-{name}']['results']
        assert row['iterations'] == 2 and row['miou'] is not None
    inference = [row['setting'] for row in stages['inference']['results']]
    assert {'128x64 x 1, MMSegmentation', '128x64 x 2, torch fp32'} <= set(inference)
    for row in stages['compile']['results']:
        assert row['logit_difference'] < 1e-3
    assert (tmp_path / 'benchmarks/gpu_training.png').stat().st_size > 1000
