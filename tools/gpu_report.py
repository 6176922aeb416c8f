"""Runs what only a GPU can show, in eight minutes at most, and writes one report of it.

    python tools/gpu_report.py                 # into work_dirs/gpu_report
    python tools/gpu_report.py --stages loss training-fp16
    python tools/gpu_report.py --device cpu    # a rehearsal: the same with tiny sizes

Each stage is a process with a time limit. If one fails or runs out of time, the report names it,
the others go on, and the exit code is 1. Where the memory is too small for a batch, half of it is
tried. report.md is written to replace the section "On a GPU" of docs/benchmarks.md, and the
files of the folder benchmarks/ beside it belong into docs/benchmarks/.
"""
import argparse
import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _arguments import format_size
from benchmark import ROOT, format_table
from benchmark import describe_machine as describe_device

from mmseg_bisenetv2.datasets.inspection import describe_installation
from mmseg_bisenetv2.datasets.toy_cityscapes import make_toy_cityscapes
from mmseg_bisenetv2.visualization import draw_curves

CONFIGS = dict(fp32='bisenetv2_fcn_cityscapes.py', bf16='bisenetv2_fcn_bf16_cityscapes.py',
               fp16='bisenetv2_fcn_fp16_cityscapes.py')
TOY = 'toy_cityscapes'  # the folder of the scenes, below that of the report
TESTS = 'gpu and not gpus and not gpu_report and not without_a_gpu'
MIN_SECONDS = 5  # seconds that a stage needs to be worth its start
LEGEND = ('`mmseg` is MMSegmentation and `ours` this package. `ratio` is how many times as fast as '
          'MMSegmentation, or as eager, with its quartiles over the rounds. `agreement` is in per '
          'cent of the labels, `data_share` the part of the time that the training waits for data.')


@dataclass
class Sizes:
    """How large everything is, (height, width) and numbers."""

    batch: int  # of crops, in a training step and in the losses
    crop: tuple[int, int] = (1024, 1024)
    frame: tuple[int, int] = (1024, 2048)
    frames: int = 16
    compiled_frames: int = 16
    pairs: int = 9
    scenes: tuple[int, int] = (32, 4)  # drawn for training and for validation
    scene: tuple[int, int] = (512, 1024)  # on the whole of which the configs train
    training_batch: int = 16
    iterations: int = 200
    workers: int = 8
    patience: int = 1  # what the limit of a stage, which is that for an H100, is multiplied by


TINY = Sizes(batch=2, crop=(32, 64), frame=(64, 128), frames=2, compiled_frames=1, pairs=1,
             scenes=(4, 1), scene=(64, 128), training_batch=2, iterations=2, workers=1,
             patience=20)


@dataclass
class Stage:
    """A command with a limit, and what reads its results.

    Attributes:
        name: As in ``--stages``.
        title: Heading in the report.
        command: For a batch, which is halved where the memory is too small.
        read: Results, from what the command printed and wrote; raises StageError if they are wrong.
        seconds: The limit.
        batch: The first.
        missing: Why the stage is left out, if it is.
    """

    name: str
    title: str
    command: Callable[[int], list[str]]
    read: Callable[[str], list[dict[str, Any]]]
    seconds: float
    batch: int = 1
    missing: str = ''


class StageError(Exception):
    """A stage failed, or what it left is not what it should be."""


def describe_machine(device: str) -> dict[str, Any]:
    """What the figures depend on. To be called in a process of its own, since it opens the GPU.

    Raises:
        SystemExit: If the device cannot be used, with the reason and the remedy.
    """
    versions, warnings = describe_installation()
    facts: dict[str, Any] = dict(date=time.strftime('%Y-%m-%d'), system=platform.platform(),
                                 python=platform.python_version())
    if device == 'cpu':
        return facts | describe_device(device) | versions
    if not torch.cuda.is_available():
        sys.exit('\n'.join([*warnings, (
            f"PyTorch {torch.__version__} finds no GPU. It needs NVIDIA's driver and the build for "
            'your CUDA (https://pytorch.org); --device cpu rehearses without a GPU')]))
    try:
        torch.ones(8, 8, device=device).matmul(torch.ones(8, 8, device=device)).sum().item()
        free, total = torch.cuda.mem_get_info()
    except RuntimeError as error:
        sys.exit(f'The GPU does not compute with this PyTorch: {last_line(str(error))}')
    gpu = torch.cuda.get_device_properties(0)
    versions.update({each.name: each.version for each in importlib.metadata.distributions()
                     if each.name in ('triton', 'tensorrt', 'onnxruntime-gpu')})
    return facts | describe_device(device) | dict(
        gpu_memory_gib=round(total / 2 ** 30, 1), gpu_memory_free_gib=round(free / 2 ** 30, 1),
        capability=f'{gpu.major}.{gpu.minor}', **ask_driver(str(gpu.uuid)),
        cudnn=torch.backends.cudnn.version(),
        cudnn_benchmark="in training and evaluation, as in MMSegmentation's default_runtime.py"
    ) | versions


def ask_driver(uuid: str) -> dict[str, str]:
    """What nvidia-smi knows of a GPU; nothing where it does not answer."""
    keys = dict(driver='driver_version', power_limit='power.limit', sm_clock_limit='clocks.max.sm')
    command = ['nvidia-smi', f'--id=GPU-{uuid}', f'--query-gpu={",".join(keys.values())}',
               '--format=csv,noheader']
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return dict(driver='unknown')
    return dict(zip(keys, answer.stdout.splitlines()[0].split(', '), strict=False))


def choose_sizes(device: str, free_gib: float) -> Sizes:
    """Sizes that fill the card: MMSegmentation trains on a crop of 1024x1024 with about 2 GiB."""
    if device == 'cpu':
        return TINY
    return Sizes(batch=2 ** int(math.log2(max(1, free_gib / 2.2))),
                 workers=min(8, len(os.sched_getaffinity(0))))


def plan(device: str, sizes: Sizes, out: Path) -> list[Stage]:
    """All stages, the most telling first."""
    stages = [Stage(
        'tests', 'Tests', lambda _: [
            sys.executable, '-m', 'pytest', 'tests', '-q', '-rfEs', '--color=no', '-p',
            'no:cacheprovider', '-k', TESTS],
        partial(read_tests, device), 150,
        missing='' if (ROOT / 'tests').exists() else 'the tests are in the clone only')]
    for precision, config in CONFIGS.items():
        folder = out / f'training-{precision}'
        stages.append(Stage(
            folder.name, f'Training by {config}',
            partial(training_command, device, precision, sizes, folder),
            partial(read_training, folder, config, sizes), 90, sizes.training_batch))

    def benchmark_stage(name: str, title: str, seconds: float, batch: int, options: str) -> Stage:
        """In the options, {batch} stands for the batch, and {batches} for 1 and the batch."""
        file = out / 'benchmarks' / f'gpu_{name}.json'
        return Stage(
            name, title, lambda number: [
                sys.executable, 'tools/benchmark.py', name.split('-')[0], '--device', device,
                *options.format(batch=number, batches=' '.join(map(str, sorted({1, number})))
                                ).split(), '--json', str(file)],
            lambda _: json.loads(file.read_text())['results'], seconds, batch)

    size, crop, pairs = format_size(sizes.frame), format_size(sizes.crop), sizes.pairs
    stages += [benchmark_stage(*row) for row in (
        ('train-none', 'A training step, --amp none', 60, sizes.batch,
         f'--batch {{batch}} --crop {crop} --pairs {pairs} --amp none'),
        ('train-bfloat16', 'A training step, --amp bfloat16', 60, sizes.batch,
         f'--batch {{batch}} --crop {crop} --pairs {pairs} --amp bfloat16'),
        ('inference', 'From a picture to its labels', 150, sizes.frames,
         f'--batch {{batches}} --size {size} --pairs {2 * pairs}'),
        ('compile', 'CUDA graph and torch.compile against eager', 120, sizes.compiled_frames,
         f'--batch {{batches}} --size {size} --pairs {4 * pairs} --precision '
         + ('fp32' if device == 'cpu' else 'fp16')),
        ('loss', 'The losses of five heads', 40, sizes.batch,
         f'--batch {{batch}} --crop {crop} --pairs {pairs}'),
        ('eval', 'Evaluation, from PNG to mIoU', 45, 1, f'--size {size} --pairs {pairs}'),
        ('data', 'Reading pictures, one core of the processor', 45, 1,
         f'--size {size} --crop {crop} --pairs {min(3, pairs)}'))]
    stages.append(tensorrt_stage(sizes, out))
    for stage in stages:
        stage.seconds *= sizes.patience
    return stages


def training_command(device: str, precision: str, sizes: Sizes, folder: Path, batch: int
                     ) -> list[str]:
    """`mim train` with a config as it is, but for data, size and length."""
    toy, crop = folder.parent / TOY, '({},{})'.format(*sizes.scene)
    scale = '({1},{0})'.format(*sizes.frame)
    options = {
        'train_dataloader.dataset.data_root': toy, 'val_dataloader.dataset.data_root': toy,
        'train_dataloader.batch_size': batch, 'train_dataloader.num_workers': sizes.workers,
        'val_dataloader.num_workers': 1, 'train_dataloader.dataset.pipeline.2.crop_size': crop,
        'val_dataloader.dataset.pipeline.1.scale': scale, 'model.data_preprocessor.size': crop,
        'train_cfg.max_iters': sizes.iterations, 'train_cfg.val_interval': sizes.iterations,
        'default_hooks.checkpoint.interval': sizes.iterations, 'randomness.seed': 0,
        'default_hooks.logger.interval': max(1, sizes.iterations // 20)}
    if device == 'cpu' and precision != 'fp32':
        options['optim_wrapper.type'] = 'mmseg_bisenetv2.CPUAmpOptimWrapper'
    return [sys.executable, '-m', 'mim', 'train', 'mmseg', f'configs/{CONFIGS[precision]}',
            '--work-dir', str(folder), '--cfg-options',
            *(f'{key}={value}' for key, value in options.items())]


def tensorrt_stage(sizes: Sizes, out: Path) -> Stage:
    """Exports the trained network, has trtexec build its engine in FP16, and times that."""
    # NVIDIA's packages do not put trtexec on the PATH.
    trtexec = shutil.which('trtexec', path=os.environ['PATH'] + ':/usr/src/tensorrt/bin')
    weights, onnx = out / 'training-fp32' / f'iter_{sizes.iterations}.pth', out / 'bisenetv2.onnx'
    export = [sys.executable, 'tools/export.py', f'configs/{CONFIGS["fp32"]}', str(weights),
              str(onnx), '--size', format_size(sizes.frame)]
    build = [str(trtexec), f'--onnx={onnx}', '--fp16', f'--saveEngine={out}/bisenetv2.engine']
    return Stage(
        'tensorrt', 'TensorRT, FP16, one picture at a time',
        lambda _: ['sh', '-c', f'{shlex.join(export)} && {shlex.join(build)}'], read_trtexec, 150,
        missing='' if trtexec else 'there is no trtexec on the PATH and in /usr/src/tensorrt/bin')


def read_tests(device: str, printed: str) -> list[dict[str, Any]]:
    """How many tests passed; on a GPU none of them may have been skipped for want of one."""
    unseen = re.findall(r'^SKIPPED .*needs a GPU.*', printed, re.MULTILINE)
    if device != 'cpu' and unseen:
        raise StageError('; '.join(unseen))
    summaries = re.findall(r'.*\d+ passed.* in [\d.]+s.*', printed)
    if not summaries:
        raise StageError('no test has passed')
    counts = {name: int(number) for number, name in re.findall(r'(\d+) (\w+)', summaries[-1])}
    return [dict(setting=f'pytest -k "{TESTS}"', passed=counts['passed'],
                 skipped=counts.get('skipped', 0))]


def read_training(folder: Path, config: str, sizes: Sizes, printed: str) -> list[dict[str, Any]]:
    """The figures of a training.

    Raises:
        StageError: If it did not reach its end, or a loss is not finite.
    """
    log = max(folder.glob('*/vis_data/scalars.json'), default=None)
    if log is None:
        raise StageError(f'{folder.name} has left no log')
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [row for row in rows if 'loss' in row]
    if not steps or steps[-1]['step'] != sizes.iterations:
        raise StageError(f'it ended before iteration {sizes.iterations}')
    wrong = [row['step'] for row in steps if not math.isfinite(row['loss'])]
    if wrong:
        raise StageError(f'the loss is not finite at iterations {wrong}')
    batch = int(re.findall(r'batch_size=(\d+)', printed)[0])
    later = steps[len(steps) // 2:]  # The first iterations choose algorithms and compile.
    return [dict(
        setting=f'`{config}`, {batch} x {format_size(sizes.scene)}',
        iterations=sizes.iterations, first_loss=steps[0]['loss'], last_loss=steps[-1]['loss'],
        miou=next((row['mIoU'] for row in rows if 'mIoU' in row), None),
        images_per_s=batch / statistics.median(row['time'] for row in later),
        data_share=statistics.median(row['data_time'] / row['time'] for row in later),
        peak_mib=max(row.get('memory', 0) for row in steps) or None,
        skipped_steps=sum(map(int, re.findall(r'AMP skipped (\d+) steps', printed))))]


def read_trtexec(printed: str) -> list[dict[str, Any]]:
    """The medians that trtexec prints."""
    found = {key: re.search(rf'{name}: .*?median = ([\d.]+) ms', printed) for key, name in dict(
        end_to_end_ms='Latency', network_ms='GPU Compute Time').items()}
    if not all(found.values()):
        raise StageError('trtexec printed no "Latency" and "GPU Compute Time"')
    return [{'setting': 'trtexec --fp16', **{
        key: float(match[1]) for key, match in found.items() if match}}]


def run_stage(stage: Stage, device: str, out: Path, deadline: float) -> dict[str, Any]:
    """Runs a stage, with half the batch as often as the memory is too small.

    Returns:
        Its name, title, command as text, status ('passed', 'failed', 'out of time' or 'left out'),
        seconds, notes and results.
    """
    begin, batch = time.monotonic(), stage.batch
    end, log = min(begin + stage.seconds, deadline), out / 'logs' / f'{stage.name}.log'
    record: dict[str, Any] = dict(name=stage.name, title=stage.title, command='', status='',
                                  seconds=0.0, notes=[], results=[])
    if stage.missing:
        record.update(status='left out', notes=[stage.missing])
    while not record['status']:
        command = stage.command(batch)
        record['command'] = shlex.join(command).replace(sys.executable, 'python').replace(
            f'{out}/benchmarks/', '').replace(f'{out}/', '')  # as somebody else would type it
        try:
            code, printed = run_command(command, device, log, end - time.monotonic())
            if not code:
                record.update(results=stage.read(printed), status='passed')
            elif batch > 1 and re.search('out of memory|ALLOC_FAILED', printed):
                record['notes'].append(f'out of memory with a batch of {batch}: tried {batch // 2}')
                batch //= 2
            else:
                raise StageError(f'exit code {code}: {find_reason(printed)}')
        except TimeoutError as error:
            record.update(status='out of time', notes=[*record['notes'], str(error)])
        except (StageError, OSError, ValueError, KeyError) as error:
            record.update(status='failed', notes=[*record['notes'], str(error)])
    record['seconds'] = time.monotonic() - begin
    return record


def run_command(command: list[str], device: str, log: Path, seconds: float) -> tuple[int, str]:
    """Returns the exit code, and what was printed, which the log keeps.

    The processes that the command started end with it.

    Raises:
        TimeoutError: If it did not end within the seconds.
    """
    if seconds < MIN_SECONDS:
        raise TimeoutError('no time was left for it')
    hidden = {'CUDA_VISIBLE_DEVICES': ''} if device == 'cpu' else {}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('w') as file:
        file.write(shlex.join(command) + '\n')
        file.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True, env=os.environ | hidden | dict(PYTHONWARNINGS='ignore'))
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f'ended after {seconds:.0f} s; its last line: '
                               + last_line(log.read_text(errors='replace'))) from None
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)  # workers that are left, too
            except ProcessLookupError:
                pass
            process.wait()
    return code, log.read_text(errors='replace')


def last_line(text: str) -> str:
    """The last line that says something, at most 200 characters of it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else 'nothing'


def find_reason(printed: str) -> str:
    """The tests that failed, or the last error that a command printed, or its last line."""
    failed = re.findall(r'^(?:FAILED|ERROR) (\S+)', printed, re.MULTILINE)
    # mim's own error, of subprocess, says no more than that the training failed.
    errors = re.findall(r'^(?!subprocess\.)[\w.]*(?:Error|Exception|Exit): .+', printed,
                        re.MULTILINE)
    return ', '.join(failed) or last_line(errors[-1] if errors else printed)


def write_report(out: Path, facts: dict[str, Any], records: list[dict[str, Any]]) -> None:
    """Writes report.md and benchmarks/gpu.json, and the curves if there are any."""
    folder = out / 'benchmarks'
    (folder / 'gpu.json').write_text(json.dumps(dict(machine=facts, stages=records), indent=2))
    parts = [f'<!-- Written by tools/gpu_report.py on {facts["date"]}. -->']
    if facts['device'] == 'cpu':
        parts.append('A rehearsal on the CPU, of tiny sizes: its figures mean nothing.')
    parts += [format_table([facts]), format_table([dict(
        stage=record['name'], result=record['status'], seconds=round(record['seconds']),
        notes='; '.join(record['notes'])) for record in records]), LEGEND]
    trainings = [record for record in records
                 if record['name'].startswith('training-') and record['results']]
    if trainings:
        draw_curves({record['name'].removeprefix('training-').upper(): out / record['name']
                     for record in trainings}, folder / 'gpu_training.png')
        parts += ['### Trainings by mim on synthetic scenes',
                  format_table([row for record in trainings for row in record['results']]),
                  '![Loss over the iterations](benchmarks/gpu_training.png)']
    for record in records:
        if record['results'] and record not in trainings:
            parts.append(f'### {record["title"]}')
            if record['command'].startswith('python tools/benchmark.py'):
                parts.append(f'`{record["command"]}`')
            parts.append(format_table(record['results']))
    (out / 'report.md').write_text('\n\n'.join(map(str, parts)) + '\n')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda', choices=('cuda', 'cpu'),
                        help='cpu rehearses with tiny sizes; default: %(default)s')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/gpu_report'), metavar='DIR',
                        help='an earlier report there is replaced; default: %(default)s')
    parser.add_argument('--minutes', type=float, default=8,
                        help='limit of all stages together; default: %(default)s')
    parser.add_argument('--stages', nargs='+', metavar='NAME',
                        help='run only these; a wrong name lists them; default: all')
    return parser.parse_args()


def prepare_folder(out: Path) -> None:
    """Makes the folder of the report, without an earlier one; the scenes of an earlier one stay."""
    if out.exists() and any(out.iterdir()) and not (out / 'report.md').exists():
        sys.exit(f'{out} holds no earlier report: expected a new folder for --out')
    for old in (out / 'benchmarks', out / 'logs', *out.glob('training-*')):
        shutil.rmtree(old, ignore_errors=True)
    (out / 'benchmarks').mkdir(parents=True)
    (out / 'report.md').write_text('')  # so that one that is broken off can be replaced


def main() -> None:
    args = parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as Ctrl-C does
    deadline = time.monotonic() + 60 * args.minutes - MIN_SECONDS  # which the report may take
    # A process that opens the GPU keeps some of its memory, so that another one looks at it.
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        facts = pool.submit(describe_machine, args.device).result()
    out = args.out.resolve()
    sizes = choose_sizes(args.device, facts.get('gpu_memory_free_gib', 0))
    stages = {stage.name: stage for stage in plan(args.device, sizes, out)}
    chosen = args.stages or list(stages)
    if unknown := set(chosen) - set(stages):
        sys.exit(f'--stages {" ".join(sorted(unknown))}: expected some of {" ".join(stages)}')
    if 'tensorrt' in chosen and 'training-fp32' not in chosen:
        sys.exit('--stages tensorrt exports what training-fp32 trains: name both')
    prepare_folder(out)
    records: list[dict[str, Any]] = []
    print(', '.join(f'{key} {value}' for key, value in facts.items()), flush=True)
    make_toy_cityscapes(out / TOY, *sizes.scenes, sizes.scene)
    try:
        for stage in (stage for name, stage in stages.items() if name in chosen):
            print(f'{stage.name} ...', end=' ', flush=True)
            records.append(run_stage(stage, args.device, out, deadline))
            print('{status}, {seconds:.0f} s'.format(**records[-1]), *records[-1]['notes'],
                  sep='; ', flush=True)
            write_report(out, facts, records)  # at once: the next stage may take the machine down
    finally:
        print(f'{out}/report.md')
    sys.exit(any(record['status'] in ('failed', 'out of time') for record in records))


if __name__ == '__main__':
    main()
