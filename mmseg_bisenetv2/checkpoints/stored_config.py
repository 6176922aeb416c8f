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
# Variables that are not kept, like "_base_" and all that begins with an underscore: MMEngine
# imports what the first names, and has uses of its own for the others.
DROPPED = ('custom_imports', 'filename', 'text', 'pretty_text', 'env_variables')
HARMLESS_IMPORTS = (dict(imports=['mmseg_bisenetv2'], allow_failed_imports=False),
                    dict(imports=['mmseg_bisenetv2']))
# Left out without a word: where a training's first weights came from, since the checkpoint has
# newer ones, and where its pictures were drawn.
LEFT_OUT = dict(model=('init_cfg', 'pretrained'), visualizer=('vis_backends', 'save_dir'))


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
        text: As ``Config.pretty_text`` writes it: ``name = value``, where a value is a literal or
            a ``dict(...)`` of literals, which is ``dict({...})`` where a key is no name.

    Returns:
        The text written anew, with the same values, and the names of what is not in it.
    """
    if not isinstance(text, str) or len(text) > MAX_LENGTH:
        return '', ['all']
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return '', ['all']
    kept: dict[str, str] = {}
    dropped = []
    for statement in statements:
        name = f'line {statement.lineno}'
        try:
            if not isinstance(statement, ast.Assign) or not isinstance(
                    statement.targets[0], ast.Name) or len(statement.targets) > 1:
                raise ValueError('not an assignment to a name')
            name = statement.targets[0].id
            value = ast.literal_eval(_DictCallsAsLiterals().visit(statement.value))
            if name == 'custom_imports' and value in HARMLESS_IMPORTS:
                continue  # the package is imported already
            if name.startswith('_') or name in DROPPED or (
                    name == 'default_scope' and value not in SCOPES):
                raise ValueError('not kept')
            kept[name] = repr(_harmless(value, name))
            ast.literal_eval(kept[name])  # infinity, for example, has no literal
        except (ValueError, TypeError, RecursionError):
            kept.pop(name, None)
            dropped.append(name)
    # MMEngine replaces what stands in double braces, also within a text.
    lines = (f'{name} = {value}\n'.replace('{{', '{\\x7b') for name, value in kept.items())
    return ''.join(lines), dropped


class _DictCallsAsLiterals(ast.NodeTransformer):
    """Turns ``dict(a=1)`` into ``{'a': 1}``, and ``dict({7: 0})`` into ``{7: 0}``."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.func, ast.Name) or node.func.id != 'dict':
            raise ValueError('a call')
        if node.args:
            if len(node.args) > 1 or node.keywords or not isinstance(node.args[0], ast.Dict):
                raise ValueError('not of literals')
            return node.args[0]
        # without a name it is a dictionary to unpack, which literal_eval refuses
        keys: list[ast.expr | None] = [
            ast.Constant(each.arg) if each.arg else None for each in node.keywords]
        return ast.Dict(keys, [each.value for each in node.keywords])


def _harmless(value: Any, variable: str) -> Any:
    """A part of a config as it can be handed to MMEngine.

    Args:
        value: A literal.
        variable: Name of the variable that it is in. A model has no texts that could be a file,
            an address or a module.

    Raises:
        ValueError: If building from it could import, open or run anything.
    """
    if isinstance(value, dict):
        kept = {}
        for key, item in value.items():
            if key in LEFT_OUT.get(variable, ()):
                continue
            if key == '_scope_' and item not in SCOPES:
                raise ValueError('an unknown scope')
            is_looked_up = key in LOOKED_UP or (
                variable == 'model' and key == 'padding_mode' and item not in PADDING_MODES)
            if is_looked_up and isinstance(item, str):
                scope, _, name = item.rpartition('.')
                if scope not in ('', *SCOPES) or name not in _registered_names():
                    raise ValueError('a name that is not registered')
                kept[key] = item
            else:
                kept[key] = _harmless(item, variable)
        return kept
    if isinstance(value, (list, tuple)):
        return type(value)(_harmless(item, variable) for item in value)
    if variable == 'model' and isinstance(value, (str, bytes)) and not re.fullmatch(
            r'[\w\- ]*', str(value)):
        raise ValueError('a text that may be a file or an address')
    return value


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
