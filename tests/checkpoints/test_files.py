"""Reading executes nothing and always ends; writing is whole or not at all."""
import collections
import logging
import multiprocessing
import os
import pickle
import resource
import runpy
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import golden_state_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from mmseg_bisenetv2.checkpoints import (
    CheckpointError,
    convert_checkpoint,
    convert_state_dict,
    read_checkpoint,
    write_checkpoint,
)
from mmseg_bisenetv2.checkpoints.layouts import BGA_BIASES

TOOL = Path(__file__).parents[2] / 'tools' / 'convert_checkpoint.py'
KEY = 'backbone_net.bga.detail_dwconv.0.depthwise_conv.weight'


@pytest.fixture(scope='module')
def weights():
    return golden_state_dict('ssseg')


@pytest.fixture(scope='module')
def ours(weights):
    return convert_state_dict(weights)


@pytest.fixture(scope='module')
def file(weights, tmp_path_factory):
    """What MMEngine's runner writes, small, with the classes that it stores."""
    path = tmp_path_factory.mktemp('file') / 'iter_1.pth'
    buffer = HistoryBuffer()
    buffer.update(0.5)
    torch.save({
        'meta': {'iter': 1, 'dataset_meta': {'classes': ('road', ), 'palette': [[1, 2, 3]]}},
        'state_dict': collections.OrderedDict(
            backbone=torch.zeros(2), **{'backbone.bga.conv.bn.bias': torch.arange(3.0)}),
        'message_hub': {'log_scalars': {'train/loss': buffer}},
        'optimizer': {'state': {0: {'momentum_buffer': torch.ones(2)}}, 'param_groups': []},
        'param_schedulers': [{'milestones': collections.Counter([1])}],
    }, path)
    return path


class Evil:
    """Makes a file if it is unpickled freely."""

    def __init__(self, trap):
        self.trap = trap

    def __reduce__(self):
        return os.system, (f'touch {self.trap}', )


def archive(path, content, compression=zipfile.ZIP_STORED, **records):
    """A file as torch.save writes it, around any bytes as its pickle."""
    with zipfile.ZipFile(path, 'w', compression) as file:
        file.writestr('archive/data.pkl', content)
        file.writestr('archive/byteorder', b'little')
        file.writestr('archive/version', b'3\n')
        for name, value in records.items():
            file.writestr(f'archive/data/{name}', value)
    return path


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
@pytest.mark.parametrize('where', [
    lambda evil: evil,
    lambda evil: {KEY: evil},
    lambda evil: {'model': {KEY: torch.zeros(1)}, 'meta': [{'a': (evil, )}]},
    lambda evil: {'model': {}, 'optimizer': {'state': {0: {'momentum_buffer': evil}}}},
    lambda evil: {'state_dict': collections.OrderedDict({KEY: [evil]})},
], ids=['top', 'weight', 'nested', 'optimizer', 'ordered'])
def test_nothing_is_executed(tmp_path, where, legacy, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    path, trap = tmp_path / 'evil.pth', tmp_path / 'trap'
    torch.save(where(Evil(trap)), path, _use_new_zipfile_serialization=not legacy)
    for read in (read_checkpoint, CheckpointLoader.load_checkpoint):
        with pytest.raises(CheckpointError, match=r'evil.pth .*run (posix|nt)\.system') as e:
            read(str(path))
        assert 'weights_only=False' not in str(e.value)
    assert not trap.exists()


@pytest.mark.parametrize('name', [
    'builtins eval', 'builtins getattr', 'builtins bytearray', 'torch load', 'numpy load',
    'mmengine.config.config Config', 'torch.storage _load_from_bytes'])
def test_other_names_are_refused_too(tmp_path, name):
    called = f'c{name}\n'.replace(' ', '\n').encode() + b'X\x01\x00\x00\x001\x85R.'
    path = archive(tmp_path / 'evil.pth', b'\x80\x02' + called)
    with pytest.raises(CheckpointError, match=r'evil.pth.*(asks|_statistics_method)'):
        read_checkpoint(str(path))


class NumberType:
    """Unpickles as a NumPy type with flags that say that its numbers are pointers."""

    def __init__(self, code):
        self.code = code

    def __reduce__(self):
        return np.dtype, (self.code, False, True), (3, '<', None, None, None, -1, -1, 63)


def test_numbers_cannot_pass_for_pointers(tmp_path):
    path = str(tmp_path / 'type.pth')
    torch.save({'meta': NumberType('f8')}, path)
    assert read_checkpoint(path)['meta'] is np.dtype('f8')
    assert np.dtype('f8').flags == 0
    torch.save({'meta': NumberType('O8')}, path)
    with pytest.raises(CheckpointError, match=r"numpy.dtype\('O8'\) is refused"):
        read_checkpoint(path)


def test_a_plain_pickle_and_a_torchscript_are_no_checkpoints(tmp_path):
    trap = tmp_path / 'trap'
    (tmp_path / 'plain.pth').write_bytes(pickle.dumps(Evil(trap)))
    with pytest.raises(CheckpointError, match='begins with'):
        read_checkpoint(str(tmp_path / 'plain.pth'))
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / 'script.pth')
    with pytest.raises(CheckpointError, match='__torch__'):
        read_checkpoint(str(tmp_path / 'script.pth'))
    assert not trap.exists()


class Call:
    """Unpickles as a call."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


ENDLESS = torch.zeros(1).expand(10**5)  # could be any length


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('call', [
    Call(set, ENDLESS), Call(collections.Counter, ENDLESS), Call(torch.Size, ENDLESS),
    Call(collections.OrderedDict, [ENDLESS]), Call(collections.OrderedDict, ([ENDLESS, 1], )),
], ids=['set', 'Counter', 'Size', 'OrderedDict', 'nested'])
def test_no_tensor_is_iterated(tmp_path, call, legacy):
    path = tmp_path / 'endless.pth'
    torch.save({'a': call}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r'of a tensor|OrderedDict with arguments'):
        read_checkpoint(str(path))


def test_no_tensor_is_taken_for_the_arguments_of_a_call(tmp_path):
    path = archive(tmp_path / 'endless.pth', b'\x80\x02cbuiltins\nset\nctorch\nSize\n)RR.')
    with pytest.raises(CheckpointError, match=r'asks to run builtins\.set'):
        read_checkpoint(str(path))


def test_texts_are_encoded_as_latin1_only(tmp_path):
    content = b'\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX%c\x00\x00\x00%s\x86R.'
    for codec in (b'latin1', b'punycode'):
        path = str(archive(tmp_path / 'text.pth', content % (len(codec), codec)))
        if codec == b'latin1':
            assert read_checkpoint(path) == b'a'
        else:
            with pytest.raises(CheckpointError, match='other than latin1'):
                read_checkpoint(path)


@pytest.mark.parametrize('call', [
    Call(torch._tensor._rebuild_from_type_v2, set, torch.Tensor, (ENDLESS, ), None),
    Call(HistoryBuffer, ENDLESS, ENDLESS), Call(np.ndarray, (10**5, )),
    Call(torch._utils._rebuild_device_tensor_from_cpu_tensor, ENDLESS, torch.float64, 'cpu', False),
], ids=['passed on', 'buffer', 'array', 'copy'])
def test_nothing_is_called_that_no_checkpoint_calls(tmp_path, call):
    path = tmp_path / 'endless.pth'
    torch.save({'a': call}, path)
    with pytest.raises(CheckpointError, match='it asks to run'):
        read_checkpoint(str(path))


def test_what_training_stores_is_not_taken_for_that(tmp_path):
    path = tmp_path / 'fine.pth'
    torch.save({'a': collections.Counter([1, 2]), 'b': {1, 2}, 'c': torch.Size([1, 2]),
                'd': torch.nn.Parameter(torch.zeros(2)),
                'e': collections.OrderedDict(a=torch.zeros(2))}, path)
    assert read_checkpoint(str(path))['a'] == {1: 1, 2: 1}


def outcome(path):
    """A load, or the one exception; anything else fails the test."""
    try:
        checkpoint = CheckpointLoader.load_checkpoint(str(path), 'cpu')
        convert_state_dict(checkpoint)
        return True
    except CheckpointError as error:
        assert str(error)
        return False


@pytest.fixture(scope='module')
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp('fuzz') / 'fuzz.pth'


@settings(max_examples=100, deadline=None)
@given(start=st.sampled_from([
    b'', b'PK\x03\x04', b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.', b'\x02\0\0\0\0\0\0\0{}',
    b'<!DOCTYPE html>']), rest=st.binary(max_size=300))
def test_random_bytes(scratch, start, rest):
    scratch.write_bytes(start + rest)
    assert not outcome(scratch) or start.endswith(b'{}')


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(['zip', 'legacy', 'safetensors']))
def test_truncated_files(scratch, file, data, kind):
    content = encoded(file, kind)
    cut = data.draw(st.integers(0, len(content) - 1))
    scratch.write_bytes(content[:cut])
    assert not outcome(scratch)


def encoded(file, kind, cache={}):  # noqa: B006
    if kind not in cache:
        checkpoint = read_checkpoint(str(file))
        path = file.with_suffix(f'.{kind}')
        if kind == 'zip':
            path = file
        elif kind == 'legacy':
            torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
        else:
            write_checkpoint(checkpoint, str(path))
        cache[kind] = path.read_bytes()
    return cache[kind]


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(['pickle', 'zip', 'legacy', 'safetensors']))
def test_flipped_bytes(scratch, file, data, kind):
    content = bytearray(encoded(file, 'zip' if kind == 'pickle' else kind))
    if kind == 'pickle':  # of the pickle, and the archive around it is sound
        with zipfile.ZipFile(file) as saved:
            parts = {name.split('/', 1)[1]: saved.read(name) for name in saved.namelist()}
        content = bytearray(parts.pop('data.pkl'))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if kind == 'pickle':
        records = {name.split('/')[1]: value for name, value in parts.items() if 'data/' in name}
        archive(scratch, bytes(content), **records)
    else:
        scratch.write_bytes(content)
    outcome(scratch)


def value_of_any_type():
    numbers = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
    shapes = st.lists(st.integers(0, 3), max_size=5)
    tensors = st.builds(
        lambda shape, dtype, fill: torch.full(shape, fill).to(dtype), shapes,
        st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64]),
        st.sampled_from([0.0, 1.0, float('nan'), float('inf')]))
    return st.recursive(numbers | tensors, lambda inner: st.lists(inner, max_size=3) |
                        st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3))


@settings(max_examples=100, deadline=None)
@given(value=value_of_any_type(), place=st.sampled_from([
    lambda value: value, lambda value: {'state_dict': value}, lambda value: {'model': value},
    lambda value: {KEY: value}, lambda value: {'model': {KEY: value}, 'optimizer': value},
    lambda value: {'meta': value, 'state_dict': {'backbone.bga.conv.bn.bias': value}}]))
def test_any_content(scratch, value, place):
    torch.save(place(value), scratch)
    outcome(scratch)


class Crafted:
    """Unpickles as an OrderedDict with attributes that hide its methods."""

    def __reduce__(self):
        hidden = dict.fromkeys(['items', 'keys', 'values', 'copy', 'get', '_metadata'], 3)
        return collections.OrderedDict, (), hidden, None, iter([(KEY, torch.zeros(1, 1, 3, 3))])


def test_crafted_attributes_stay_behind(tmp_path):
    for content in (Crafted(), {'model': Crafted()}, {'state_dict': Crafted()}):
        torch.save(content, tmp_path / 'crafted.pth')
        loaded = CheckpointLoader.load_checkpoint(str(tmp_path / 'crafted.pth'), 'cpu')
        assert len(loaded['state_dict'].copy().items()) == 1
        assert list(loaded['state_dict']._metadata) == ['']


def test_what_mmengine_stores_comes_back_whole(file):
    loaded = CheckpointLoader.load_checkpoint(str(file))
    expected = torch.load(file, weights_only=True)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(value, expected['state_dict'][key])
               for key, value in loaded['state_dict'].items())
    assert loaded['message_hub']['log_scalars']['train/loss'].current() == 0.5
    for key in ('meta', 'param_schedulers'):
        assert loaded[key] == expected[key]
    assert torch.equal(loaded['optimizer']['state'][0]['momentum_buffer'], torch.ones(2))


@pytest.mark.parametrize('content', [
    {'fc.weight': torch.ones(1)}, {'state_dict': {'layer1.weight': torch.ones(1)}, 'epoch': 3}])
def test_other_networks_are_passed_on(tmp_path, content):
    torch.save(content, tmp_path / 'other.pth')
    assert CheckpointLoader.load_checkpoint(str(tmp_path / 'other.pth')) == content


def deep_list(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


LOOP: list = []
LOOP.append(LOOP)
BILLIONS: list = []
for _ in range(30):
    BILLIONS = [BILLIONS, BILLIONS]


@pytest.mark.parametrize('change, reason', [
    ({'a': deep_list(101)}, 'nested more than 100 deep'), ({'a': LOOP}, 'nested more than 100'),
    ({'a': BILLIONS}, 'more than 200000 items in all'),
    ({'dataset_meta': [1]}, '"dataset_meta" is not a dict'), ({1: 2}, '"meta" is'),
    (None, '"meta" is not a dictionary'), ('x', '"meta" is not a dictionary')])
def test_what_mmengine_would_stumble_over_is_named(file, tmp_path, change, reason):
    checkpoint = read_checkpoint(str(file))
    for name in ('backbone.bga.conv.bn.bias', 'fc.bias'):  # ours, and another network's
        meta = {**checkpoint['meta'], **change} if isinstance(change, dict) else change
        torch.save({**checkpoint, 'meta': meta, 'state_dict': {name: torch.ones(1)}},
                   tmp_path / 'odd.pth')
        with pytest.raises(CheckpointError, match=f'odd.pth: .*{reason}'):
            CheckpointLoader.load_checkpoint(str(tmp_path / 'odd.pth'))


def test_containers_that_are_shared_are_no_harm(tmp_path):
    meta = {'a': [deep_list(90)] * 9}
    torch.save({'meta': meta, 'state_dict': {}}, tmp_path / 'fine.pth')
    assert CheckpointLoader.load_checkpoint(str(tmp_path / 'fine.pth'))['meta'] == meta


def test_a_tensor_larger_than_its_data_is_refused_anywhere(file, tmp_path):
    checkpoint = {**read_checkpoint(str(file)), 'optimizer': {'state': {0: ENDLESS}}}
    torch.save(checkpoint, tmp_path / 'odd.pth')
    with pytest.raises(CheckpointError, match=r'odd.pth: it holds a tensor that is larger'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'odd.pth'))


@pytest.mark.parametrize('content', [
    None, 3, [torch.ones(1)], {1: torch.ones(1)}, {'state_dict': None}, {'state_dict': [1]},
    {'state_dict': {1: torch.ones(1)}}])
def test_content_without_a_state_dict_is_named(tmp_path, content):
    torch.save(content, tmp_path / 'odd.pth')
    with pytest.raises(CheckpointError, match=r'odd.pth: found a .* where a state dict was'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'odd.pth'))


def test_the_log_says_that_a_file_is_local(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    torch.save({'state_dict': {'a': torch.ones(1)}}, tmp_path / 'a.pth')
    CheckpointLoader.load_checkpoint(str(tmp_path / 'a.pth'), logger=logging.getLogger('mine'))
    assert 'by local backend from path: ' in caplog.text


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'none\.pth'):
        read_checkpoint(str(tmp_path / 'none.pth'))


@pytest.mark.parametrize('source', ['ssseg', 'coincheung'])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_convert_file(tmp_path, source, suffix):
    state = golden_state_dict(source)
    torch.save({'model': state, 'optimizer': {}}, tmp_path / 'in.pth')
    target = str(tmp_path / f'out{suffix}')
    before, after = convert_checkpoint(str(tmp_path / 'in.pth'), target, strip=True)
    loaded = CheckpointLoader.load_checkpoint(target)
    assert loaded['meta'] == {}
    expected = {key: value for key, value in convert_state_dict(state).items()
                if not key.startswith('auxiliary_head.')}
    assert loaded['state_dict'].keys() == expected.keys()
    assert all(torch.equal(loaded['state_dict'][key], value) for key, value in expected.items())
    if source == 'ssseg':
        assert [round(size['parameters'] / 1e6, 2) for size in (before, after)] == [14.80, 3.36]
    assert os.path.getsize(target) < 1.02 * after['bytes'] + 200000
    assert sorted(os.listdir(tmp_path)) == sorted(['in.pth', f'out{suffix}'])


def test_convert_keeps_or_strips_what_training_needs(ours, file, tmp_path):
    checkpoint = {**read_checkpoint(str(file)), 'state_dict': ours}
    torch.save(checkpoint, tmp_path / 'in.pth')
    for name, keys in dict(whole={*checkpoint}, stripped={'meta', 'state_dict'}).items():
        convert_checkpoint(str(tmp_path / 'in.pth'), str(tmp_path / f'{name}.pth'),
                           strip=name == 'stripped')
        assert read_checkpoint(str(tmp_path / f'{name}.pth')).keys() == keys
    convert_checkpoint(str(tmp_path / 'in.pth'), str(tmp_path / 'out.safetensors'))
    meta = CheckpointLoader.load_checkpoint(str(tmp_path / 'out.safetensors'))['meta']
    assert meta == {'iter': 1, 'dataset_meta': {'classes': ['road'], 'palette': [[1, 2, 3]]}}


def test_convert_to_half(ours, tmp_path):
    source, target = str(tmp_path / 'in.pth'), str(tmp_path / 'out.safetensors')
    write_checkpoint({'meta': {}, 'state_dict': ours}, source)
    before, after = convert_checkpoint(source, target, half=True)
    assert 0.5 < after['bytes'] / before['bytes'] < 0.51
    for key, value in read_checkpoint(target)['state_dict'].items():
        is_convolution = value.ndim > 1
        assert value.dtype == (torch.half if is_convolution else ours[key].dtype), key
        assert torch.equal(value, ours[key].to(value.dtype)), key


def test_half_refuses_what_fp16_cannot_say(ours, tmp_path):
    source, target = str(tmp_path / 'in.pth'), tmp_path / 'out.pth'
    key = 'decode_head.conv_seg.weight'
    write_checkpoint({'state_dict': {**ours, key: torch.full_like(ours[key], 1e5)}}, source)
    with pytest.raises(CheckpointError, match=f'{key} in FP16 holds'):
        convert_checkpoint(source, str(target), half=True)
    assert not target.exists()


@pytest.mark.parametrize('to', ['sssegmentation', 'coincheung'])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_convert_there_and_back(ours, tmp_path, to, suffix):
    path = [str(tmp_path / name) for name in ('in.pth', f'there{suffix}', 'back.pth')]
    write_checkpoint({'meta': {}, 'state_dict': ours}, path[0])
    strip = to == 'coincheung'
    convert_checkpoint(path[0], path[1], to=to, strip=strip)
    convert_checkpoint(path[1], path[2])
    back = read_checkpoint(path[2])['state_dict']
    assert back.keys() == {key for key in ours if not strip or not key.startswith('aux')}
    assert all(torch.equal(value, ours[key]) for key, value in back.items())


def test_a_failed_conversion_writes_nothing(ours, tmp_path):
    source, target = str(tmp_path / 'in.pth'), tmp_path / 'out.pth'
    target.write_bytes(b'old')
    for change, reason in [({BGA_BIASES[0]: torch.ones(128)}, 'bga_bias=False'),
                           ({'decode_head.conv_seg.bias': torch.full((19, ), float('nan'))},
                            'decode_head.conv_seg.bias holds NaN')]:
        torch.save({'state_dict': {**ours, **change}}, source)
        with pytest.raises(CheckpointError, match=reason):
            convert_checkpoint(source, str(target), to='sssegmentation')
    torch.save({'fc.weight': torch.ones(1)}, source)
    with pytest.raises(CheckpointError, match=r'in.pth holds no BiSeNetV2, but fc.weight'):
        convert_checkpoint(source, str(target))
    assert target.read_bytes() == b'old'
    assert sorted(os.listdir(tmp_path)) == ['in.pth', 'out.pth']


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_full_disk_keeps_the_old_file(tmp_path, suffix):
    path = tmp_path / f'out{suffix}'
    write_checkpoint({'a': torch.zeros(3)}, str(path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, before[1]))
    try:
        with pytest.raises(OSError, match='File too large'):
            write_checkpoint({'a': torch.ones(10**6)}, str(path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == [path.name]
    assert next(iter(convert_state_dict(read_checkpoint(str(path))).values())).shape == (3, )


def write_for_ever(checkpoint, path):
    while True:
        write_checkpoint(checkpoint, path)


@pytest.mark.parametrize('delay', [0.02, 0.05, 0.1, 0.2])
def test_a_killed_run_keeps_a_whole_file(tmp_path, delay):
    path = str(tmp_path / 'out.pth')
    write_checkpoint({'a': torch.zeros(3)}, path)
    process = multiprocessing.get_context('fork').Process(
        target=write_for_ever, args=({'a': torch.ones(10**6)}, path))
    process.start()
    time.sleep(delay)
    process.kill()
    process.join()
    assert read_checkpoint(path)['a'].shape in [(3, ), (10**6, )]
    write_checkpoint({'a': torch.zeros(3)}, path)  # takes the place of what was left behind
    assert os.listdir(tmp_path) == ['out.pth']


@pytest.mark.parametrize('wrapper, prefix', [
    ('state_dict', 'backbone'), ('model', 'backbone_net')])
def test_what_is_no_tensor_is_not_converted(tmp_path, wrapper, prefix):
    source = str(tmp_path / 'in.pth')
    torch.save({wrapper: {f'{prefix}.detail.x': 'text'}}, source)
    with pytest.raises(CheckpointError, match=rf'in.pth: {prefix}.detail.x.*found a str'):
        convert_checkpoint(source, str(tmp_path / 'out.pth'))
    assert os.listdir(tmp_path) == ['in.pth']


def test_sizes_are_those_of_the_two_files(tmp_path):
    state = golden_state_dict('coincheung')
    torch.save(state, tmp_path / 'in.pth')
    before, after = convert_checkpoint(str(tmp_path / 'in.pth'), str(tmp_path / 'out.pth'))
    assert before['tensors'] == len(state) == 383
    assert after['tensors'] == 329  # without its auxiliary heads, with two biases


def test_the_tool(weights, tmp_path, monkeypatch, capsys):
    torch.save({'epoch': 860, 'model': weights, 'optimizer': {}}, tmp_path / 'in.pth')
    target = str(tmp_path / 'out.safetensors')
    monkeypatch.setattr(sys, 'argv', [str(TOOL), str(tmp_path / 'in.pth'), target, '--strip'])
    runpy.run_path(str(TOOL), run_name='__main__')
    printed = capsys.readouterr().out
    assert '14.80 M' in printed and '3.36 M' in printed
    assert len(read_checkpoint(target)['state_dict']) > 300

    monkeypatch.setattr(sys, 'argv', [str(TOOL), str(TOOL), str(tmp_path / 'bad.pth')])
    with pytest.raises(SystemExit, match=r'Nothing was written: .*convert_checkpoint.py'):
        runpy.run_path(str(TOOL), run_name='__main__')
    assert not (tmp_path / 'bad.pth').exists()
