"""Arguments that several tools have are the same in all of them."""
import argparse
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

TOOLS = sorted((Path(__file__).parents[1] / 'tools').glob('[a-z]*.py'))


class BuiltError(Exception):
    """Stops a tool before it parses its arguments."""


@pytest.fixture(scope='module')
def found() -> list[tuple[str, argparse.Action, str]]:
    """All options of the tools, with the help that shows them."""
    added = []
    original = argparse.ArgumentParser.add_argument

    def add_argument(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        added.append((parser, original(parser, *args, **kwargs)))
        return added[-1][1]

    def stop(*_: object) -> None:
        raise BuiltError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, 'add_argument', add_argument)
        patch.setattr(argparse.ArgumentParser, 'parse_args', stop)
        patch.syspath_prepend(TOOLS[0].parent)
        patch.setenv('COLUMNS', '200')
        for tool in TOOLS:
            patch.setattr(sys, 'argv', [str(tool)])
            with pytest.raises(BuiltError):
                runpy.run_path(str(tool), run_name='__main__')
        return [(action.option_strings[-1], action, parser.format_help())
                for parser, action in added if action.option_strings]


def test_sizes_have_one_spelling(found: list) -> None:
    sizes = [(action, text) for name, action, text in found if name in ('--size', '--crop')]
    assert len(sizes) >= 9  # Four tools, and the commands of the benchmark.
    for action, text in sizes:
        assert f'{action.option_strings[-1]} WIDTHxHEIGHT' in text
        assert action.type('2048x1024') == (1024, 2048)
        for wrong in ('512', '512,1024', '512X1024', '0x5', '-1x5', '1x', '512x1024x3', ' 5x5'):
            with pytest.raises(argparse.ArgumentTypeError, match='expected WIDTHxHEIGHT'):
                action.type(wrong)


def test_numbers_of_things_begin_at_one(found: list) -> None:
    names = ('--batch', '--classes', '--num-workers', '--pairs', '--threads', '--train', '--val')
    actions = [action for name, action, _ in found
               if name in names and action.metavar != 'NAME' and action.type is not float]
    assert {action.option_strings[-1] for action in actions} == set(names)
    for action in actions:
        assert action.type('3') == 3
        with pytest.raises(argparse.ArgumentTypeError, match='0 is less than 1'):
            action.type('0')


def test_defaults_of_sizes_are_shown_as_they_are_typed(found: list) -> None:
    shown = [text for name, _, text in found if name == '--crop']
    assert any('default: 1024x512)' in ' '.join(text.split()) for text in shown)
    assert not any('(1024, 1024)' in text or '(512, 1024)' in text for text in shown)


def test_choices_are_shown(found: list) -> None:
    names = ('--amp', '--backend', '--mmseg-amp', '--precision', '--with-cp')
    chosen = [(name, action, text) for name, action, text in found
              if name in names and action.nargs != 0]  # MMSegmentation's --amp takes no value
    assert {name for name, *_ in chosen} == set(names)
    for name, action, text in chosen:
        assert f'{name} {{{",".join(action.choices)}}}' in text
