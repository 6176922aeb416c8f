"""Tries the package with other versions of what it needs: ``make versions``.

    python tests/versions.py                             # every row whose Python is on the PATH
    python tests/versions.py --rows 'NumPy 2.0' onedl
    python tests/versions.py --python 3.12=/opt/python3.12/bin/python --torch 2.14.1
    python tests/versions.py --table                     # tries nothing, prints what was found

Each row gets an environment of its own, into which the package is installed as a wheel, with the
versions of constraints.txt except for those that the row names. There a short suite runs: import,
20 iterations of training on toy scenes, test, Predictor against MMSegmentation's inference, and
exports, which are compared with PyTorch. What it found is kept in work_dirs/versions; the table in
docs/install.md is printed from that. The exit code is 1 if a row fails.
"""
import argparse
import dataclasses
import importlib.metadata
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOUND = ROOT / 'work_dirs/versions'
# Columns of the table, and the packages of which one provides them.
COLUMNS = {
    'PyTorch': ('torch', ),
    'NumPy': ('numpy', ),
    'OpenCV': ('opencv-python', 'opencv-python-headless'),
    'MMEngine': ('mmengine', 'onedl-mmengine'),
    'MMCV': ('mmcv-lite', 'onedl-mmcv'),
    'MMSegmentation': ('mmsegmentation', 'onedl-mmsegmentation')}


@dataclasses.dataclass(frozen=True)
class Row:
    """An environment.

    Args:
        python: Its Python, as '3.12'.
        requirements: What replaces the versions of constraints.txt.
        extra: The extra that brings MMEngine, MMCV and MMSegmentation.
        free: Further packages whose version is not that of constraints.txt.
        headless: Whether OpenCV is then replaced by its build without windows.
    """

    python: str = '3.11'
    requirements: tuple[str, ...] = ()
    extra: str = 'lite'
    free: tuple[str, ...] = ()
    headless: bool = False


ROWS = {
    'Python 3.11': Row(),
    'Python 3.12': Row('3.12'),
    'Python 3.13': Row('3.13'),
    'PyTorch 2.7': Row(requirements=('torch==2.7.*', )),
    'newest PyTorch': Row(requirements=('torch', )),
    'NumPy 2.0': Row(requirements=('numpy==2.0.*', ), free=(
        'contourpy', 'imagecodecs', 'matplotlib', 'ml_dtypes', 'nncf', 'onnx', 'onnxruntime',
        'opencv-python', 'openvino', 'pandas', 'scikit-learn', 'scipy')),
    'OpenCV 4': Row(requirements=('opencv-python==4.*', )),
    'OpenCV headless': Row(headless=True),
    'pre-release of MMEngine': Row(requirements=('mmengine>=0.11.0rc0', )),
    'onedl': Row(extra='onedl', free=('pandas', )),
}
FIRST = 'Python 3.11'  # Its environment is kept, for the others to begin with.


def home(name: str) -> Path:
    """The folder of a row."""
    return FOUND / name.lower().replace(' ', '-')


def find_python(version: str, named: dict[str, str]) -> str | None:
    """The interpreter of this version that was named or is on the PATH; None if there is none."""
    path = named.get(version) or shutil.which(f'python{version}')
    if path:
        code = 'import sys; print("%d.%d" % sys.version_info[:2])'
        found = subprocess.run([path, '-c', code], capture_output=True, text=True)
        if found.stdout.strip() == version:
            return path
    return None


def constraints(row: Row) -> str:
    """constraints.txt without the packages that a row leaves to pip."""
    free = {canonical(re.split(r'[=<>!~]', text)[0]) for text in (*row.requirements, *row.free)}
    lines = (ROOT / 'constraints.txt').read_text().splitlines()
    return '\n'.join(line for line in lines if canonical(line.split('==')[0]) not in free)


def canonical(name: str) -> str:
    """A package's name as the index compares names."""
    return re.sub(r'[-_.]+', '-', name).lower()


def build_wheel() -> Path:
    """Builds the wheel of this clone, which every row installs."""
    folder = FOUND / 'wheel'
    shutil.rmtree(folder, ignore_errors=True)
    run_pip(sys.executable, 'wheel', '--no-deps', '-w', str(folder), str(ROOT))
    return next(folder.glob('*.whl'))


def run_pip(python: str, *arguments: str) -> None:
    """Runs the pip of an environment.

    Raises:
        CalledProcessError: If it fails; with its output.
    """
    subprocess.run([python, '-m', 'pip', *arguments], check=True, env=clean(), text=True,
                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def install(row: Row, python: str, folder: Path, wheel: Path) -> str:
    """Makes the environment of a row.

    It begins as a copy of the first row's, if that is there and of the same Python, which saves
    gigabytes and minutes; pip then changes what the row names.

    Returns:
        Its interpreter.

    Raises:
        CalledProcessError: If pip finds no set of versions, or cannot install it.
    """
    first = home(FIRST) / 'environment'
    copied = first != folder and first.exists() and row.python == ROWS[FIRST].python
    if copied:
        shutil.copytree(first, folder, symlinks=True, copy_function=os.link)
    else:
        subprocess.run([python, '-m', 'venv', folder], check=True)
    environment = str(folder / 'bin/python')
    if copied:  # pip would take a wheel of the same version for the same wheel.
        others = ('mmcv-lite', 'mmengine', 'mmsegmentation') if row.extra == 'onedl' else ()
        run_pip(environment, 'uninstall', '-y', 'mmseg_bisenetv2', *others)
    limits = folder.parent / 'constraints.txt'
    limits.write_text(constraints(row) + '\n')
    run_pip(environment, 'install', '--upgrade', '--no-compile', '-c', str(limits),
            *row.requirements, f'{wheel}[{row.extra},deploy]')
    if row.headless:  # MMEngine and MMCV ask for the other build.
        version = installed_version(environment, 'opencv-python')
        run_pip(environment, 'uninstall', '-y', 'opencv-python')
        run_pip(environment, 'install', '--no-deps', f'opencv-python-headless=={version}')
    return environment


def installed_version(python: str, name: str) -> str:
    """The version of a package in another environment."""
    code = f'import importlib.metadata; print(importlib.metadata.version({name!r}))'
    return subprocess.run([python, '-c', code], check=True, capture_output=True,
                          text=True).stdout.strip()


def clean() -> dict[str, str]:
    """The variables of this process, without those that lead Python to this clone."""
    variables = {key: value for key, value in os.environ.items()
                 if key not in ('PYTHONPATH', 'PYTHONDONTWRITEBYTECODE')}
    return dict(variables, PYTHONWARNINGS='ignore')


def try_row(name: str, python: str, extra: tuple[str, ...], wheel: Path) -> dict[str, Any]:
    """Installs a row, runs the suite in it, and says what came of it."""
    row = ROWS[name]
    if extra and not any(text.startswith('torch') for text in row.requirements):
        row = dataclasses.replace(row, requirements=(*extra, *row.requirements))
    folder, log = home(name) / 'environment', home(name) / 'log.txt'
    shutil.rmtree(home(name), ignore_errors=True)
    suite = home(name) / 'suite'
    suite.mkdir(parents=True)
    start = time.monotonic()
    try:
        environment = install(row, python, folder, wheel)
        shutil.copy(__file__, suite / 'suite.py')  # Beside no clone that could be imported instead.
        result = subprocess.run([environment, 'suite.py', '--suite'], cwd=suite, text=True,
                                env=clean(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        log.write_text(result.stdout)
        found = json.loads((suite / 'found.json').read_text())
    except subprocess.CalledProcessError as error:
        log.write_text(error.stdout or '')
        last = [line for line in (error.stdout or '').splitlines() if line.startswith('ERROR')]
        found = dict(failed='installation', error=last[-1] if last else str(error))
    if name != FIRST:
        shutil.rmtree(folder, ignore_errors=True)
    return dict(found, minutes=round((time.monotonic() - start) / 60, 1))


def table() -> str:
    """The Markdown table of all rows: what was installed, and what happened."""
    heads = ['row', 'Python', *COLUMNS, 'result']
    lines = [heads, ['---'] * len(heads)]
    for name, row in ROWS.items():
        file = home(name) / 'found.json'
        found = json.loads(file.read_text()) if file.exists() else None
        if found is None:
            result = 'not tried here'
        elif found['failed']:
            result = f"fails in {found['failed']}: {found['error']}".replace('|', '\\|')
        else:
            result = 'works'
        versions = (found or {}).get('versions', {})
        lines.append([name, versions.get('Python', row.python),
                      *(versions.get(column, '') for column in COLUMNS), result])
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


# What follows runs inside of an environment, where only the package and its dependencies are.


def run_suite() -> None:
    """Runs the steps in the current folder, and writes found.json."""
    found: dict[str, Any] = dict(versions=installed_versions(), seconds={})
    steps: dict[str, Callable[[], None]] = {
        'import': try_import, 'train': try_training, 'test': try_test, 'Predictor': try_predictor,
        'ONNX': partial(export, 'out.onnx'), 'OpenVINO': partial(export, 'out.xml'),
        # The bound is low, since a network is far from trained after 20 iterations.
        'INT8': partial(export, 'int8.xml', '--precision', 'int8', '--min-agreement', '90',
                        '--calibrate', 'data/toy_cityscapes/leftImg8bit/train')}
    for step, function in steps.items():
        found.update(failed=step, error='the interpreter was killed')  # Until the step has ended.
        Path('found.json').write_text(json.dumps(found, indent=2))
        start = time.monotonic()
        try:
            function()
        except BaseException as error:
            traceback.print_exc()
            found['error'] = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
            break
        finally:
            found['seconds'][step] = round(time.monotonic() - start, 1)
    else:
        found.update(failed=None, error='')
    Path('found.json').write_text(json.dumps(found, indent=2))


def installed_versions() -> dict[str, str]:
    """What the columns of the table show."""
    versions = {'Python': '.'.join(map(str, sys.version_info[:3]))}
    for column, names in COLUMNS.items():
        for name in names:
            try:
                version = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
            own = name.startswith('onedl') or name.endswith(('lite', 'headless'))
            versions[column] = f'{name} {version}' if own else version
    return versions


def load_config() -> Any:
    """The config of the demo, as the wheel carries it, for a training of 20 iterations."""
    from mmengine.config import Config

    import mmseg_bisenetv2
    config = Config.fromfile(
        mmseg_bisenetv2.MIM_FOLDER / 'configs/bisenetv2_fcn_toy-cityscapes.py')
    config.work_dir = 'work'
    config.merge_from_dict({
        'train_cfg.max_iters': 20, 'train_cfg.val_interval': 20,
        'default_hooks.checkpoint.interval': 20, 'train_dataloader.batch_size': 2})
    return config


def try_import() -> None:
    """Imports the package, and MMSegmentation after it."""
    import mmseg_bisenetv2

    import mmseg.apis
    assert Path(mmseg_bisenetv2.__file__).is_relative_to(sys.prefix), mmseg_bisenetv2.__file__
    assert Path(mmseg.apis.__file__).is_relative_to(sys.prefix), mmseg.apis.__file__


def try_training() -> None:
    """Trains 20 iterations with two validations and a checkpoint."""
    import torch
    from mmengine.runner import Runner

    from mmseg_bisenetv2.datasets.toy_cityscapes import make_toy_cityscapes
    make_toy_cityscapes('data/toy_cityscapes', num_train=8, num_val=2, size=(128, 256))
    runner = Runner.from_cfg(load_config())
    before = [value.clone() for value in runner.model.parameters()]
    runner.train()
    assert Path('work/iter_20.pth').exists()
    after = list(runner.model.parameters())
    assert all(torch.isfinite(value).all() for value in after)
    assert sum(not torch.equal(*pair) for pair in zip(before, after, strict=True)) > 100


def try_test() -> None:
    """Tests the checkpoint."""
    from mmengine.runner import Runner
    config = load_config()
    config.load_from = 'work/iter_20.pth'
    config.experiment_name = 'test'
    score = Runner.from_cfg(config).test()['mIoU']
    assert 0 < score < 100, score


def try_predictor() -> None:
    """Predicts, and compares with MMSegmentation's own way."""
    import numpy as np

    from mmseg_bisenetv2.deploy import Predictor

    from mmseg.apis import inference_model, init_model
    picture = val_pictures()[0]
    labels = Predictor(load_config(), 'work/iter_20.pth', precision='fp32')(picture)
    model = init_model(load_config(), 'work/iter_20.pth', device='cpu')
    expected = inference_model(model, picture).pred_sem_seg.data[0].numpy()
    assert len(np.unique(labels)) > 1
    assert labels.shape == expected.shape, labels.shape
    agreement = (labels == expected).mean()
    assert agreement > 0.999, f'{agreement:.2%} of the labels are those of MMSegmentation'


def val_pictures() -> list[str]:
    """The pictures that were not trained on."""
    return sorted(str(path) for path in Path('data').rglob('leftImg8bit/val/**/*.png'))


def export(*arguments: str) -> None:
    """Runs tools/export.py, which runs the file that it wrote and compares with PyTorch."""
    import mmseg_bisenetv2
    load_config().dump('config.py')
    tool = str(mmseg_bisenetv2.MIM_FOLDER / 'tools/export.py')
    sys.path.insert(0, str(Path(tool).parent))
    sys.argv = [tool, 'config.py', 'work/iter_20.pth', *arguments, '--images', *val_pictures()]
    runpy.run_path(tool, run_name='__main__')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rows', nargs='+', choices=list(ROWS), default=list(ROWS),
                        metavar='ROW', help=f'of these: {", ".join(ROWS)}')
    parser.add_argument('--python', nargs='+', default=[], metavar='3.12=PATH',
                        help='interpreters that are not on the PATH as python3.12 and so on')
    parser.add_argument('--torch', metavar='VERSION',
                        help='of PyTorch, for the rows that do not name one')
    parser.add_argument('--table', action='store_true', help='only print what was found')
    parser.add_argument('--suite', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.suite:
        return run_suite()
    FOUND.mkdir(parents=True, exist_ok=True)
    named = dict(text.split('=', 1) for text in args.python)
    wheel = None if args.table else build_wheel()
    failed = False
    for name in () if args.table else args.rows:
        python = find_python(ROWS[name].python, named)
        if python is None:
            print(f'{name}: there is no Python {ROWS[name].python}; --python names one', flush=True)
            continue
        assert wheel is not None
        extra = (f'torch=={args.torch}', ) if args.torch else ()
        found = try_row(name, python, extra, wheel)
        (home(name) / 'found.json').write_text(json.dumps(found, indent=2))
        failed |= bool(found['failed'])
        print(f'{name}: {found["failed"] or "works"} {found.get("error", "")} '
              f'({found["minutes"]} minutes)', flush=True)
    print(f'\n{table()}')
    sys.exit(int(failed))


if __name__ == '__main__':
    main()
