"""Looks at the pickle of a checkpoint as data, before PyTorch builds what it describes.

``torch.load(weights_only=True)`` comes after this audit. What a hostile file may try, what
``weights_only`` does about it, and what the audit adds:

- A call runs code (``os.system``, ``eval``): refused, by a list of functions; nothing to add.
- ``getattr``, ``numpy.dtype`` or a NumPy array is asked for, which MMEngine's logs need:
  ``compat`` allows what these logs hold and nothing else; nothing to add.
- A tensor is larger than its storage, or the storage than the file: refused; nothing to add.
- A zip of zeros inflates to any size: inflated. Here the content is at most 10 times the file.
- A function allocates what it is told (``bytearray(2**31)``, the copy of an expanded tensor) or
  calls another one (``_rebuild_from_type_v2``): called. Here only those are called that training
  checkpoints call.
- ``set(t)``, ``OrderedDict(t)`` or a call's ``*t`` goes through a tensor that is expanded to any
  length: called. Here arguments are tuples of plain values.
- A text is encoded by a codec of quadratic time (punycode): called. Here only as latin1.
- A dictionary's key is a tuple of tuples that share their items, 2^n items in n bytes: hashed.
  Here a nested tuple has at most 2,000 items.
- A few megabytes of instructions: carried out. Here at most 500,000.
"""
import os
import pickletools
import zipfile
from dataclasses import dataclass
from typing import IO

from mmseg_bisenetv2.checkpoints.layouts import CheckpointError

MAX_INFLATION = 10  # torch.save does not compress, so an honest file holds its own size
MAX_TUPLE = 2_000  # the longest in practice are class names, 1,203 of LVIS
MAX_INSTRUCTIONS = 500_000  # a training checkpoint of BiSeNetV2 has 25,000
PLAIN_ARGUMENTS = ('Counter', 'Size', 'set')  # these iterate over their argument
ALLOWED_CALLS = (
    *PLAIN_ARGUMENTS, 'OrderedDict', '_rebuild_tensor', '_rebuild_tensor_v2',
    '_rebuild_tensor_v3', '_rebuild_parameter', '_rebuild_parameter_with_state', 'device',
    'encode', 'getattr', '_reconstruct', 'scalar', 'dtype', 'HistoryBuffer')
# The objects that these instructions add to are still on the stack when they are done.
ADDING = ('APPEND', 'APPENDS', 'SETITEM', 'SETITEMS', 'BUILD')


@dataclass
class PickledObject:
    """What is known of an object that a pickle describes, without building it."""

    value: object = None  # of a string: itself; of a function or class: its name
    items: 'list[PickledObject] | None' = None  # of a tuple
    size: int = 1  # of a tuple: all items of nested tuples, shared ones counted each time
    is_built: bool = False  # by a call, or a storage: perhaps a tensor


def audit_zip(file: str | IO[bytes]) -> None:
    """Refuses an archive that grows when it is read, then audits the pickles in it."""
    size = os.path.getsize(file) if isinstance(file, str) else file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        content = sum(member.file_size for member in members)
        if content > MAX_INFLATION * size:
            raise CheckpointError(f'{size} bytes claim to hold {content}')
        for member in members:
            if member.filename.lower().endswith('.pkl'):
                audit_pickle(archive.read(member))


def audit_pickle(pickle: bytes | IO[bytes]) -> None:
    """Refuses a pickle that costs more than its bytes; see the head of this file.

    Args:
        pickle: One pickle; a file is left at its end.

    Raises:
        CheckpointError: With what was refused.
    """
    # Instructions that weights_only refuses (DUP, POP, PUT, ...) need not be followed exactly.
    stack: list[PickledObject] = []
    stacks_below_marks: list[list[PickledObject]] = []
    memo: dict[object, PickledObject] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
        name = opcode.name
        if count == MAX_INSTRUCTIONS:
            raise CheckpointError(f'its pickle has more than {MAX_INSTRUCTIONS} instructions')
        if name == 'MARK':
            stacks_below_marks.append(stack)
            stack = []
            continue
        if name in ('BINPUT', 'LONG_BINPUT'):
            memo[argument] = stack[-1]
            continue
        if name in ('BINGET', 'LONG_BINGET'):
            stack.append(memo[argument])
            continue
        taken: list[PickledObject] = []
        for kind in reversed(opcode.stack_before):
            if kind is pickletools.stackslice:
                taken += stack
                stack = stacks_below_marks.pop()
            elif kind is not pickletools.markobject:
                taken.append(stack.pop())
        if name == 'GLOBAL':
            stack.append(PickledObject(str(argument).replace(' ', '.')))
        elif name in ('REDUCE', 'NEWOBJ'):
            _audit_call(*reversed(taken))
            stack.append(PickledObject(is_built=True))
        elif name.endswith('TUPLE') or name.startswith('TUPLE'):
            items = taken if name == 'TUPLE' else taken[::-1]
            size = 1 + sum(item.size for item in items)
            if size > MAX_TUPLE:
                raise CheckpointError(f'it holds a nested tuple of more than {MAX_TUPLE} items')
            stack.append(PickledObject(items=items, size=size))
        elif name in ADDING:
            stack.append(taken[-1])
        else:
            value = argument if isinstance(argument, str) else None
            stack += [PickledObject(value, is_built=name == 'BINPERSID')
                      for _ in opcode.stack_after]


def _audit_call(function: PickledObject, arguments: PickledObject) -> None:
    name = str(function.value or 'something')
    called = name.split('.')[-1]
    if called not in ALLOWED_CALLS or arguments.items is None:
        raise CheckpointError(f'it asks to run {name}')
    if called in ('OrderedDict', 'HistoryBuffer') and arguments.items:
        raise CheckpointError(f'it asks to run {name} with arguments')  # their content comes later
    if called in PLAIN_ARGUMENTS and any(item.is_built for item in arguments.items):
        raise CheckpointError(f'it asks for a {called} of a tensor')
    if called == 'encode' and [item.value for item in arguments.items[1:]] != ['latin1']:
        raise CheckpointError('it asks to encode a text as something other than latin1')
