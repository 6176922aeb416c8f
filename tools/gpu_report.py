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
import functools
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
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from matplotlib.figure import Figure

from mmseg_bisenetv2.datasets.inspection import describe_installation
from mmseg_bisenetv2.datasets.toy_cityscapes import make_toy_cityscapes

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = dict(fp32='bisenetv2_fcn_cityscapes.py', bf16='bisenetv2_fcn_bf16_cityscapes.py',
               fp16='bisenetv2_fcn_fp16_cityscapes.py')
TRTEXEC = '/usr/src/tensorrt/bin/trtexec'  # NVIDIA's packages do not put it on the PATH.
TESTS = 'gpu and not gpus and not gpu_report and not without_a_gpu'
MIN_SECONDS = 5  # seconds that a stage needs to be worth its start
COLUMNS = dict(  # keys of the benchmarks' results, and their heads in the report
    mmseg_ms='MMSegmentation, ms', ours_ms='ours, ms', end_to_end_ms='end to end, ms',
    network_ms='network, ms', fps='pictures a second', ratio='times as fast (quartiles)',
    mmseg_peak_mb='memory of MMSegmentation, MB', ours_peak_mb='of ours', peak_mb='memory, MB',
    agreement='same labels as FP32, %', first_call_s='first call, s',
    logit_difference='largest difference of logits, in their deviations')


@dataclass
class Sizes:
    """How large everything is, (height, width) and numbers."""

    batch: int
    crop: tuple[int, int] = (1024, 1024)
    frame: tuple[int, int] = (1024, 2048)
    frames: int = 16
    compiled_frames: int = 16
    pairs: int = 9
    toy: tuple[int, int, tuple[int, int]] = (32, 4, (512, 1024))  # train, val, size
    training_batch: int = 16
    training_crop: tuple[int, int] = (512, 1024)
    iterations: int = 200
    workers: int = 8
    seconds: Callable[[float], float] = lambda seconds: seconds  # a stage's limit on an H100


TINY = Sizes(batch=2, crop=(32, 64), frame=(64, 128), frames=2, compiled_frames=1, pairs=1,
             toy=(4, 1, (64, 128)), training_batch=2, training_crop=(64, 128), iterations=2,
             workers=1, seconds=lambda seconds: 20 * seconds)


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
    """What a stage left is not what it should be."""


def describe_machine(device: str) -> tuple[dict[str, Any], str]:
    """What the figures depend on, and in a sentence why the device cannot be used, or ''.

    To be called in a process of its own, since it opens the GPU.
    """
    processor = re.search(r'model name\s*: (.*)', Path('/proc/cpuinfo').read_text())
    failed, commit = subprocess.getstatusoutput(f'git -C "{ROOT}" describe --always --dirty')
    facts = dict(
        device=device, commit='unknown' if failed else commit, date=time.strftime('%Y-%m-%d'),
        processor=processor[1] if processor else 'unknown', cores=len(os.sched_getaffinity(0)),
        system=platform.platform(), python=platform.python_version(),
        **describe_installation()[0])
    if device == 'cpu':
        return facts, ''
    if not torch.cuda.is_available():
        return facts, explain_missing_gpu()
    try:
        torch.ones(8, 8, device=device).matmul(torch.ones(8, 8, device=device)).sum().item()
        free, total = torch.cuda.mem_get_info()
    except RuntimeError as error:
        return facts, f'The GPU does not compute with this PyTorch: {last_line(str(error))}'
    gpu = torch.cuda.get_device_properties(0)
    for name in ('triton', 'tensorrt', 'onnxruntime-gpu'):
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    facts.update(
        gpu=gpu.name, gpu_memory_gib=round(total / 2 ** 30, 1),
        gpu_memory_free_gib=round(free / 2 ** 30, 1), capability=f'{gpu.major}.{gpu.minor}',
        **ask_driver(str(gpu.uuid)), cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version(),
        tf32='convolutions ' + ('on' if torch.backends.cudnn.allow_tf32 else 'off')
        + ', matrix products ' + ('on' if torch.backends.cuda.matmul.allow_tf32 else 'off')
        + ", PyTorch's defaults",
        cudnn_benchmark="on in training and evaluation, as in MMSegmentation's default_runtime.py; "
                        'off in prediction')
    return facts, ''


def explain_missing_gpu() -> str:
    """One sentence on why PyTorch finds no GPU, and the remedy."""
    if torch.version.cuda is None:
        return (f'PyTorch {torch.__version__} is the build for CPUs: install that for your CUDA '
                '(https://pytorch.org), or rehearse with --device cpu')
    if not shutil.which('nvidia-smi'):
        return ('PyTorch finds no GPU, and there is no nvidia-smi: install the NVIDIA driver, or '
                'rehearse with --device cpu')
    return (f'There is nvidia-smi, but PyTorch {torch.__version__} finds no GPU: its driver is '
            f'older than CUDA {torch.version.cuda} needs, or CUDA_VISIBLE_DEVICES hides it')


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
            sys.executable, '-m', 'pytest', str(ROOT / 'tests'), '-c', str(ROOT / 'pyproject.toml'),
            '-q', '-p', 'no:cacheprovider', '-k', TESTS, f'--junitxml={out / "tests.xml"}'],
        lambda _: read_tests(out / 'tests.xml', device), sizes.seconds(150),
        missing='' if (ROOT / 'tests').exists() else 'the tests are in the clone only')]
    for precision, config in CONFIGS.items():
        folder = out / f'training-{precision}'
        stages.append(Stage(
            folder.name, f'Training by `{config}`',
            functools.partial(training_command, device, precision, sizes, folder),
            functools.partial(read_training, folder, sizes), sizes.seconds(90),
            sizes.training_batch))

    def benchmark(name: str, title: str, seconds: float, options: Callable[[int], str],
                  batch: int = 1) -> None:
        command, file = name.split('-')[0], out / 'benchmarks' / f'gpu_{name}.json'
        stages.append(Stage(
            name, title, lambda number: [
                sys.executable, str(ROOT / 'tools/benchmark.py'), command, '--device', device,
                *options(number).split(), '--json', str(file)],
            lambda _: json.loads(file.read_text())['results'], sizes.seconds(seconds), batch))

    (height, width), (crop_height, crop_width), pairs = sizes.frame, sizes.crop, sizes.pairs
    size, crop = f'--size {width}x{height}', f'--crop {crop_width}x{crop_height}'
    for amp in ('none', 'bfloat16'):
        options = f'{crop} --amp {amp} --pairs {pairs}'
        benchmark(f'train-{amp}', f'A training step, --amp {amp}', 60,
                  functools.partial('--batch {1} {0}'.format, options), sizes.batch)
    benchmark('inference', 'From a picture to its labels', 150, lambda batch: (
        f'--batch {" ".join(map(str, sorted({1, batch})))} {size} --pairs {2 * pairs}'),
        sizes.frames)
    benchmark('compile', 'CUDA graph and torch.compile against eager', 120, lambda batch: (
        f'--batch {" ".join(map(str, sorted({1, batch})))} {size} --pairs {4 * pairs} '
        f'--precision {"fp32" if device == "cpu" else "fp16"}'), sizes.compiled_frames)
    benchmark('loss', 'The losses of five heads', 40, lambda batch: (
        f'--batch {batch} {crop} --pairs {pairs}'), sizes.batch)
    benchmark('eval', 'Evaluation, from PNG to mIoU', 45, lambda _: f'{size} --pairs {pairs}')
    benchmark('data', 'Reading pictures, one core of the processor', 45, lambda _: (
        f'{size} {crop} --pairs {min(3, pairs)}'))
    stages.append(tensorrt_stage(sizes, out))
    return stages


def training_command(device: str, precision: str, sizes: Sizes, folder: Path, batch: int
                     ) -> list[str]:
    """`mim train` with a config as it is, but for data, size and length."""
    toy, crop = toy_folder(folder.parent), '({},{})'.format(*sizes.training_crop)
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
    config = ROOT / 'configs' / CONFIGS[precision]
    return [sys.executable, '-m', 'mim', 'train', 'mmseg', str(config),
            '--work-dir', str(folder), '--cfg-options',
            *(f'{key}={value}' for key, value in options.items())]


def toy_folder(out: Path) -> Path:
    """The folder of the toy scenes."""
    return out / 'toy_cityscapes'


def tensorrt_stage(sizes: Sizes, out: Path) -> Stage:
    """Exports the trained network, has trtexec build its engine in FP16, and times that."""
    trtexec = shutil.which('trtexec') or (TRTEXEC if Path(TRTEXEC).exists() else '')
    weights, onnx = out / 'training-fp32' / f'iter_{sizes.iterations}.pth', out / 'bisenetv2.onnx'
    config = ROOT / 'configs' / CONFIGS['fp32']
    export = [sys.executable, str(ROOT / 'tools/export.py'), str(config), str(weights), str(onnx),
              '--size', '{1}x{0}'.format(*sizes.frame)]
    build = [trtexec, f'--onnx={onnx}', '--fp16', f'--saveEngine={onnx.with_suffix(".engine")}']
    return Stage(
        'tensorrt', 'TensorRT, FP16, one picture at a time',
        lambda _: ['sh', '-c', f'{shlex.join(export)} && {shlex.join(build)}'],
        read_trtexec, sizes.seconds(150),
        missing='' if trtexec else f'there is no trtexec on the PATH and no {TRTEXEC}')


def read_tests(report: Path, device: str) -> list[dict[str, Any]]:
    """How many tests passed; on a GPU none of them may have been skipped for want of one."""
    cases = ElementTree.parse(report).getroot().findall('.//testcase')
    skipped = [case for case in cases if case.find('skipped') is not None]
    bad = [case.get('name', '') for case in cases
           if case.find('failure') is not None or case.find('error') is not None]
    if bad:
        raise StageError(f'failed: {", ".join(bad)}')
    unseen = [case.get('name', '') for case in skipped
              if 'needs a GPU' in case.find('skipped').get('message', '')]  # type: ignore[union-attr]
    if device != 'cpu' and unseen:
        raise StageError(f'skipped for want of a GPU: {", ".join(unseen)}')
    if not cases:
        raise StageError('no test was found')
    return [dict(passed=len(cases) - len(skipped), skipped=len(skipped))]


def read_training(folder: Path, sizes: Sizes, printed: str) -> list[dict[str, Any]]:
    """The curve and the last figures of a training.

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
    skipped = re.findall(r'AMP skipped (\d+) steps', printed)
    return [dict(
        setting='{0} x {2}x{1}'.format(batch, *sizes.training_crop),
        iterations=sizes.iterations, first_loss=steps[0]['loss'], last_loss=steps[-1]['loss'],
        miou=next((row['mIoU'] for row in rows if 'mIoU' in row), None),
        images_per_s=batch / statistics.median(row['time'] for row in later),
        data_share=statistics.median(row['data_time'] / row['time'] for row in later),
        peak_mib=max(row.get('memory', 0) for row in steps) or None,
        skipped_steps=sum(map(int, skipped)),
        curve=[(row['step'], row['loss']) for row in steps])]


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
        Its name, title, command, status ('passed', 'failed', 'out of time' or 'left out'), seconds,
        notes and results.
    """
    record: dict[str, Any] = dict(
        name=stage.name, title=stage.title, status='left out', seconds=0.0, notes=[], results=[])
    if stage.missing:
        record['notes'].append(stage.missing)
        return record
    begin, batch = time.monotonic(), stage.batch
    end = min(begin + stage.seconds, deadline)
    log = out / 'logs' / f'{stage.name}.log'
    while True:
        left = end - time.monotonic()
        if left < MIN_SECONDS:
            record['status'] = 'out of time'
            record['notes'].append('no time was left for it')
            break
        command = stage.command(batch)
        record['command'] = command
        code, printed = run_command(command, device, log, left)
        if code is None:
            record['status'] = 'out of time'
            record['notes'].append(f'ended after {left:.0f} s; its last line: {last_line(printed)}')
        elif code and batch > 1 and re.search('out of memory|ALLOC_FAILED', printed):
            record['notes'].append(f'out of memory with a batch of {batch}: tried {batch // 2}')
            batch //= 2
            continue
        else:
            try:  # Of failed tests the names say more than the exit code.
                results = stage.read(printed) if not code or stage.name == 'tests' else []
                record.update(status='failed' if code else 'passed', results=results)
                if code:
                    record['notes'].append(f'exit code {code}: {find_reason(printed)}')
            except (StageError, OSError, ValueError, KeyError, ElementTree.ParseError) as error:
                record['status'] = 'failed'
                record['notes'].append(str(error) or type(error).__name__)
        break
    record['seconds'] = time.monotonic() - begin
    return record


def run_command(command: list[str], device: str, log: Path, seconds: float
                ) -> tuple[int | None, str]:
    """Exit code, None if the time was over, and what was printed, which the log keeps.

    The processes that the command started end with it.
    """
    hidden = {'CUDA_VISIBLE_DEVICES': ''} if device == 'cpu' else {}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('w') as file:
        file.write(shlex.join(command) + '\n')
        file.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True, env=os.environ | hidden | dict(PYTHONWARNINGS='ignore'))
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
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
    """The last error that a command printed, or its last line.

    mim's own says no more than that the training failed.
    """
    errors = re.findall(r'^(?!subprocess\.)[\w.]*(?:Error|Exception|Exit): .+', printed,
                        re.MULTILINE)
    return last_line(errors[-1] if errors else printed)


def write_report(out: Path, facts: dict[str, Any], records: list[dict[str, Any]]) -> None:
    """Writes report.md and benchmarks/gpu.json, and the curves if there are any."""
    folder = out / 'benchmarks'
    shown = [{**record, 'command': shown_command(record, out)} for record in records]
    (folder / 'gpu.json').write_text(json.dumps(dict(machine=facts, stages=shown), indent=2))
    curves = {record['name'].removeprefix('training-'): record['results'][0]['curve']
              for record in records if record['name'].startswith('training-') and record['results']}
    if curves:
        draw_curves(curves, folder / 'gpu_training.png')
    parts = [f'<!-- Written by tools/gpu_report.py on {facts["date"]}. -->', table(
        ['what', 'value'], [[key.replace('_', ' '), value] for key, value in facts.items()])]
    if facts['device'] == 'cpu':
        parts.insert(1, 'A rehearsal on the CPU, of tiny sizes: its figures mean nothing.')
    parts.append(table(['stage', 'result', 'seconds', 'notes'], [
        [record['name'], record['status'], f'{record["seconds"]:.0f}', '; '.join(record['notes'])]
        for record in records]))
    trained = False
    for record in shown:
        training = record['name'].startswith('training-')
        if not record['results'] or (training and trained):
            continue
        trained |= training
        parts.append('### ' + (
            'Trainings by mim on synthetic scenes' if training else record['title']))
        if record['command'].startswith('python tools/benchmark.py'):
            parts.append(f'`{record["command"]}`')
        parts.append(training_table(shown) if training else results_table(record['results']))
        if training:
            parts.append('![Loss over the iterations](benchmarks/gpu_training.png)')
    (out / 'report.md').write_text('\n\n'.join(parts) + '\n')


def shown_command(record: dict[str, Any], out: Path) -> str:
    """A command as somebody else would type it."""
    text = shlex.join(record.get('command', []))
    for path, short in ((sys.executable, 'python'), (f'{out}/benchmarks/', ''), (f'{out}/', ''),
                        (f'{ROOT}/', '')):
        text = text.replace(path, short)
    return text


def training_table(records: list[dict[str, Any]]) -> str:
    """One row for each training."""
    rows = []
    for record in records:
        if record['name'].startswith('training-') and record['results']:
            row = record['results'][0]
            rows.append([record['title'].removeprefix('Training by '), row['setting'], *map(
                format_value, (row['iterations'], row['first_loss'], row['last_loss'], row['miou'],
                               row['images_per_s'], 100 * row['data_share'], row['peak_mib'],
                               row['skipped_steps']))])
    return table(['config', 'batch', 'iterations', 'first loss', 'last loss', 'mIoU',
                  'images a second', 'waits for data, %', 'memory, MiB', 'skipped steps'], rows)


def results_table(results: list[dict[str, Any]]) -> str:
    """The figures of a benchmark, those that the report has a column for."""
    if 'setting' not in results[0]:
        return ', '.join(f'{value} {key}' for key, value in results[0].items())
    keys = [key for key in COLUMNS if any(row.get(key) is not None for row in results)]
    rows = []
    for row in results:
        cells = {key: format_value(row.get(key)) for key in keys}
        if 'ratio_quartiles' in row:
            cells['ratio'] += ' ({} to {})'.format(*map(format_value, row['ratio_quartiles']))
        rows.append([row['setting'], *cells.values()])
    return table(['what', *(COLUMNS[key] for key in keys)], rows)


def format_value(value: Any) -> str:
    return '' if value is None else f'{value:.4g}' if isinstance(value, float) else str(value)


def table(head: list[str], rows: list[list[Any]]) -> str:
    """In Markdown."""
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(str(cell).replace("|", "/") for cell in line)} |'
                     for line in lines)


def draw_curves(curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Draws the losses of all trainings over their iterations."""
    figure = Figure(figsize=(7, 4), layout='constrained')
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(*zip(*curve, strict=True), marker='.', label=name.upper())
    axes.set(xlabel='iteration', ylabel='training loss (sum of five heads)', ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=120)


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


def main() -> None:
    args = parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as Ctrl-C does
    deadline = time.monotonic() + 60 * args.minutes - MIN_SECONDS  # which the report may take
    # A process that opens the GPU keeps some of its memory, so that another one looks at it.
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        facts, problem = pool.submit(describe_machine, args.device).result()
    if problem:
        sys.exit(problem)
    out = args.out.resolve()
    sizes = choose_sizes(args.device, facts.get('gpu_memory_free_gib', 0))
    stages = plan(args.device, sizes, out)
    names = [stage.name for stage in stages]
    if unknown := set(args.stages or ()) - set(names):
        sys.exit(f'--stages {" ".join(sorted(unknown))}: expected some of {" ".join(names)}')
    if 'tensorrt' in (args.stages or ()) and 'training-fp32' not in args.stages:
        sys.exit('--stages tensorrt exports what training-fp32 trains: name both')
    if out.exists() and any(out.iterdir()) and not (out / 'report.md').exists():
        sys.exit(f'{out} holds no earlier report: expected a new folder for --out')
    trainings = [name for name in names if name.startswith('training-')]
    for old in ('benchmarks', 'logs', *trainings, 'tests.xml'):
        path = out / old
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (out / 'benchmarks').mkdir(parents=True)
    write_report(out, facts, [])  # at once, so that a report that was broken off can be replaced
    print(', '.join(f'{key} {value}' for key, value in facts.items()), flush=True)
    make_toy_cityscapes(toy_folder(out), *sizes.toy)
    records: list[dict[str, Any]] = []
    try:
        for stage in stages:
            if args.stages and stage.name not in args.stages:
                continue
            print(f'{stage.name} ...', end=' ', flush=True)
            records.append(run_stage(stage, args.device, out, deadline))
            print('{status}, {seconds:.0f} s'.format(**records[-1]), *records[-1]['notes'],
                  sep='; ', flush=True)
            write_report(out, facts, records)  # at once: the next stage may take the machine down
    finally:
        write_report(out, facts, records)
        print(f'{out}/report.md')
    sys.exit(any(record['status'] in ('failed', 'out of time') for record in records))


if __name__ == '__main__':
    main()
