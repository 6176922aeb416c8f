"""The built wheel, alone in an environment: configs, tools and model index, through mim."""
import ast
import contextlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mmseg_bisenetv2.datasets.toy_cityscapes import make_toy_cityscapes

ROOT = Path(__file__).parents[1]
WEIGHTS = 'fcn_bisenetv2_cityscapes_train.pth'


def run(*command, **kwargs):
    result = subprocess.run(
        [str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        **kwargs)
    assert result.returncode == 0, result.stdout
    return result.stdout


def copy_sources(to):
    shutil.copytree(
        ROOT, to, symlinks=True, ignore=shutil.ignore_patterns(
            '.git', '.venv', 'data', 'work_dirs', 'build', '*.egg-info', '__pycache__'))


def make_environment(home):
    """The interpreter of an environment that has this one's packages, but for editable ones."""
    venv.create(home, with_pip=False, symlinks=True)
    site = next((home / 'lib').glob('python*/site-packages'))
    (site / 'others.pth').write_text(sysconfig.get_path('purelib') + '\n')
    return home / 'bin' / 'python'


def test_dev_names_all_that_is_imported():
    """Every module that package, tools or tests import comes with the extras lite and dev."""
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    extras = project['optional-dependencies']
    waiting = [*project['dependencies'], *extras['lite'], *extras['full'],
               *extras['dev'], *extras['mim'], *extras['png'], *extras['deploy']]
    assert 'mmseg_bisenetv2[mim,png,deploy]' in waiting
    installed = set()
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if name in installed or (requirement.marker and not requirement.marker.evaluate()):
            continue
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            waiting += importlib.metadata.requires(name) or []
        installed.add(name)
    owners = importlib.metadata.packages_distributions()
    own = {path.stem for folder in ('tests', 'tools') for path in ROOT.glob(f'{folder}/*')}
    for path in (*ROOT.glob('mmseg_bisenetv2/**/*.py'), *ROOT.glob('t*s/**/*.py')):
        for node in ast.walk(ast.parse(path.read_text())):
            names = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
                     [node.module] if isinstance(node, ast.ImportFrom) and not node.level else [])
            for module in {str(name).partition('.')[0] for name in names}:
                if module in {'mmseg_bisenetv2', *own, *sys.stdlib_module_names}:
                    continue
                assert installed & set(map(canonicalize_name, owners.get(module, ()))), (
                    path, module)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the sources."""
    source = tmp_path_factory.mktemp('source') / 'repository'
    copy_sources(source)
    out = tmp_path_factory.mktemp('wheel')
    run(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation',
        '-w', out, source)
    return next(out.glob('*.whl'))


@pytest.fixture(scope='module')
def python(wheel, tmp_path_factory):
    """The interpreter of an environment that has the wheel, and this one's other packages."""
    python = make_environment(tmp_path_factory.mktemp('environment'))
    run(sys.executable, '-m', 'pip', '--python', python, 'install', '-q', '--no-deps',
        '--ignore-installed', wheel)
    return python


def clean():
    return {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}


def test_mim_extension_holds_real_files(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {i.filename: i for i in archive.infolist()}
    for path in (*ROOT.glob('configs/**/*.py'), *ROOT.glob('tools/*.py'),
                 *ROOT.glob('weights/*'), ROOT / 'configs/metafile.yml', ROOT / 'model-index.yml'):
        info = names[f'mmseg_bisenetv2/.mim/{path.relative_to(ROOT)}']
        assert info.file_size == path.stat().st_size
        assert info.external_attr >> 28 != 0o12, f'{path} is a link'


def test_mim_search_lists_published_results(python, tmp_path):
    out = run(python, '-m', 'mim', 'search', 'mmseg_bisenetv2', '--display-width', 200,
              cwd=tmp_path, env=clean())
    for text in ('bisenetv2_fcn_cityscapes', '74.62', 'bisenetv2_fcn_fp16_cityscapes', '74.17',
                 WEIGHTS):
        assert text in out


def test_mim_download_resolves_the_config(python, tmp_path):
    (tmp_path / WEIGHTS).write_bytes(b'already here: nothing is downloaded')
    run(python, '-m', 'mim', 'download', 'mmseg_bisenetv2', '--config',
        'bisenetv2_fcn_cityscapes', '--dest', tmp_path, cwd=tmp_path, env=clean())
    text = (tmp_path / 'bisenetv2_fcn_cityscapes.py').read_text()
    assert "type='mmseg_bisenetv2.BiSeNetV2'" in text
    assert '_base_' not in text


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    """A folder that holds nothing but the data of the toy config, as that names them."""
    folder = tmp_path_factory.mktemp('empty')
    make_toy_cityscapes(folder / 'data/toy_cityscapes', num_train=4, num_val=2, size=(64, 128))
    return folder


def in_process(*loaders):
    return [f'{loader}_dataloader.{option}' for loader in loaders
            for option in ('num_workers=0', 'persistent_workers=False')]


def test_mim_trains_and_tests_a_config_by_its_name(python, toy):
    short = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2',
             'default_hooks.checkpoint.interval=2']
    out = run(python, '-m', 'mim', 'train', 'mmseg_bisenetv2', 'bisenetv2_fcn_toy-cityscapes.py',
              '--work-dir', 'work', '--cfg-options', *short, *in_process('train', 'val'),
              cwd=toy, env=clean())
    assert str(python.parents[1]) in out.partition('Training command is')[2].partition('\n')[0]
    assert 'mIoU' in out
    out = run(python, '-m', 'mim', 'test', 'mmseg_bisenetv2', 'bisenetv2_fcn_toy-cityscapes.py',
              '--checkpoint', 'work/iter_2.pth', '--cfg-options', *in_process('test'),
              cwd=toy, env=clean())
    assert 'mIoU' in out
    assert sorted(path.name for path in toy.iterdir()) == ['data', 'work', 'work_dirs']


def test_new_config_is_trained_by_mmsegmentation_from_any_folder(python, tmp_path):
    toy = make_toy_cityscapes(tmp_path / 'toy', num_train=4, num_val=2, size=(64, 128))
    for old, new, suffix in (('leftImg8bit', 'img_dir', '_leftImg8bit.png'),
                             ('gtFine', 'ann_dir', '_gtFine_labelTrainIds.png')):
        for path in toy.rglob(f'*{suffix}'):
            split = path.relative_to(toy / old).parts[0]
            (tmp_path / 'data' / new / split).mkdir(parents=True, exist_ok=True)
            path.rename(tmp_path / 'data' / new / split / path.name.replace(suffix, '.png'))
    (tmp_path / 'classes.txt').write_text('\n'.join(f'class {i}' for i in range(19)))
    run(python, '-m', 'mim', 'run', 'mmseg_bisenetv2', 'new_config', 'my.py', '--data', 'data',
        '--classes', 'classes.txt', cwd=tmp_path, env=clean())
    text = (tmp_path / 'my.py').read_text()
    (tmp_path / 'my.py').write_text(text.replace('max_iters = 40000', 'max_iters = 2'))
    (tmp_path / 'elsewhere').mkdir()
    out = run(python, '-m', 'mim', 'train', 'mmseg', tmp_path / 'my.py', '--cfg-options',
              'train_dataloader.batch_size=2', *in_process('train', 'val'),
              cwd=tmp_path / 'elsewhere', env=clean())
    assert 'mIoU' in out
    assert (tmp_path / 'elsewhere/work_dirs/my/iter_2.pth').exists()
    assert not (tmp_path / 'elsewhere/data').exists()


def test_clone_does_not_hide_the_package_from_a_script_beside_it(tmp_path):
    clone = tmp_path / 'mmseg_bisenetv2'
    copy_sources(clone)
    python = make_environment(tmp_path / 'environment')
    run(sys.executable, '-m', 'pip', '--python', python, 'install', '-q', '--no-deps',
        '--ignore-installed', '--no-build-isolation', '-e', clone)
    found = run(python, '-c', 'import mmseg_bisenetv2; print(mmseg_bisenetv2.__file__)',
                cwd=tmp_path, env=clean())
    assert found.strip() == str(clone / 'mmseg_bisenetv2/__init__.py')


@pytest.mark.parametrize('version', ['2.7.18', '3.10.13', '3.14.0'])
def test_make_names_the_python_that_it_needs(version, tmp_path):
    for name in ('Makefile', 'pyproject.toml', 'constraints.txt'):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / 'python'
    numbers = tuple(map(int, version.split('.')))
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'import sys; "
                      f"sys.version_info = {numbers}; exec(sys.argv[2])' \"$@\"\n")
    python.chmod(0o755)
    result = subprocess.run(['make', '-C', tmp_path, f'PYTHON={python}', 'demo'], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert result.returncode
    assert (f'Python 3.11 to 3.13 is needed, found {version}: make PYTHON=python3.11'
            in result.stdout)
    assert not (tmp_path / '.venv').exists()
