"""The config that a checkpoint carries: kept as far as it is data, never run.

MMEngine keeps the text of a training's config in its checkpoints, and hands it to
``Config.fromstring``, which runs it as Python: the runner when it resumes, an inferencer that is
given weights and no config. Literals alone are no safety either, for they tell MMEngine what to
build: ``dict(type='os.system', command=...)`` imports ``os`` and calls ``system``,
``custom_imports`` and ``_base_`` run files, ``class_weight='http://...pkl'`` is unpickled, and
``'{{ $HOME }}'`` is replaced before the text is run. So the text is parsed, and what is kept is
written anew.
"""
import ast
import functools
import logging
import math
import re
from typing import Any

import mmengine.registry
from mmengine.logging import print_log
from mmengine.registry import Registry

MAX_LENGTH = 200_000  # characters; ours have 12,000, and Python's parser takes 100 bytes for each
SCOPES = ('mmengine', 'mmseg', 'mmseg_bisenetv2')
# Keys whose text MMEngine looks up in a registry, and imports if it is not in there. MMCV's layers
# do so with "padding_mode" too, unless it is one that PyTorch's convolutions have themselves.
LOOKED_UP = ('type', 'collate_fn')
PADDING_MODES = ('zeros', 'circular')
# Not kept, like "_base_" and all that begins with an underscore: MMEngine imports or opens what
# they name, or keeps them to itself.
DROPPED = ('custom_imports', 'filename', 'text', 'pretty_text', 'env_variables')
HARMLESS_IMPORTS = (dict(imports=['mmseg_bisenetv2'], allow_failed_imports=False),
                    dict(imports=['mmseg_bisenetv2']))


def keep_literals(content: dict[str, Any], source: str) -> None:
    """Replaces the config texts in a checkpoint's content by what :func:`literal_config` keeps.

    The texts are those that MMEngine 0.10.7 runs: ``meta['config']`` (its runner), ``meta['cfg']``
    and ``message_hub['runtime_info']['cfg']`` (its inferencer). What is dropped is logged.

    Args:
        content: Changed in place; "meta", "message_hub" and "runtime_info" are dictionaries.
        source: The file's name, for the log.
    """
    meta = content.get('meta', {})
    runtime_info = content.get('message_hub', {}).get('runtime_info', {})
    for place, key in ((meta, 'config'), (meta, 'cfg'), (runtime_info, 'cfg')):
        if key in place:
            text, dropped = literal_config(place.pop(key))
            if text:
                place[key] = text
            if dropped:
                print_log(f'{source}: of the config that it carries, {", ".join(dropped)} left '
                          'out: a checkpoint is data, and nothing in it is run or imported',
                          logger='current', level=logging.WARNING)


def literal_config(text: Any) -> tuple[str, list[str]]:
    """Reduces the text of a config to assignments of harmless literals.

    Args:
        text: As ``Config.pretty_text`` writes it: ``name = value``, where a value is a number,
            text, True, False, None, list, tuple, dictionary or ``dict(...)`` of such.

    Returns:
        The text written anew, with the same values, and the names of what is not in it.
    """
    if not isinstance(text, str) or len(text) > MAX_LENGTH:
        return '', ['all']
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return '', ['all']
    kept: dict[str, Any] = {}
    dropped = []
    for statement in statements:
        name = f'line {statement.lineno}'
        try:
            if not isinstance(statement, ast.Assign) or not isinstance(
                    statement.targets[0], ast.Name) or len(statement.targets) > 1:
                raise ValueError('not an assignment to a name')
            name = statement.targets[0].id
            value = _literal(statement.value)
            if name == 'custom_imports' and value in HARMLESS_IMPORTS:
                continue  # the package is imported already
            if name.startswith('_') or name in DROPPED:
                raise ValueError('not kept')
            kept[name] = _harmless(name, value)
        except (ValueError, RecursionError):
            kept.pop(name, None)
            dropped.append(name)
    # MMEngine replaces what stands in double braces, also within a text.
    lines = (f'{name} = {value!r}\n'.replace('{{', '{\\x7b') for name, value in kept.items())
    return ''.join(lines), dropped


def _literal(node: ast.expr) -> Any:
    """The value of a literal, or of ``dict(...)`` with literals.

    Raises:
        ValueError: If it is anything else.
    """
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id != 'dict' or node.args:
            raise ValueError('a call')
        keys = [keyword.arg for keyword in node.keywords]
        if None in keys:
            raise ValueError('a dictionary to unpack')
        return {key: _literal(keyword.value) for key, keyword in
                zip(keys, node.keywords, strict=True)}
    if isinstance(node, ast.Dict):
        if not all(isinstance(key, ast.Constant) for key in node.keys):
            raise ValueError('a key that is no constant')
        return {_literal(key): _literal(value) for key, value in
                zip(node.keys, node.values, strict=True) if key}
    if isinstance(node, ast.List):
        return [_literal(element) for element in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_literal(element) for element in node.elts)
    value = ast.literal_eval(node)
    if not isinstance(value, (str, int, float, type(None))) or (
            isinstance(value, float) and not math.isfinite(value)):
        raise ValueError('another constant')
    return value


def _harmless(name: str, value: Any) -> Any:
    """A top-level value of a config as it can be handed to MMEngine.

    Raises:
        ValueError: If building from it could import, open or run anything.
    """
    if name == 'default_scope' and value not in SCOPES:
        raise ValueError('an unknown scope')
    if name == 'visualizer' and isinstance(value, dict):
        # Backends write to a folder of their own, or send pictures elsewhere.
        value = {key: item for key, item in value.items()
                 if key not in ('vis_backends', 'save_dir')}
    if name == 'model':
        value = _without_initial_weights(value)
        _check_model(value)
    _check_looked_up(value, _registered_names())
    return value


def _without_initial_weights(value: Any) -> Any:
    """Leaves out where a training's first weights came from: the checkpoint has newer ones."""
    if isinstance(value, dict):
        return {key: _without_initial_weights(item) for key, item in value.items()
                if key not in ('init_cfg', 'pretrained')}
    if isinstance(value, (list, tuple)):
        return type(value)(_without_initial_weights(item) for item in value)
    return value


def _check_model(value: Any) -> None:
    """Refuses texts in a model's config that could be a file, an address or a module."""
    if isinstance(value, dict):
        if value.get('padding_mode', 'zeros') not in {*PADDING_MODES, *_registered_names()}:
            raise ValueError('a mode of padding that is not registered')
        for key, item in value.items():
            if key not in LOOKED_UP or not isinstance(item, str):
                _check_model(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_model(item)
    elif isinstance(value, str) and not re.fullmatch(r'[\w\- ]*', value):
        raise ValueError('a text that may be a file or an address')


def _check_looked_up(value: Any, registered: set[str]) -> None:
    """Refuses names that MMEngine would import because they are in no registry."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in LOOKED_UP and isinstance(item, str):
                scope, _, bare = item.rpartition('.')
                if bare not in registered or scope not in ('', *SCOPES):
                    raise ValueError('a name that is not registered')
            if key == '_scope_' and item not in SCOPES:
                raise ValueError('an unknown scope')
            _check_looked_up(item, registered)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_looked_up(item, registered)


@functools.cache
def _registered_names() -> set[str]:
    """The names in all registries of MMEngine, MMSegmentation and this package."""
    names: set[str] = set()
    queue = [item for item in vars(mmengine.registry).values() if isinstance(item, Registry)]
    for registry in queue:
        registry.import_from_location()
        names.update(registry.module_dict)
        queue += registry.children.values()
    return names
