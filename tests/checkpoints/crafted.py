"""Makes 200 crafted checkpoints, loads each as MMEngine does, and prints a table by kind.

python tests/checkpoints/crafted.py [--verbose]

Each is loaded into a small network, or ends in one CheckpointError that names the file. Anything
else fails: another exception, a marker file, a file that is gone, more than 100 MB or 15 seconds.
"""
import argparse
import collections
import copy
import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.runner import load_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1]))
import small

from mmseg_bisenetv2.checkpoints import CheckpointError, write_checkpoint

SECONDS, MEGABYTES = 15, 100
FIRST = 'backbone.detail.detail_branch.0.0.conv.weight'
VARIANCE = 'backbone.detail.detail_branch.0.0.bn.running_var'
STATE: dict[str, torch.Tensor] = {}  # the small network's, set by main
Writer = Callable[[Path], Any]  # writes one checkpoint to a path


class Call:
    """Unpickles as a call of a function, with a state to set afterwards if there is one."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def saved(content: Any, legacy: bool = False) -> Writer:
    return lambda path: torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def raw(content: bytes) -> Writer:
    return lambda path: path.write_bytes(content)


def archive(pickled: bytes, compression: int = zipfile.ZIP_STORED, name: str = 'data.pkl',
            **records: bytes) -> Writer:
    """A file as torch.save writes it, around any bytes as its pickle."""
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, 'w', compression) as file:
            for member, value in {name: pickled, 'byteorder': b'little', 'version': b'3\n',
                                  **{f'data/{key}': item for key, item in records.items()}}.items():
                file.writestr(f'archive/{member}', value)
    return write


def parts_of(content: Any) -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as file:
        return {name.split('/', 1)[1]: file.read(name) for name in file.namelist()}


def call_bytes(name: str, argument: bytes) -> bytes:
    """A pickle that calls ``name`` with one text."""
    module, function = name.rsplit('.', 1)
    return (b'\x80\x02c%s\n%s\nX%s%s\x85R.' % (
        module.encode(), function.encode(), struct.pack('<I', len(argument)), argument))


def encoded() -> dict[str, bytes]:
    """The bytes of a sound checkpoint in the three formats."""
    checkpoint, found = training(), {}
    with tempfile.TemporaryDirectory() as folder:
        for name, write in dict(zip=saved(checkpoint), legacy=saved(checkpoint, legacy=True),
                                safetensors=lambda path: write_checkpoint(checkpoint, str(path))
                                ).items():
            path = Path(folder) / f'{name}.{"safetensors" if name == "safetensors" else "pth"}'
            write(path)
            found[name] = path.read_bytes()
    return found


def training(**changes: Any) -> dict[str, Any]:
    """What MMEngine's runner writes, in small."""
    buffer = HistoryBuffer()
    buffer.update(0.5)
    return {
        'meta': {'epoch': 0, 'iter': 1, 'seed': 1, 'cfg': 'a = 1\n',
                 'dataset_meta': {'classes': ('road', ) * 4, 'palette': [[1, 2, 3]] * 4}},
        'state_dict': STATE,
        'message_hub': {'log_scalars': {'train/loss': buffer}, 'runtime_info': {},
                        'resumed_keys': {}},
        'optimizer': {'state': {0: {'momentum_buffer': torch.ones(2)}}, 'param_groups': []},
        **changes}


def with_meta(**changes: Any) -> dict[str, Any]:
    checkpoint = training()
    checkpoint['meta'].update(changes)
    return checkpoint


def nested(kind: type, depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {'a': value} if kind is dict else kind([value])
    return value


def code_in_the_pickle(trap: str) -> Iterator[Writer]:
    attack = Call(os.system, f'touch {trap}')
    places: list[Any] = [
        attack, {FIRST: attack}, training(meta=attack), with_meta(a=[{'b': (attack, )}]),
        training(optimizer={'state': {0: attack}}), training(message_hub={'log_scalars': attack}),
        {'state_dict': collections.OrderedDict({FIRST: [attack]})}, {'model': {'b': attack}}]
    for place in places:
        yield saved(place)
        yield saved(place, legacy=True)
    for name in ('builtins.eval', 'torch.load', 'torch.storage._load_from_bytes',
                 'mmengine.fileio.load', 'runpy.run_path', 'shutil.rmtree', 'os.remove',
                 'subprocess.check_call'):
        yield archive(call_bytes(name, f'{trap}'.encode()))


def functions_that_no_training_calls(trap: str) -> Iterator[Writer]:
    endless = torch.zeros(1).expand(2**40)
    yield saved(training(a=Call(torch._tensor._rebuild_from_type_v2, set, torch.Tensor,
                                (endless, ), None)))
    yield saved(training(a=Call(torch._utils._rebuild_device_tensor_from_cpu_tensor,
                                endless, torch.float64, 'cpu', False)))
    yield saved(training(a=Call(HistoryBuffer, endless, endless)))
    yield saved(training(a=Call(np.ndarray, (10**10, ))))
    yield saved(training(a=Call(getattr, torch.Tensor, 'numpy')))
    yield saved(training(a=Call(getattr, HistoryBuffer, '__init__')))
    yield saved(training(a=Call(np.dtype, 'O8')))
    yield saved(training(a=Call(np.dtype, 'f8', False, True,
                                state=(3, '<', None, None, None, -1, -1, 63))))
    reconstruct = np.zeros(1).__reduce__()[0]
    yield saved(training(a=Call(reconstruct, np.ndarray, (10**11, ), b'b')))
    yield saved(training(a=Call(reconstruct, np.ndarray, (0, ), b'O')))
    yield saved(training(a=Call(reconstruct, torch.Tensor, (0, ), b'b')))
    yield saved(training(a=torch.ones(4, 4).to_sparse()))


def memory(trap: str) -> Iterator[Writer]:
    yield archive(b'\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.')
    zeros = parts_of({'w': torch.arange(4.0)})['data.pkl']
    yield archive(zeros, zipfile.ZIP_DEFLATED, **{'0': bytes(2 * 10**8)})
    yield archive(b'\x80\x02X' + struct.pack('<I', 10**8) + b'a' * 10**8 + b'.',
                  zipfile.ZIP_DEFLATED)
    buffer = io.BytesIO()
    torch.save({'w': torch.arange(4.0)}, buffer, _use_new_zipfile_serialization=False)
    for size in (2**28, 2**31 - 1):
        more = b'K\x04', b'J' + struct.pack('<i', size)
        yield archive(zeros.replace(*more), **{'0': bytes(16)})
        yield archive(zeros.replace(more[0] + b'\x85', more[1] + b'\x85'), **{'0': bytes(16)})
        yield raw(buffer.getvalue().replace(*more))
    endless = torch.zeros(1).expand(64, 2**40)
    for place in ({**STATE, FIRST: endless}, {**STATE, 'unknown': endless}):
        yield saved({'state_dict': place})
        yield saved({'model': place}, legacy=True)
    yield saved(training(optimizer={'state': {0: {'momentum_buffer': endless}}}))
    for size in (2**40, 2**62):
        yield raw(struct.pack('<Q', size) + b'{}')
    yield raw(struct.pack('<I', 8) + b'\x89PNG' + bytes(100))


def time_(trap: str) -> Iterator[Writer]:
    endless = torch.zeros(1).expand(2**25)  # PyTorch itself refuses many more
    for function in (set, collections.Counter, torch.Size, collections.OrderedDict):
        yield saved(training(a=Call(function, endless)))
        yield saved(training(a=Call(function, [endless])), legacy=True)
    for levels in (30, 60):
        yield archive(b'\x80\x02}K\x01\x85q\x00' + b''.join(
            b'h' + bytes([i]) + b'\x86q' + bytes([i + 1]) for i in range(levels)) + b'K\x01s.')
    yield archive(b'\x80\x02}K\x01' + b'\x85' * 10**6 + b'K\x01s.')
    yield archive(b'\x80\x02]' + b'(' * 10**6 + b'.')
    yield archive(b'\x80\x02]' + b'K\x01a' * 2 * 10**6 + b'.')
    # a tuple of 1900 numbers as a key, again and again
    yield archive(b'\x80\x02}(' + b'K\x01' * 1900 + b'tq\x00' + b'h\x00K\x01s' * 10 + b'h\x00'
                  + b'K\x01s' + b'h\x00K\x01s' * 300_000 + b'.')
    yield archive(b'\x80\x02c_codecs\nencode\nX' + struct.pack('<I', 400_000) + '\u00e9'.encode()
                  * 200_000 + b'X\x08\x00\x00\x00punycode\x86R.')
    yield archive(b'\x80\x02cbuiltins\nset\nctorch\nSize\n)RR.')


def damaged(trap: str) -> Iterator[Writer]:
    chance = random.Random(0)
    for name, content in encoded().items():
        for share in (0.0, 0.01, 0.5, 0.99):
            yield raw(content[:int(len(content) * share)])
        for _ in range(3):
            flipped = bytearray(content)
            for _ in range(3):
                flipped[chance.randrange(2000 if name != 'zip' else len(content))] ^= 0x55
            yield raw(bytes(flipped))
    yield raw(b'<!DOCTYPE html><title>Sign in</title>')
    yield raw(pickle.dumps(Call(os.system, f'touch {trap}')))
    yield lambda path: torch.jit.script(torch.nn.Linear(1, 1)).save(str(path))


def damaged_safetensors(trap: str) -> Iterator[Writer]:
    def file(header: Any, data: bytes = bytes(64), length: int | None = None) -> Writer:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return raw(struct.pack('<Q', len(text) if length is None else length) + text + data)

    good = {'dtype': 'F32', 'shape': [4, 4], 'data_offsets': [0, 64]}
    for change in (dict(shape=[2**40]), dict(shape=[-1]), dict(shape='x'), dict(dtype='F99'),
                   dict(data_offsets=[0, 2**50]), dict(data_offsets=[32, 0]),
                   dict(data_offsets=None)):
        yield file({FIRST: {**good, **change}})
    yield file({'a': good, 'b': good})
    yield file(b'{' + b'"a":{' * 20000)
    yield file(b'{not json}')
    yield file({FIRST: good}, length=10)
    for meta in ('[' * 100_000, '[1, 2]', 'not json', '{"iter": -1}'):
        yield file({'__metadata__': {'mmengine.meta': meta}, FIRST: good})


def no_state_dict(trap: str) -> Iterator[Writer]:
    for content in (None, 3, 'text', [], [torch.ones(1)], torch.ones(3), {1: torch.ones(1)},
                    {None: 1}, {}, {(1, 2): torch.ones(1)}):
        yield saved(content)
        if isinstance(content, (dict, list)) and content:
            yield saved({'meta': {}, 'state_dict': content})
    for content in (None, 3):
        yield saved({'meta': {}, 'state_dict': content})
    yield saved({'model': [1]})
    yield saved({'state_dict': {**STATE, 5: torch.ones(1)}})


def tensors(trap: str) -> Iterator[Writer]:
    shape = STATE[FIRST].shape
    ones = torch.ones(shape)
    values: list[Any] = [
        None, 'text', [1.0], {'a': 1}, torch.ones(1), torch.ones(shape, dtype=torch.int64),
        torch.ones(shape, dtype=torch.complex64), torch.ones(shape, dtype=torch.bool),
        ones.to(torch.float8_e4m3fn), ones.to_sparse(), torch.empty(shape, device='meta'),
        torch.ones(1).expand(shape), ones * float('nan'), ones * float('inf'), ones * 1e38,
        ones * 1e19, ones.double() * 1e200, -ones * 1e30]
    for value in values:
        yield saved({'state_dict': {**STATE, FIRST: value}})
    for value in (-torch.ones(8), torch.full((8, ), -1e-6), torch.full((8, ), 1e38)):
        yield saved({'state_dict': {**STATE, VARIANCE: value}})
    yield saved({'state_dict': {key: value.half() for key, value in STATE.items()}})


def metadata(trap: str) -> Iterator[Writer]:
    for kind in (list, tuple, dict):
        yield saved(with_meta(a=nested(kind, 90)))
        yield deep(kind, 1000)
    yield archive(b'\x80\x02}X\x04\x00\x00\x00meta' + b']' * 100_000 + b'a' * 99_999 + b's.')
    yield archive(b'\x80\x02}X\x04\x00\x00\x00meta]q\x00h\x00as.')
    for number in (10**30, -1, 1.5, '1', None, True):
        yield saved(with_meta(iter=number))
    for number in (10**30, -1):
        yield saved(with_meta(epoch=number))
        yield saved(with_meta(seed=number))
    for value in (None, [1], 'x', {1: 2}):
        yield saved(training(meta=value))
    yield saved(with_meta(dataset_meta=[1]))
    yield saved(training(message_hub=[1]))
    yield saved(training(message_hub={'runtime_info': 3}))
    hidden = dict.fromkeys(['items', 'keys', 'values', 'copy', 'get', '_metadata'], 3)
    for place in ('meta', 'state_dict'):
        yield saved(training(**{place: Call(collections.OrderedDict, state=hidden)}))


def deep(kind: type, depth: int) -> Writer:
    """A training's meta that holds itself nested so deep that pickle could not write it."""
    code = {list: (b']' * depth, b'a' * (depth - 1)), tuple: (b'K\x01', b'\x85' * depth),
            dict: (b'}X\x01\x00\x00\x00a' * (depth - 1) + b'}', b's' * (depth - 1))}[kind]
    return archive(b'\x80\x02}X\x04\x00\x00\x00meta}X\x01\x00\x00\x00a' + b''.join(code)
                   + b'ssX\x0a\x00\x00\x00state_dict}s.')


def configs(trap: str) -> Iterator[Writer]:
    call = f'__import__("os").system("touch {trap}")'
    base = Path(trap).with_name('base.py')
    base.write_text(call)
    texts = [call, f'a = {call}', f'a = [{call}]', f'_base_ = {str(base)!r}',
             f'import os\nos.system("touch {trap}")',
             'a = "{{ $NONE:\'+' + call.replace('"', "'") + '+\' }}"',
             'custom_imports = dict(imports=["antigravity"])', 'a = ' + '-' * 190_000 + '1',
             'a = ' + '(' * 100_000, 'a = "' + 'x' * 10**7 + '"']
    for text in texts:
        yield saved(with_meta(config=text))
    yield saved(with_meta(cfg=texts[0]))
    yield saved(training(message_hub={'runtime_info': {'cfg': texts[0]}}))
    yield saved(with_meta(config=['import os'], cfg=5))
    yield lambda path: write_checkpoint(with_meta(config=texts[0]), str(path))
    yield lambda path: (write_checkpoint(with_meta(config=texts[0]), f'{path}.safetensors'),
                        os.replace(f'{path}.safetensors', path))


def names(trap: str) -> Iterator[Writer]:
    some = torch.ones(1)
    yield saved({'backbone_net.bga.conv.0.weight': some, 'backbone.bga.conv.conv.weight': some * 2})
    yield saved({**STATE, 'a' * 10**6: some})
    yield saved({**STATE, 'module.' * 10**5 + FIRST: some})
    yield saved({**STATE, **{f'key{i}': some for i in range(20_000)}})
    yield saved({'backbone_net.semantic.' + '1.' * 10**5: some})
    yield saved({'detail.S' + '1' * 10**6 + '.weight': some})
    yield saved({**STATE, '\x00\n\u202e': some})
    yield saved({f'module._orig_mod.{key}': value for key, value in STATE.items()})
    yield saved({f'other.{key}': value for key, value in STATE.items()})
    yield archive(parts_of(training())['data.pkl'], name='DATA.PKL')


KINDS: dict[str, Callable[[str], Iterator[Writer]]] = {
    'code in the pickle': code_in_the_pickle,
    'functions that no training calls': functions_that_no_training_calls,
    'claims on memory': memory,
    'claims on time': time_,
    'damaged files, other files': damaged,
    'damaged safetensors': damaged_safetensors,
    'content without a state dict': no_state_dict,
    'tensors that are no weights': tensors,
    'metadata': metadata,
    'configs that would run': configs,
    'names of tensors': names,
}


def load(path: str, model: torch.nn.Module) -> str:
    """What became of a file: 'loaded', 'refused', or what should not be."""
    try:
        checkpoint = load_checkpoint(model, path, map_location='cpu')
        meta = checkpoint.get('meta', {})
        for text in (meta.get('config', ''), meta.get('cfg', '')):
            Config.fromstring(text, '.py')  # as MMEngine does
        copy.deepcopy(meta)
        pickle.dumps(meta)
        return 'loaded'
    except CheckpointError as error:
        return 'refused' if path in str(error) else f'the file is not named: {error}'
    except BaseException as error:
        return f'{type(error).__name__}: {str(error)[:200]}'


def megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def load_in_child(path: str, model: torch.nn.Module, pipe: Any) -> None:
    # The machine is spared whatever happens; torch.load needs a few hundred megabytes.
    resource.setrlimit(resource.RLIMIT_DATA, (4 * 10**9, resource.RLIM_INFINITY))
    held = megabytes()
    with open(os.devnull, 'w') as null:
        os.dup2(null.fileno(), 1)  # MMEngine prints all that does not fit
        pipe.send((load(path, model), megabytes() - held))


def judge(path: Path, model: torch.nn.Module) -> tuple[str, float, int]:
    """What became of a file in a process of its own, its seconds and megabytes."""
    before = sorted(os.listdir(path.parent))
    fork = multiprocessing.get_context('fork')
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=load_in_child, args=(str(path), model, theirs))
    start = time.monotonic()
    process.start()
    theirs.close()
    try:
        outcome, more = ours.recv() if ours.poll(SECONDS) else (f'{SECONDS} s were not enough', 0)
    except EOFError:
        outcome, more = 'the process died', 0
    seconds = time.monotonic() - start
    process.kill()
    process.join()
    after = sorted(os.listdir(path.parent))
    if after != before:
        outcome = f'files came or went: {set(after) ^ set(before)}'
    elif more > MEGABYTES:
        outcome = f'it took {more} MB'
    return outcome, seconds, more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--verbose', action='store_true', help='what became of each')
    args = parser.parse_args()
    torch.set_num_threads(1)  # a forked process cannot use the threads of its parent
    model = small.build()
    STATE.update(model.state_dict())
    failures, rows, count = [], [], 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, cases in KINDS.items():
            results = []
            for write in cases(str(folder / 'trap')):
                count += 1
                path = folder / f'case{count}.pth'
                write(path)
                results.append(judge(path, model))
                if args.verbose:
                    print(count, kind, *results[-1])
                if results[-1][0] not in ('loaded', 'refused'):
                    failures.append(f'{count} ({kind}): {results[-1][0]}')
                path.unlink()
                (folder / 'trap').unlink(missing_ok=True)
            outcomes, seconds, more = zip(*results, strict=True)
            rows.append((kind, len(results), outcomes.count('loaded'), outcomes.count('refused'),
                         max(seconds), max(more)))
    columns = list(zip(*rows, strict=True))
    rows.append(('all', *map(sum, columns[1:4]), max(columns[4]), max(columns[5])))
    print('| kind | files | loaded | refused | longest | most memory |')
    print('| --- | ---: | ---: | ---: | ---: | ---: |')
    for kind, files, loaded, refused, seconds, more in rows:
        print(f'| {kind} | {files} | {loaded} | {refused} | {seconds:.1f} s | {more} MB |')
    if failures:
        sys.exit('\n'.join(failures))


if __name__ == '__main__':
    main()
