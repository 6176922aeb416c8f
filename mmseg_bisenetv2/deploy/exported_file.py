"""Reading an exported file, as data.

What is trusted, and what is not:

* An ``.onnx`` and an ``.xml`` are read by ONNX Runtime and OpenVINO, as graphs of arithmetic; they
  cannot run Python. Control flow, functions and weights in other files are refused: no export of
  this package has any.
* A ``.pt2`` is what ``torch.export.load`` reads, and PyTorch says of it "never load data from an
  untrusted source": guards are executed as Python, symbolic sizes are evaluated by SymPy, names of
  nodes become source code, and example inputs are unpickled. So PyTorch never sees the file itself.
  It is given a new archive, built here from the members that are known, after the program has
  been read as JSON: its operators are on a list, its names are identifiers, its expressions are
  integers, symbols and arithmetic, its tensors have no more numbers than bytes. Guards, notes and
  example inputs are left out. Anything else is refused.
* What an honest file may do, a crafted one may: a network can be as large and slow as its author
  likes, and the labels mean what the metadata says.
"""
import ast
import io
import json
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from mmseg_bisenetv2.deploy.metadata import METADATA_FILE, METADATA_KEY, ExportMetadata
from mmseg_bisenetv2.deploy.runtimes import import_optional, openvino_core

# The text of the metadata, and what gives the model
ReaderResult = tuple[str | None, Callable[[], Any]]
REFUSED_OPERATORS = {  # with bodies of their own, or randomness
    'If', 'Loop', 'Scan', 'SequenceMap', 'TensorIterator', 'RandomNormal', 'RandomUniform',
    'RandomNormalLike', 'RandomUniformLike', 'Multinomial', 'Bernoulli'}
# PyTorch writes the members of an archive as they are. More than that is a few headers at most.
MAX_INFLATION = 2
# The members of a .pt2, below the archive's own name, by what is done with them.
PROGRAM = {'models/model.json', 'serialized_exported_program.json'}
TENSORS = re.compile(r'data/(weights/weight|constants/tensor)_\d+')
TENSOR_CONFIGS = {'data/weights/model_weights_config.json',
                  'data/constants/model_constants_config.json'}
PICKLES = {'data/weights/model.pt', 'data/constants/model.pt', 'serialized_state_dict.pt',
           'serialized_constants.pt', 'serialized_example_inputs.pt'}  # of PyTorch 2.8 and before
EXAMPLE_INPUTS = 'data/sample_inputs/model.pt'
METADATA = {f'extra/{METADATA_FILE}', f'extra_files/{METADATA_FILE}'}
MARKS = {'archive_format', 'archive_version', 'byteorder', 'version', '.data/version',
         '.data/serialization_id'}
# What a program may call: sizes, and what convolutional networks are made of.
OPERATOR = re.compile(r'_operator\.(add|sub|mul|floordiv|mod|neg|eq|ne|ge|gt|le|lt)'
                      r'|torch\.ops\.aten\.(\w+?)_?\.\w+')
ATEN = set('''
    _assert_tensor_metadata abs adaptive_avg_pool2d add addcmul amax amin avg_pool2d batch_norm cat
    celu clamp clamp_max clamp_min clone contiguous conv2d convolution detach div dropout elu exp
    expand feature_dropout flatten ge gelu glu group_norm gt hardsigmoid hardswish hardtanh
    instance_norm layer_norm le leaky_relu log1p log_sigmoid lt max_pool2d maximum mean minimum mish
    mul native_batch_norm native_group_norm neg permute pow prelu relu relu6 reshape rsqrt rsub selu
    sigmoid silu softmax softplus split sqrt squeeze sub sum sym_size tanh threshold to transpose
    unsqueeze upsample_bilinear2d upsample_nearest2d var var_mean view where'''.split())
# Names become Python source. Only these keys hold paths of names, which do not.
NAME, PATH = re.compile(r'\w*', re.ASCII), re.compile(r'[\w.+]*', re.ASCII)
PATH_KEYS = {'fqn', 'target', 'parameter_name', 'buffer_name', 'tensor_constant_name',
             'torch_version'}
# Powers and shifts are not among them: a few characters of those make numbers that fill the memory.
EXPRESSION_NODES = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Add, ast.Sub, ast.Mult,
                    ast.FloorDiv, ast.Mod, ast.USub, ast.cmpop, ast.Load, ast.keyword)
FUNCTIONS = {'Symbol', 'Integer', 'Add', 'Mul', 'FloorDiv', 'CeilDiv', 'Mod', 'PythonMod', 'Max',
             'Min'}
SYMBOL = re.compile(r'[su]\d+')


def read_exported_file(path: str | Path) -> tuple[ExportMetadata, Any]:
    """Reads a file that tools/export.py wrote.

    Args:
        path: Ends in .onnx, .xml or .pt2.

    Returns:
        Its metadata, and the ONNX, OpenVINO or torch.export model.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is damaged, refused, or of another origin; with its name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'No file {path}')
    reader = {'.onnx': _read_onnx, '.xml': _read_openvino, '.pt2': _read_program}[path.suffix]
    try:
        text, load = reader(path)
        metadata = ExportMetadata.from_json(text)
        if metadata.precision != 'fp32' and path.suffix != '.xml':
            raise ValueError(f'it says {metadata.precision}, which only an OpenVINO file can be')
        return metadata, load()
    except ImportError:
        raise
    except Exception as error:  # Each library raises its own.
        raise ValueError(f'{path} cannot be read: {short_reason(error)}') from error


def short_reason(error: Exception) -> str:
    """What an exception of another library says, in one line."""
    text = ' '.join(str(error).split())
    return (text if ' ' in text else f'{type(error).__name__} {text}')[:400]


def _read_onnx(path: Path) -> ReaderResult:
    model = import_optional('onnx').load(path, load_external_data=False)
    attributes = [item for node in model.graph.node for item in node.attribute]
    tensors = [*model.graph.initializer, *(item.t for item in attributes)]
    if any(tensor.data_location or tensor.external_data for tensor in tensors):
        raise ValueError('it has weights in other files')
    if model.functions or model.graph.sparse_initializer or any(
            item.HasField('g') or item.graphs or item.tensors or item.HasField('sparse_tensor')
            for item in attributes):
        raise ValueError('it has functions or sparse weights, which no exported network has')
    _refuse_operators(node.op_type for node in model.graph.node)
    text = {entry.key: entry.value for entry in model.metadata_props}.get(METADATA_KEY)
    return text, lambda: model


def _read_openvino(path: Path) -> ReaderResult:
    model = openvino_core().read_model(path)
    _refuse_operators(operator.get_type_name() for operator in model.get_ops())
    has_text = model.has_rt_info(METADATA_KEY)
    return model.get_rt_info(METADATA_KEY).astype(str) if has_text else None, lambda: model


def _refuse_operators(names: Iterable[str]) -> None:
    if found := REFUSED_OPERATORS & set(names):
        raise ValueError(f'it has the operators {sorted(found)}, which no exported network has')


def _read_program(path: Path) -> ReaderResult:
    members = _checked_members(path)
    text = next((data for name, data in members.items() if name.endswith(METADATA_FILE)), None)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, 'w') as file:
        for name, data in members.items():
            file.writestr(name, data)
    archive.seek(0)
    return None if text is None else text.decode(), lambda: torch.export.load(archive)


def _checked_members(path: Path) -> dict[str, bytes]:
    """The members of a .pt2 by name, each known and checked."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        size, content = path.stat().st_size, sum(entry.file_size for entry in entries)
        if content > MAX_INFLATION * size:
            raise ValueError(f'{size} bytes claim to hold {content}')
        # All members stand in a folder, whose name is that of the file as it was written. PyTorch
        # 2.7 had no such folder.
        folder = '' if 'version' in archive.namelist() else 'model/'
        members = {entry.filename.partition('/')[2] if folder else entry.filename:
                   archive.read(entry) for entry in entries}
    if len({name.casefold() for name in members}) != len(entries):
        raise ValueError('members of its archive have the same name, in upper or lower case')
    sizes = {name: len(data) for name, data in members.items()}
    return {folder + name: _checked_member(name, data, sizes) for name, data in members.items()}


def _checked_member(name: str, data: bytes, sizes: dict[str, int]) -> bytes:
    if name in PROGRAM:
        return json.dumps(_checked_program(json.loads(data))).encode()
    if name in TENSOR_CONFIGS:
        folder = name.rpartition('/')[0]
        for entry in json.loads(data)['config'].values():
            if entry['use_pickle']:
                raise ValueError(f'{name} holds pickled objects')
            numel = math.prod(side['as_int'] for side in entry['tensor_meta']['sizes'])
            if not 0 <= numel <= sizes[f'{folder}/{entry["path_name"]}']:
                raise ValueError(f'a tensor of {entry["path_name"]} is larger than its bytes')
    elif name in PICKLES:
        try:
            torch.load(io.BytesIO(data), weights_only=True)
        except pickle.UnpicklingError:  # Its text advises to load with weights_only=False.
            raise ValueError(f'{name} holds more than tensors') from None
    elif name == EXAMPLE_INPUTS:
        return b''  # Nobody needs them.
    elif name not in METADATA | MARKS and not TENSORS.fullmatch(name):
        raise ValueError(f'its archive has a member {name[:80]!r}, which no exported network has')
    return data


def _checked_program(program: dict) -> dict:
    """The program without guards and notes; see the module for what it may hold."""
    module = program['graph_module']
    # The guards say that the sizes are in range, which range_constraints say, too.
    program['guards_code'] = []
    module['metadata'] = {}
    module['module_call_graph'] = module['module_call_graph'][:1]
    if module.get('treespec_namedtuple_fields'):
        raise ValueError('its program has named tuples')
    for node in module['graph']['nodes']:
        node['metadata'] = {}
        target = OPERATOR.fullmatch(node['target'])
        if not target or (target[2] and target[2] not in ATEN):
            raise ValueError(f'it has the operator {node["target"][:80]!r}, which no exported '
                             'network has')
    for entry in module['module_call_graph']:
        for key in ('in_spec', 'out_spec'):
            _check_tree(json.loads(entry['signature'][key])[1])
    _check_names(program)
    return program


def _check_names(value: Any, key: str = '') -> None:
    """Raises unless every text is an identifier or a path of them, or a small expression."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check_names(name)
            _check_names(item, name)
        if value.keys() & {'as_graph', 'as_operator', 'as_custom_obj'}:
            raise ValueError('its program holds other programs or objects')
    elif isinstance(value, list):
        for item in value:
            _check_names(item)
    elif isinstance(value, str):
        if key == 'expr_str':
            _check_expression(value)
        elif key not in ('in_spec', 'out_spec') and not (
                PATH if key in PATH_KEYS else NAME).fullmatch(value):
            raise ValueError(f'its program has a name {value[:80]!r}')


def _check_tree(spec: dict) -> None:
    """Raises unless the structure of inputs or outputs is of tuples, lists and empty tables."""
    if spec['type'] not in (None, 'builtins.tuple', 'builtins.list', 'builtins.dict') or (
            spec['context'] not in (None, 'null', '[]')):
        raise ValueError(f'its program takes or gives {str(spec["type"])[:80]!r}')
    for child in spec['children_spec']:
        _check_tree(child)


def _check_expression(text: str) -> None:
    """Raises unless it is made of integers, symbols, comparisons and arithmetic."""
    if len(text) > 2000:
        raise ValueError('its program has an expression of more than 2000 characters')
    for node in ast.walk(ast.parse(text, mode='eval')):
        if isinstance(node, ast.Constant):  # a number, or the name and the kind of a symbol
            good = (SYMBOL.fullmatch(node.value) if isinstance(node.value, str) else
                    isinstance(node.value, int) and abs(node.value) < 2**63)
        elif isinstance(node, ast.Call):
            good = isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS
        elif isinstance(node, ast.Name):
            good = node.id in FUNCTIONS or SYMBOL.fullmatch(node.id)
        else:
            good = isinstance(node, EXPRESSION_NODES)
        if not good:
            raise ValueError(f'its program has the expression {text[:80]!r}')
