"""Reading an exported file, as data.

What is trusted, and what is not:

* An ``.onnx`` and an ``.xml`` are read by ONNX Runtime and OpenVINO, as graphs of arithmetic; they
  cannot run Python. Control flow, functions and weights in other files are refused: no export of
  this package has any.
* A ``.pt2`` is what ``torch.export.load`` reads, and PyTorch says of it "never load data from an
  untrusted source": guards are executed as Python, symbolic sizes are evaluated by SymPy, names of
  nodes become source code, and example inputs are unpickled. So PyTorch never sees the file itself.
  It is given a new archive, built here from the members that are known, once each and without
  example inputs. The program has been read as JSON before: it is refused unless its operators are
  on a list, its names are identifiers, its expressions are integers, symbols and arithmetic, and
  its tensors have no more numbers than bytes. Its guards and notes are emptied. Pickles of older
  PyTorch pass the audit of checkpoints, too.
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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from mmseg_bisenetv2.checkpoints.audit import audit_zip
from mmseg_bisenetv2.deploy.metadata import METADATA_FILE, METADATA_KEY, ExportMetadata
from mmseg_bisenetv2.deploy.runtimes import import_optional, openvino_core

REFUSED_OPERATORS = {  # with bodies of their own, or randomness
    'If', 'Loop', 'Scan', 'SequenceMap', 'TensorIterator', 'RandomNormal', 'RandomUniform',
    'RandomNormalLike', 'RandomUniformLike', 'Multinomial', 'Bernoulli'}
# PyTorch writes the members of an archive as they are. More than that is a few headers at most.
MAX_INFLATION = 2
# The members of a .pt2, below the archive's own name, by what is done with them.
PROGRAM = {'models/model.json', 'serialized_exported_program.json'}
TENSOR_CONFIGS = {'data/weights/model_weights_config.json',
                  'data/constants/model_constants_config.json'}
PICKLES = {'data/weights/model.pt', 'data/constants/model.pt', 'serialized_state_dict.pt',
           'serialized_constants.pt', 'serialized_example_inputs.pt'}  # of PyTorch 2.8 and before
EXAMPLE_INPUTS = 'data/sample_inputs/model.pt'
METADATA = {f'extra/{METADATA_FILE}', f'extra_files/{METADATA_FILE}'}
PLAIN = re.compile(r'data/(weights/weight|constants/tensor)_\d+|archive_format|archive_version'
                   r'|byteorder|(\.data/)?version|\.data/serialization_id')
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
# Powers and shifts are not among them, nor texts and tuples, which can be multiplied: a few
# characters of those fill the memory.
EXPRESSION_NODES = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.Load,
                    ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.USub, ast.cmpop)
EXPRESSION_NAME = re.compile(
    r'[su]\d+|Integer|Add|Mul|FloorDiv|CeilDiv|Mod|PythonMod|Max|Min', re.ASCII)
SYMBOL = re.compile(r"\bSymbol\('([su]\d+)'(, (positive|integer)=True)*\)", re.ASCII)
MAX_EXPRESSION = 2000  # characters; the longest of BiSeNetV2 has 226


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
    read = {'.onnx': _read_onnx, '.xml': _read_openvino, '.pt2': _read_program}[path.suffix]
    try:
        text, model = read(path)
        metadata = ExportMetadata.from_json(text)
        if metadata.precision != 'fp32' and path.suffix != '.xml':
            raise ValueError(f'it says {metadata.precision}, which only an OpenVINO file can be')
        return metadata, model
    except ImportError:
        raise
    except Exception as error:  # Each library raises its own.
        raise ValueError(f'{path} cannot be read: {short_reason(error)}') from error


def short_reason(error: Exception) -> str:
    """What an exception of another library says, in one line."""
    text = ' '.join(str(error).split())
    return (text if ' ' in text else f'{type(error).__name__} {text}')[:400]


def _read_onnx(path: Path) -> tuple[str | None, Any]:
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
    return {entry.key: entry.value for entry in model.metadata_props}.get(METADATA_KEY), model


def _read_openvino(path: Path) -> tuple[str | None, Any]:
    model = openvino_core().read_model(path)
    _refuse_operators(operator.get_type_name() for operator in model.get_ops())
    has_text = model.has_rt_info(METADATA_KEY)
    return model.get_rt_info(METADATA_KEY).astype(str) if has_text else None, model


def _refuse_operators(names: Iterable[str]) -> None:
    if found := REFUSED_OPERATORS & set(names):
        raise ValueError(f'it has the operators {sorted(found)}, which no exported network has')


def _read_program(path: Path) -> tuple[str | None, Any]:
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
    text, known = None, io.BytesIO()
    with zipfile.ZipFile(known, 'w') as file:
        for name, data in members.items():
            if name in PROGRAM:
                data = json.dumps(_checked_program(json.loads(data))).encode()
            elif name in TENSOR_CONFIGS:
                _check_tensors(name, members)
            elif name in PICKLES:
                _check_pickle(name, data)
            elif name in METADATA:
                text = data.decode()
            elif name == EXAMPLE_INPUTS:
                data = b''  # Nobody needs them, but PyTorch expects the member.
            elif not PLAIN.fullmatch(name):
                continue
            file.writestr(folder + name, data)
    known.seek(0)
    return text, torch.export.load(known)


def _check_tensors(name: str, members: dict[str, bytes]) -> None:
    """Raises if a tensor is pickled, or larger than the member that holds its bytes."""
    for entry in json.loads(members[name])['config'].values():
        if entry['use_pickle']:
            raise ValueError(f'{name} holds pickled objects')
        numbers = math.prod(side['as_int'] for side in entry['tensor_meta']['sizes'])
        content = members[f'{name.rpartition("/")[0]}/{entry["path_name"]}']
        if not 0 <= numbers <= len(content):
            raise ValueError(f'a tensor of {entry["path_name"]} is larger than its bytes')


def _check_pickle(name: str, data: bytes) -> None:
    """Raises if PyTorch, which would load anything here, would find more than tensors."""
    audit_zip(io.BytesIO(data))
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except pickle.UnpicklingError:  # Its text advises to load with weights_only=False.
        raise ValueError(f'{name} holds more than tensors') from None


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
    good = len(text) <= MAX_EXPRESSION and all(
        isinstance(node, EXPRESSION_NODES)
        or (isinstance(node, ast.Constant) and isinstance(node.value, int))
        or (isinstance(node, ast.Name) and EXPRESSION_NAME.fullmatch(node.id))
        for node in ast.walk(ast.parse(SYMBOL.sub(r'\1', text), mode='eval')))
    if not good:
        raise ValueError(f'its program has the expression {text[:80]!r}')
