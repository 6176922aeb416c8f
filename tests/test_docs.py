"""README, CONTRIBUTING and docs/: what they show runs, what they name exists.

Every ``python`` block of a page runs, in a folder that holds what a user would have by then, with a
small network in place of the real one. Every command of a ``bash`` block, and every command in
``inline code``, goes through the argument parser of the tool that it calls; those that convert and
export run too, because later blocks of their pages open what they write.
"""
import argparse
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import cv2
import pytest
import torch
from mmengine.config import Config
from small import image, write

from mmseg_bisenetv2.tool_runner import find_tools

import mmseg

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
EACH_PAGE = pytest.mark.parametrize('page', PAGES, ids=NAMES)
PLACEHOLDERS = dict(CONFIG='configs/bisenetv2_fcn_cityscapes.py', FILE='checkpoint.pth')
CONFIG_KEYS = ('test_dataloader', 'test_evaluator', 'test_pipeline')  # not names of tests
RUNNING = ('tools/convert_checkpoint.py', 'tools/export.py')
NOT_RUN = ('int8', '--size', 'mine.py')  # takes long, and tests/deploy does the same
# What a page may name though it is not there
ABSENT = ('configs/mine.py', 'tests/__init__.py', 'bisenetv2_fcn_WHAT_DATASET.py')
# Programs of other projects, whose options are not looked at here.
FOREIGN = ('cd', 'cp', 'export', 'git', 'kill', 'mkdir', 'pre-commit', 'source', 'torchrun',
           'trtexec')


def blocks(page):
    """The fenced blocks of a page in their order, as (language, text)."""
    found = re.findall(r'^( *)```(\w*)\n(.*?)^\1```', page.read_text(), re.DOTALL | re.MULTILINE)
    return [(language, textwrap.dedent(text)) for _, language, text in found]


def prose(page):
    """The page without its fenced blocks."""
    return re.sub(r'^( *)```.*?^\1```', '', page.read_text(), flags=re.DOTALL | re.MULTILINE)


def split(text):
    """The commands of a shell text, each as a list of words, without comments."""
    lines = text.replace('<this repository>', 'ADDRESS').replace('\\\n', ' ').splitlines()
    return [words for line in lines for command in line.split('&&')
            if (words := shlex.split(command, comments=True))]


def inline_commands(page):
    """The commands that stand between backticks in the prose."""
    spans = re.findall(r'`([^`]+)`', prose(page))
    programs = r'(make|python tools/\S+|python -m mmseg_bisenetv2|mim \w+ \w+ ) *\S'
    return [words for span in spans if re.match(programs, span) for words in split(span)]


class ParsedError(Exception):
    """Carries the arguments of a script that was stopped behind its parser."""


def parse(monkeypatch, script, arguments):
    """What a script's own parser makes of the arguments; raises SystemExit if they are wrong."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(parser, args=None, namespace=None):
        raise ParsedError(original(parser, args, namespace))

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, 'parse_args', parse_args)
        patch.setattr(sys, 'argv', [str(script), *arguments])
        patch.syspath_prepend(Path(script).parent)
        with pytest.raises(ParsedError) as stopped:
            runpy.run_path(str(script), run_name='__main__')
    return stopped.value.args[0]


def check_options_of_config(config, options):
    """Whether a config has the place that each ``--cfg-options`` sets."""
    config = Config.fromfile(ROOT / PLACEHOLDERS.get(config, config))
    for key in options:
        place = config
        for name in key.split('.')[:-1]:
            place = place[int(name) if isinstance(place, (list, tuple)) else name]
    config.merge_from_dict(options)


def check_mim(monkeypatch, words, made):
    command, package, *rest = words[1:]
    home = {'mmseg': Path(mmseg.__path__[0]) / '.mim', 'mmseg_bisenetv2': ROOT}[package]
    if command in ('train', 'test'):  # mim takes some of the options, the script gets the others
        cli = import_module(f'mim.commands.{command}').cli
        given = cli.make_context(command, [package, *rest]).params
        checkpoint = ['FILE'] if command == 'test' else []
        arguments = parse(monkeypatch, home / f'tools/{command}.py',
                          [given['config'], *checkpoint, *given['other_args']])
        if package == 'mmseg_bisenetv2' and 'NAME' not in given['config']:
            assert (ROOT / 'configs' / given['config']).exists(), given['config']
        if arguments.cfg_options and given['config'] not in made:
            check_options_of_config(given['config'], arguments.cfg_options)
    elif command == 'run':
        script, = home.glob(f'tools/**/{rest[0]}.py')
        for option in rest[1:]:
            assert not option.startswith('--') or option in script.read_text(), option
    else:
        cli = import_module(f'mim.commands.{command}').cli
        assert cli.make_context(command, [package, *rest])


def check(monkeypatch, words, made):
    """Fails if a command names what does not exist.

    Args:
        words: The command.
        made: Files that earlier commands of the page have made; those of this one are added.
    """
    for word in words:
        if re.match(r'(configs|docs|mmseg_bisenetv2|tests|tools)/', word):
            assert word in made or (ROOT / word).exists() or 'cp' == words[0] or (
                'tools/new_config.py' in words or 'new_config' in words), word
    program = words[0].removeprefix('.venv/bin/')
    if program == 'cp':
        made.add(words[2])
    elif program == 'make':
        makefile = (ROOT / 'Makefile').read_text()
        for word in words[1:]:
            assert '=' in word or f'\n{word}:' in makefile, word
    elif program == 'mim':
        check_mim(monkeypatch, words, made)
    elif program == 'pip':
        extras = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project'][
            'optional-dependencies']
        for word in words:
            for names in re.findall(r'^\.\[(.*)\]$', word):
                assert set(names.split(',')) <= set(extras), word
    elif program in ('python', 'python3.11') and words[1].startswith(('tests/', 'tools/')):
        arguments = parse(monkeypatch, ROOT / words[1], words[2:])
        if words[1] == 'tools/new_config.py':
            made.add(arguments.config)
    elif words[:3] == ['python', '-m', 'mmseg_bisenetv2']:
        with monkeypatch.context() as patch:
            if not find_spec('seaborn'):  # Which analyze_logs imports before it parses.
                patch.setitem(sys.modules, 'seaborn', ModuleType('seaborn'))
            if words[3:] not in ([], ['TOOL']):
                arguments = parse(monkeypatch, find_tools()[words[3]], words[4:])
                if words[3] == 'new_config':
                    made.add(arguments.config)
    elif program in ('python', 'python3.11'):
        assert words[1] == '-m', words
    elif program != 'pytest':
        assert program in FOREIGN, words


@EACH_PAGE
def test_commands_are_understood(page, monkeypatch, capsys):
    made = {'mine.py'} if page.name == 'own-data.md' else set()  # README's commands make it
    commands = [words for language, text in blocks(page) if language == 'bash'
                for words in split(text)]
    for words in [*commands, *inline_commands(page)]:
        try:
            check(monkeypatch, words, made)
        except SystemExit:
            pytest.fail(f'{shlex.join(words)}\n{capsys.readouterr().err}')


@pytest.fixture(scope='module')
def user(tmp_path_factory):
    """A user's folder: configs and checkpoints under the names of the pages, and pictures."""
    folder = tmp_path_factory.mktemp('user')
    config, checkpoint = write(folder)
    (folder / 'configs').mkdir()
    shutil.copy(config, folder / 'configs/bisenetv2_fcn_cityscapes.py')
    content = torch.load(checkpoint)
    for key, value in content['state_dict'].items():  # other layouts have no place for these biases
        if key.endswith('pointwise_conv.conv.bias') and '.bga.' in key:
            value.zero_()
    for name in ('checkpoint.pth', 'ours.pth', 'work_dirs/mine/iter_40000.pth'):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, folder / name)
    (folder / 'street').mkdir()
    for name in ('street.png', 'street/a.png'):
        cv2.imwrite(str(folder / name), image())
    return folder


def run_tool(monkeypatch, words):
    """Runs a tool in this process, in the current folder."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, 'argv', words[1:])
        try:
            runpy.run_path(str(ROOT / words[1]), run_name='__main__')
        except SystemExit as end:
            assert not end.code, f'{shlex.join(words)}: {end.code}'


def run_python(text, folder):
    """Runs a block, in a new process if it claims to need nothing of this package."""
    if '_base_ =' in text:
        (folder / 'config.py').write_text(text)
        train_one_step(folder)
    elif 'mmseg' in text:
        exec(compile(text, 'block', 'exec'), {})
    else:
        text += '\nimport sys; assert not {"torch", "mmseg", "mmseg_bisenetv2"} & set(sys.modules)'
        text += '\nassert labels.shape == (64, 96) and len(set(labels.flat)) > 1'
        run_process(text, folder)


def run_process(text, folder):
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', text], cwd=folder, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert result.returncode == 0, result.stdout


def train_one_step(folder):
    """Builds the model of folder/config.py, which alone imports this package, and trains a step."""
    run_process(textwrap.dedent('''
        import torch
        from mmengine.config import Config
        from mmengine.model import revert_sync_batchnorm
        from mmengine.optim import build_optim_wrapper
        from mmengine.registry import MODELS, init_default_scope
        from mmengine.structures import PixelData

        config = Config.fromfile('config.py')
        init_default_scope(config.default_scope)
        assert config.model.type == 'EncoderDecoder'  # MMSegmentation's, and its heads too
        config.model.data_preprocessor.size = (64, 64)
        model = revert_sync_batchnorm(MODELS.build(config.model))
        assert type(model.backbone).__module__ == 'mmseg_bisenetv2.models.bisenetv2'
        optim_wrapper = build_optim_wrapper(model, config.optim_wrapper)
        before = model.backbone.detail.detail_branch[0][0].conv.weight.clone()
        from mmseg.structures import SegDataSample
        sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 150, (1, 64, 64))))
        image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
        losses = model.train_step(
            dict(inputs=[image] * 2, data_samples=[sample] * 2), optim_wrapper)
        assert torch.isfinite(losses['loss'])
        assert not torch.equal(before, model.backbone.detail.detail_branch[0][0].conv.weight)
    '''), folder)


@EACH_PAGE
def test_blocks_run(page, user, monkeypatch):
    monkeypatch.chdir(user)
    for language, text in blocks(page):
        if language == 'python':
            run_python(text, user)
        elif language == 'bash':
            for words in split(text):
                if words[1:2] and words[1] in RUNNING and not set(NOT_RUN) & set(words):
                    run_tool(monkeypatch, [PLACEHOLDERS.get(word, word) for word in words])


def anchors(page):
    """What the headings of a page are called in an address, by GitHub's rule."""
    headings = re.findall(r'^#+ (.*)$', prose(page), re.MULTILINE)
    return [re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings]


@EACH_PAGE
def test_links_lead_somewhere(page):
    for link in re.findall(r'\]\(([^)]+)\)', prose(page)):
        if link.startswith('https://'):
            continue
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@EACH_PAGE
def test_names_exist(page):
    sources = '\n'.join(path.read_text() for path in ROOT.glob('tests/**/test_*.py'))
    for name in re.findall(r'`([^`\s]+)`', prose(page)):
        if re.match(r'(configs|docs|mmseg_bisenetv2|tests|tools)/', name):
            assert (ROOT / name).exists() or name in ABSENT or 'NAME' in name, name
        elif re.fullmatch(r'bisenetv2\w*_fcn_\S+\.py', name):
            assert (ROOT / 'configs' / name).exists() or name in ABSENT, name
        elif re.fullmatch(r'test_\w+\.py', name):
            assert [*ROOT.glob(f'tests/**/{name}')], name
        elif re.fullmatch(r'test_\w+', name) and name not in CONFIG_KEYS:
            assert f'def {name}(' in sources, name


def test_every_config_is_listed():
    text = (ROOT / 'docs/train.md').read_text()
    assert not [path.name for path in ROOT.glob('configs/*.py') if f'`{path.name}`' not in text]


def test_readme_is_short_and_leads_to_every_page():
    text = (ROOT / 'README.md').read_text()
    assert len([word for word in text.split() if re.search(r'\w', word)]) <= 1100
    for page in PAGES[1:]:
        assert f']({page.relative_to(ROOT).as_posix()})' in text, page
