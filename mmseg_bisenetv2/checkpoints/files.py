"""Checkpoint files and addresses: read without running anything in them, written whole or not.

Importing this registers the readers with MMEngine's ``CheckpointLoader``, which its runner,
``init_model`` and the inferencers all go through. A file that holds no BiSeNetV2 is passed on as
it is.
"""
import contextlib
import io
import json
import os
import pickletools
import re
import socket
import uuid
import zipfile
from collections import OrderedDict
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_rank
from mmengine.runner import CheckpointLoader

from mmseg_bisenetv2.checkpoints.layouts import (
    CheckpointError,
    check_tensor,
    convert_state_dict,
    recognise,
    unwrap,
)

ZOO = 'https://github.com/SegmentationBLWX/modelstore/releases/download/ssseg_bisenetv2/'
ZOO_NAMES = ('fcn_bisenetv2_cityscapes', 'fcn_bisenetv2fp16_cityscapes')
TIMEOUT = 60  # seconds without a byte, after which a download is given up
HASH = re.compile(r'-(?=\d*[a-f])([0-9a-f]{8,64})\.\w+$')  # with a letter: no date, no number
LEGACY = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # how torch.save began before 1.6
META = 'mmengine.meta'  # where a safetensors file keeps "meta", as JSON
MAX_INFLATION = 10  # a zip's content to its size; torch.save does not compress
MAX_TUPLE = 30000  # items of a nested tuple, counted where it is shared
MAX_ARGUMENTS = 10_000_000  # of all calls; a training checkpoint has some thousand
WALKERS = ('Counter', 'OrderedDict', 'Size', 'set')  # iterate over what they are given
# What the checkpoints of PyTorch and MMEngine call. weights_only knows more, such as functions
# that give an expanded tensor the memory it declares.
CALLS = WALKERS + (
    '_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_tensor_v3', '_rebuild_parameter',
    '_rebuild_parameter_with_state', 'device', 'encode', 'getattr', '_reconstruct', 'scalar',
    'dtype')


def read_checkpoint(path, map_location=None):
    """Reads a checkpoint file, of any layout, without executing anything in it.

    Args:
        path (str): A file of ``torch.save``, present or legacy format, or of safetensors; told
            apart by their content.
        map_location (str | torch.device | callable, optional): See ``torch.load``. None is the
            CPU: weights that were saved on a GPU load everywhere. Safetensors are always read
            to the CPU.

    Returns:
        object: The content, as ``torch.load(path, weights_only=True)`` gives it; for safetensors
        the tensors, and ``meta`` if :func:`write_checkpoint` stored it.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, is no checkpoint, or asks for anything but
            tensors and numbers to be built; with its name, and what was refused.
    """
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'{path} can not be found.')
    try:
        with open(path, 'rb') as file:
            head = file.read(64)
        if head[8:9] == b'{':
            return _read_safetensors(path)
        if head.startswith(b'PK\x03\x04'):
            _audit_zip(path)
        elif head.startswith(LEGACY):
            with open(path, 'rb') as file:
                for _ in range(5):  # magic number, version, system, content, storage keys
                    _audit(file)
        else:
            raise CheckpointError(f'it begins with {head!r}, as no checkpoint does')
        return torch.load(path, map_location or 'cpu', weights_only=True)
    except CheckpointError as error:
        raise CheckpointError(f'{path} is refused: {error}') from None
    except Exception as error:
        text = str(error) or type(error).__name__
        refused = re.search(r'GLOBAL (\S+)', text)
        if refused:  # PyTorch's own text advises to load with weights_only=False
            raise CheckpointError(f'{path} is refused: it asks to run {refused[1]}') from None
        reason = re.search(r'WeightsUnpickler error:\s*(.+)', text)
        raise CheckpointError(f'{path} is damaged, incomplete or no checkpoint: '
                              f'{reason[1] if reason else text.splitlines()[0]}') from None


def _audit_zip(path):
    """Refuses archives that grow when they are read, then looks at the pickles in them."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        size, content = os.path.getsize(path), sum(member.file_size for member in members)
        if content > MAX_INFLATION * size:
            raise CheckpointError(f'{size} bytes claim to hold {content}')
        for member in members:
            if member.filename.lower().endswith('.pkl'):
                _audit(archive.read(member))


class _Item:
    """What is known of an object that a pickle would build, without building it."""

    def __init__(self, parts=(), built=False, name=''):
        self.parts = list(parts)
        self.size = 1 + sum(part.size for part in parts)  # tuples' items, shared ones each time
        self.built = built  # by a call, or a storage: a tensor, perhaps
        self.name = name  # of a function or type

    def everything(self):
        """This and all it holds, each once."""
        seen, queue = {id(self)}, [self]
        for item in queue:
            new = [part for part in item.parts if id(part) not in seen]
            seen.update(map(id, new))
            queue += new
        return queue


def _audit(pickle):
    """Walks through a pickle as data, and refuses what costs more than its bytes.

    ``weights_only`` keeps code from running, but still builds a ``bytearray`` of any size, hashes
    tuples that hold each other, 2^n items in n bytes, and lets a ``set`` iterate over a tensor
    that is expanded to any length, among others.

    Args:
        pickle (bytes | file): One pickle; a file is left at its end.
    """
    stack, marks, memo, looked_at = [], [], {}, 0
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name == 'MARK':
            marks.append(stack)
            stack = []
        elif opcode.name in ('BINPUT', 'LONG_BINPUT'):
            memo[argument] = stack[-1]
        elif opcode.name in ('BINGET', 'LONG_BINGET'):
            stack.append(memo[argument])
        else:
            taken = []
            for item in reversed(opcode.stack_before):
                if item is pickletools.stackslice:
                    taken += stack
                    stack = marks.pop()
                elif item is not pickletools.markobject:
                    taken.append(stack.pop())
            if opcode.name == 'GLOBAL':
                stack.append(_Item(name=argument.replace(' ', '.')))
            elif opcode.name in ('REDUCE', 'NEWOBJ'):
                arguments, function = taken
                called = function.name.split('.')[-1]
                given = arguments.everything()
                looked_at += len(given)
                if looked_at > MAX_ARGUMENTS:
                    raise CheckpointError(f'its calls take more than {MAX_ARGUMENTS} arguments')
                bare = called == 'HistoryBuffer' and len(given) == 1  # its state comes after
                if called not in CALLS and not bare:
                    raise CheckpointError(f'it asks to run {function.name or "something"}')
                if called in WALKERS and any(item.built for item in given):
                    raise CheckpointError(f'it asks for one of {WALKERS} of a tensor')
                stack.append(_Item(built=True))
            elif opcode.name.startswith('TUPLE'):
                stack.append(_Item(taken))
                if stack[-1].size > MAX_TUPLE:
                    raise CheckpointError(f'it holds a nested tuple of more than {MAX_TUPLE} items')
            elif opcode.name in ('APPEND', 'APPENDS', 'SETITEM', 'SETITEMS', 'BUILD'):
                *added, container = taken  # the same object, wherever else it is held
                container.parts += added
                stack.append(container)
            else:
                built = opcode.name == 'BINPERSID'  # a storage
                stack += [_Item(built=built) for _ in opcode.stack_after]


def _safetensors():
    try:
        import safetensors.torch
    except ImportError:
        raise CheckpointError('it needs: pip install safetensors') from None
    return safetensors


def _read_safetensors(path):
    with _safetensors().safe_open(path, 'pt') as file:
        state = {key: file.get_tensor(key) for key in file.keys()}
        meta = json.loads((file.metadata() or {}).get(META, '{}'))
    return {'meta': meta, 'state_dict': state}


def _present(checkpoint, source):
    """Gives a BiSeNetV2 of any layout the shape that MMEngine's callers rely on."""
    try:
        layout = recognise(unwrap(checkpoint))
    except CheckpointError:
        layout = None
    if layout:
        try:
            if not isinstance(dict.get(checkpoint, 'meta', {}), dict):
                raise CheckpointError('"meta" is not a dictionary')
            native = layout == 'mmsegmentation' and 'state_dict' in checkpoint
            checkpoint = {'meta': {}, **(checkpoint if native else {}),
                          'state_dict': convert_state_dict(checkpoint)}
        except CheckpointError as error:
            raise CheckpointError(f'{source}: {error}') from None
    wrapped = isinstance(checkpoint, dict) and isinstance(dict.get(checkpoint, 'state_dict'), dict)
    state = checkpoint['state_dict'] if wrapped else checkpoint
    if not isinstance(state, dict):
        return checkpoint
    versions = getattr(state, '_metadata', {})
    if not isinstance(versions, dict) or not all(isinstance(v, dict) for v in versions.values()):
        versions = {}
    state = OrderedDict(dict.items(state))
    # load_hook names the file in its errors
    state._metadata = {**versions, '': {**versions.get('', {}), 'source': source}}
    return {**checkpoint, 'state_dict': state} if wrapped else state


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename, map_location=None):
    """Loads a file for MMEngine; see :func:`read_checkpoint`.

    Returns:
        dict: MMEngine's layout whole; of other layouts ``{'meta': {}, 'state_dict': ...}`` with
        our keys. The content of a file without a BiSeNetV2 as it is.
    """
    return _present(read_checkpoint(filename, map_location), filename)


@CheckpointLoader.register_scheme(prefixes=('http://', 'https://'), force=True)
def load_from_http(filename, map_location=None):
    """Loads an address for MMEngine, through the cache that MMEngine uses.

    MMEngine's own function unpickles freely, and keeps whatever arrived. Here a download enters
    the cache once it has been read as a checkpoint, and has the hash that its name ends in, if
    any (``name-0123abcd.pth``: the beginning of its SHA-256).

    Raises:
        CheckpointError: With the address, if the download fails, breaks off, stalls or is no
            checkpoint.
    """
    if get_rank() > 0:
        barrier()  # the first rank downloads for all that share its cache
    try:
        path = _download(filename)
    finally:
        if get_rank() == 0:
            barrier()
    try:
        return load_from_local(path, map_location)
    except CheckpointError as error:
        raise CheckpointError(f'{filename}: {error}. To download it again: rm {path}') from None


@CheckpointLoader.register_scheme(prefixes='sssegmentation://')
def load_from_sssegmentation(filename, map_location=None):
    """Loads one of SSSegmentation's published BiSeNetV2 for MMEngine, by its name."""
    names = {f'sssegmentation://{name}': f'{ZOO}{name}_train.pth' for name in ZOO_NAMES}
    if filename not in names:
        raise CheckpointError(f'{filename}: expected one of {", ".join(names)}')
    return load_from_http(names[filename], map_location)


def _download(url):
    """Downloads to the cache, unless it is there, and returns the file's path."""
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    name = os.path.basename(urlparse(url).path)
    path = os.path.join(folder, name)
    if os.path.isfile(path):
        return path
    digest = HASH.search(name)
    part = f'{path}.{uuid.uuid4().hex}.partial'
    timeout = socket.getdefaulttimeout()
    try:
        os.makedirs(folder, exist_ok=True)
        socket.setdefaulttimeout(TIMEOUT)
        torch.hub.download_url_to_file(url, part, digest and digest[1], progress=os.isatty(0))
        read_checkpoint(part)
        os.replace(part, path)
    except Exception as error:
        reason = str(error).replace(part, 'what arrived')
        raise CheckpointError(f'{url} was not loaded, and nothing of it kept: {reason}') from None
    finally:
        socket.setdefaulttimeout(timeout)
        _remove(part)
    return path


def _remove(path):
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


def _plain(value):
    return value.tolist() if hasattr(value, 'tolist') else str(value)


def write_checkpoint(checkpoint, path):
    """Writes a checkpoint whole or not at all; until the end, an old file stays as it was.

    Args:
        checkpoint (dict): For ``torch.save``. Of it, a path that ends in ``.safetensors`` gets
            the state dict and ``meta``.
        path (str): File to write or replace.

    Raises:
        OSError: If it cannot be written; a full disk, for example.
    """
    if path.endswith('.safetensors'):
        meta = {META: json.dumps(checkpoint.get('meta', {}), default=_plain)}
        content = _safetensors().torch.save(unwrap(checkpoint), meta)
    else:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        content = buffer.getbuffer()
    path = os.path.realpath(path)
    part = f'{path}.{uuid.uuid4().hex}.partial'
    try:
        try:  # a file without a name, which is gone if this process is killed
            nameless = os.open(os.path.dirname(path), os.O_TMPFILE | os.O_WRONLY, 0o666)
        except (AttributeError, OSError):  # not on this platform, or file system
            nameless = None
        with open(part if nameless is None else nameless, 'xb' if nameless is None else 'wb') as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
            if nameless is not None:
                # a directory to start from makes Python follow the link that it gives
                os.link(f'/proc/self/fd/{nameless}', part, src_dir_fd=nameless)
        os.replace(part, path)
    finally:
        _remove(part)


def convert_checkpoint(source, target, to='mmsegmentation', strip=False):
    """Converts a checkpoint file; see :func:`convert_state_dict`.

    Args:
        source (str): File or address.
        target (str): File; one that ends in ``.safetensors`` holds the tensors and ``meta``.
        to (str): Layout of the target.
        strip (bool): Keep what inference needs: no auxiliary heads, optimiser or message hub.

    Returns:
        tuple[dict, dict]: ``tensors``, ``parameters`` and ``bytes`` (of the tensors) before and
        after.

    Raises:
        CheckpointError: See :func:`read_checkpoint` and :func:`convert_state_dict`.
    """
    local = os.path.isfile(source)  # read without converting, so that "before" is what it holds
    content = read_checkpoint(source) if local else CheckpointLoader.load_checkpoint(source, 'cpu')
    try:
        state = unwrap(content)
    except CheckpointError as error:
        raise CheckpointError(f'{source}: {error}') from None
    if recognise(state) is None:
        raise CheckpointError(f'{source} holds no BiSeNetV2, but {", ".join([*state][:3])} ...')
    for key, value in state.items():
        check_tensor(f'{source}: {key}', value)
    before = _sizes(state)
    checkpoint = _present(content, source)
    state = unwrap(checkpoint)
    if strip:
        checkpoint = {'meta': checkpoint['meta']}
        state = {key: value for key, value in state.items()
                 if not key.startswith('auxiliary_head.')}
    state = {key: value.detach().clone(memory_format=torch.contiguous_format)
             for key, value in convert_state_dict(state, to).items()}
    write_checkpoint(dict(
        mmsegmentation={**checkpoint, 'state_dict': state},
        sssegmentation={'model': state},
        coincheung=state)[to], target)
    return before, _sizes(state)


def _sizes(state):
    buffers = ('running_mean', 'running_var', 'num_batches_tracked')
    return dict(
        tensors=len(state),
        parameters=sum(value.numel() for key, value in state.items()
                       if not key.endswith(buffers)),
        bytes=sum(value.numel() * value.element_size() for value in state.values()))
