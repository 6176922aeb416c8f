"""The table of versions: what each row installs, what the table says, and that the docs show it."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import versions

DOCS = Path(__file__).parents[1] / 'docs/install.md'


def names(text):
    return {re.split('==', line)[0].lower() for line in text.splitlines() if '==' in line}


def test_constraints_leave_free_what_a_row_names():
    every = names(versions.constraints(versions.Row()))
    assert {'torch', 'numpy', 'mmengine', 'onnx_ir'} <= every
    row = versions.Row(requirements=('torch==2.7.*', 'onnx-ir>=0.1'), free=('NumPy', ))
    assert every - names(versions.constraints(row)) == {'torch', 'onnx_ir', 'numpy'}


def test_an_interpreter_of_another_version_is_not_taken():
    own = '{}.{}'.format(*sys.version_info)
    assert versions.find_python(own, {own: sys.executable}) == sys.executable
    assert versions.find_python('3.99', {'3.99': sys.executable}) is None


def test_table_says_what_was_found(tmp_path, monkeypatch):
    monkeypatch.setattr(versions, 'FOUND', tmp_path)
    monkeypatch.setattr(versions, 'ROWS', {
        name: versions.Row() for name in ('good', 'bad', 'foreign')})
    found = dict(versions={'Python': '3.11.7', 'PyTorch': '2.13.0'}, failed=None)
    for name, result in dict(good=found, bad=dict(found, failed='ONNX', error='a | b')).items():
        versions.home(name).mkdir()
        (versions.home(name) / 'found.json').write_text(json.dumps(result))
    lines = versions.table().splitlines()[2:]
    assert re.fullmatch(r'\| good \| 3\.11\.7 \| 2\.13\.0 \|.*\| works \|', lines[0])
    assert lines[1].endswith(r'| fails in ONNX: a \| b |')
    assert re.fullmatch(r'\| foreign \| 3\.11 \|.*\| not tried here \|', lines[2])


def test_suite_ends_at_the_first_step_that_fails(tmp_path, monkeypatch):
    def fail():
        raise SystemExit('why it failed')

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(versions, 'try_import', lambda: None)
    monkeypatch.setattr(versions, 'try_training', fail)
    versions.run_suite()
    found = json.loads((tmp_path / 'found.json').read_text())
    assert found['failed'] == 'train' and 'why it failed' in found['error']
    assert list(found['seconds']) == ['import', 'train']
    assert found['versions']['PyTorch'].startswith('2.')


def test_suite_that_is_killed_has_failed(tmp_path):
    code = 'import os, versions; versions.try_import = lambda: os._exit(3); versions.run_suite()'
    result = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=dict(
        os.environ, PYTHONPATH=str(Path(__file__).parent)))
    assert result.returncode == 3
    found = json.loads((tmp_path / 'found.json').read_text())
    assert found['failed'] == 'import' and 'killed' in found['error']


def test_suite_refuses_a_package_that_the_environment_does_not_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'prefix', str(tmp_path))
    with pytest.raises(AssertionError, match='mmseg_bisenetv2'):
        versions.try_import()


def test_exit_code_says_whether_a_row_failed(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise subprocess.CalledProcessError(1, 'pip', 'Collecting\nERROR: no such version\n')

    monkeypatch.setattr(versions, 'FOUND', tmp_path)
    monkeypatch.setattr(versions, 'build_wheel', lambda: tmp_path)
    monkeypatch.setattr(versions, 'install', refuse)
    own = '{}.{}'.format(*sys.version_info)
    monkeypatch.setattr(versions, 'ROWS', dict(
        mine=versions.Row(own), other=versions.Row('3.99')))
    monkeypatch.setattr(sys, 'argv', [
        'versions.py', '--rows', 'mine', 'other', '--python', f'{own}={sys.executable}'])
    with pytest.raises(SystemExit) as end:
        versions.main()
    assert end.value.code == 1
    assert 'fails in installation: ERROR: no such version' in versions.table()
    assert not versions.home('other').exists()


def test_docs_show_the_table_of_these_rows():
    lines = [line.strip('| ').split(' | ') for line in DOCS.read_text().splitlines()
             if line.startswith('| ')]
    start = next(i for i, line in enumerate(lines) if line[0] == 'row')
    assert lines[start] == ['row', 'Python', *versions.COLUMNS, 'result']
    shown = {line[0]: line for line in lines[start + 2:start + 2 + len(versions.ROWS)]}
    assert list(shown) == list(versions.ROWS)
    for line in shown.values():
        assert line[-1] == 'not tried here' or all(line), line
