"""Exported files as a stranger may craft them, and what Predictor does with each.

    python tests/deploy/crafted.py FOLDER              # all of them; a table by kind, in Markdown
    python tests/deploy/crafted.py FOLDER --every 5    # a fifth of them
    python tests/deploy/crafted.py FOLDER --json       # a line of JSON for each

Each file is opened, and predicts one picture, in a process of its own, which must not take more
than 15 seconds of the processor and 1 GB. Payloads would write the file ``harmed``.
"""
import argparse
import collections
import io
import json
import os
import pickle
import random
import signal
import sys
import warnings
import zipfile
from pathlib import Path

import onnx
import onnxruntime  # noqa: F401 - imported once, before the processes part
import openvino
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from small import build, image

from mmseg_bisenetv2.deploy import Predictor, converters
from mmseg_bisenetv2.deploy.metadata import METADATA_FILE, METADATA_KEY, ExportMetadata
from mmseg_bisenetv2.deploy.network import FrameNetwork

SECONDS, MEGABYTES = 15, 1000
SIZE = (64, 96)
HARM = '__import__("pathlib").Path("harmed").touch()'
PROGRAM = 'net/models/model.json'


class Harmful:
    def __reduce__(self):
        return exec, (HARM, )


class Large:
    def __reduce__(self):
        return bytearray, (2**31, )


def write_originals(folder):
    """Honest files, that the others are made of."""
    network = FrameNetwork(build())
    palette = tuple((i, 2, 3) for i in range(4))
    metadata = ExportMetadata(('a', 'b', 'c', 'd'), palette, config='small.py')
    fixed = ExportMetadata(('a', 'b', 'c', 'd'), palette, config='small.py', size=SIZE)
    for model, name, kept in (
            (converters.onnx_model(network, metadata), 'net.onnx', metadata),
            (converters.openvino_model(network, metadata), 'net.xml', metadata),
            (converters.torch_program(network, metadata), 'any.pt2', metadata),
            (converters.torch_program(network, fixed), 'net.pt2', fixed)):
        converters.save_model(model, folder / name, kept)


# What the metadata says, beside an honest network of 4 classes: a new text, or changed values
METADATA = dict(
    none=None, empty='', null='null', a_list='[]', no_names='{}', torn='{"classes": ["a"',
    deep_lists='[' * 100_000, deep_tables='{"a":' * 50_000, long_number='1' * 10_000,
    long_text='"' + 'a' * 2_000_000 + '"', not_a_number='NaN',
    one_class=dict(classes=['a'], palette=[[1, 2, 3]]),
    three_classes=dict(classes=['a', 'b', 'c'], palette=[[1, 2, 3]] * 3),
    five_classes=dict(classes=list('abcde'), palette=[[1, 2, 3]] * 5),
    classes_300=dict(classes=['a'] * 300, palette=[[1, 2, 3]] * 300),
    classes_null=dict(classes=None), classes_text=dict(classes='abcd'),
    classes_numbers=dict(classes=[1, 2, 3, 4]), classes_nested=dict(classes=[['a'], 'b', 'c', 'd']),
    palette_999=dict(palette=[[1, 2, 3]] * 999), palette_short=dict(palette=[[1, 2, 3]]),
    palette_null=dict(palette=None), palette_300=dict(palette=[[300, 2, 3]] * 4),
    palette_negative=dict(palette=[[-1, 2, 3]] * 4), palette_float=dict(palette=[[.5, 2, 3]] * 4),
    palette_pairs=dict(palette=[[1, 2]] * 4), palette_text=dict(palette='abcd'),
    scale_negative=dict(scale=[-5, 5]), scale_zero=dict(scale=[0, 0]), scale_text=dict(scale='96'),
    scale_huge=dict(scale=[10**9, 10**9]), scale_single=dict(scale=[96]),
    scale_float=dict(scale=[96.5, 64.5]), scale_infinite=dict(scale=[float('inf'), 64]),
    size_negative=dict(size=[-1, 96]), size_huge=dict(size=[10**6, 10**6]),
    size_other=dict(size=[40, 40]), size_text=dict(size='64x96'), size_true=dict(size=[True, True]),
    ratio_number=dict(keep_ratio=3), corners_null=dict(align_corners=None),
    precision_fp99=dict(precision='fp99'), precision_null=dict(precision=None),
    precision_list=dict(precision=['fp32']), precision_int8=dict(precision='int8'),
    config_number=dict(config=5), checksum_list=dict(sha256=[1]), unknown=dict(colour='red'),
    version_newer=dict(format_version=2), version_text=dict(format_version='1'))


def changed_metadata(text, change):
    return json.dumps({**json.loads(text), **change}) if isinstance(change, dict) else change


def pt2_members(folder, name='net.pt2'):
    with zipfile.ZipFile(folder / name) as archive:
        return {f'net/{entry.partition("/")[2]}': archive.read(entry)
                for entry in archive.namelist()}


def write_pt2(path, members, compression=zipfile.ZIP_STORED):
    """Members as pairs, so that a name may come twice."""
    with zipfile.ZipFile(path, 'w', compression) as archive, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for name, data in members:
            archive.writestr(name, data)


def pickled(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def deflated(content):
    """An archive with its members compressed, as PyTorch does not write them."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        write_pt2(file, [(name, archive.read(name)) for name in archive.namelist()],
                  zipfile.ZIP_DEFLATED)
    return file.getvalue()


def older_members(folder):
    """The same network as PyTorch 2.7 wrote it."""
    members, program = pt2_members(folder), torch.export.load(folder / 'net.pt2')
    version = json.loads(members[PROGRAM])['schema_version']
    inputs = (torch.zeros(1, *SIZE, 3, dtype=torch.uint8), ), {}
    return {'version': f'{version["major"]}.{version["minor"]}',
            'serialized_exported_program.json': members[PROGRAM],
            'serialized_state_dict.pt': pickled(dict(program.state_dict)),
            'serialized_constants.pt': pickled(dict(program.constants)),
            'serialized_example_inputs.pt': pickled(inputs),
            f'extra_files/{METADATA_FILE}': members[f'net/extra/{METADATA_FILE}']}


def programs():
    """Changes of the program of a .pt2, by kind and name."""
    def graph(program):
        return program['graph_module']['graph']

    def node(program, key, value):
        graph(program)['nodes'][5][key] = value

    def node_name(program, name):
        first = graph(program)['nodes'][5]
        old = first['outputs'][0]['as_tensor']['name']
        text = json.dumps(program).replace(json.dumps(old), json.dumps(name))
        program.clear()
        program.update(json.loads(text))

    def size(program, text):
        for value in graph(program)['tensor_values'].values():
            if value['sizes']:
                value['sizes'][0] = {'as_expr': {'expr_str': text, 'hint': {'as_int': 1}}}

    def call(program, key, value):
        program['graph_module']['module_call_graph'][0]['signature'][key] = value

    for text in (HARM, f'Integer({HARM} or 1)', f'L["frames"].size()[1] > 0 or {HARM}',
                 f'True)\n  {HARM}\n  (1'):
        yield 'guards', lambda p, text=text: p.update(guards_code=[text])
    for text in (HARM, f'Integer({HARM} or 1)', f'Symbol("s0") + len([{HARM}])',
                 '(lambda: 1)()', 'Integer.__class__', '().__class__.__bases__[0]',
                 f'f"{{{HARM}}}"', '9**9**9**9', '9^9^9^9', '1 << 10**12',
                 'Integer(9)**Integer(10)**Integer(10)',
                 '(' * 300 + '1' + ')' * 300, '-' * 90_000 + '1', 'Symbol("__import__")',
                 "Symbol('s0' * 2_000_000_000)", "'s0' * 4_000_000_000", '(1, 1) * 2_000_000_000',
                 '1 if 1 else 2', f'Symbol("s0", positive={HARM})', '9' * 30, 'exit()', '',
                 'factorial(10**8)'):
        yield 'expression', lambda p, text=text: size(p, text)
    for name in (f'x = {HARM}', f'x\n    {HARM}\n    y', f'x, y={HARM}', 'torch.load', 'x y', 'ä'):
        yield 'name', lambda p, name=name: node_name(p, name)
        yield 'name', lambda p, name=name: call(p, 'forward_arg_names', [name])
    for target in ('torch.os.system', 'torch.load', 'torch.hub.load', 'math.factorial',
                   'torch.ops.aten.from_file.default', 'torch.ops.aten.zeros.default',
                   'torch.ops.higher_order.cond', '#torch:os', '_operator.pow', '_operator.call',
                   'torch.utils.cpp_extension.load', 'builtins.exec', 5, None):
        yield 'operator', lambda p, target=target: node(p, 'target', target)
    for spec in ('collections.namedtuple', 'builtins.object', 'os.system'):
        text = json.dumps([1, dict(type=spec, context='null', children_spec=[])])
        yield 'structure', lambda p, text=text: call(p, 'in_spec', text)
        yield 'structure', lambda p, text=text: call(p, 'out_spec', text)
    yield 'structure', lambda p: call(p, 'in_spec', '[' * 50_000)
    yield 'structure', lambda p: p['graph_module'].update(treespec_namedtuple_fields={'a': {}})
    yield 'structure', lambda p: p.pop('graph_module')
    yield 'structure', lambda p: graph(p).update(nodes=None)
    yield 'structure', lambda p: graph(p)['nodes'].reverse()
    yield 'structure', lambda p: graph(p).update(outputs=[])
    yield 'structure', lambda p: graph(p)['outputs'].reverse()
    yield 'structure', lambda p: graph(p)['inputs'].pop()
    yield 'structure', lambda p: p.update(schema_version=dict(major=99, minor=0))
    yield 'structure', lambda p: node(p, 'inputs', [dict(name='x', kind=1, arg=dict(
        as_graph=dict(name='g', graph=graph(json.loads(json.dumps(p))))))])
    yield 'notes', lambda p: node(p, 'metadata', dict(stack_trace=f'File "a", line 1\n{HARM}'))


def pt2_cases(folder):
    members = pt2_members(folder)
    for kind, change in programs():
        program = json.loads(members[PROGRAM])
        change(program)
        yield f'.pt2, {kind}', lambda path, p=program: write_pt2(
            path, {**members, PROGRAM: json.dumps(p)}.items())
    evil = json.loads(members[PROGRAM])
    evil['guards_code'] = [HARM]
    evil = json.dumps(evil)
    config = 'net/data/weights/model_weights_config.json'
    constants = 'net/data/constants/model_constants_config.json'

    def reconfigured(name, **values):
        content = json.loads(members[name])
        next(iter(content['config'].values())).update(values)
        return json.dumps(content)

    sizes = dict(json.loads(members[config])['config'].popitem()[1]['tensor_meta'],
                 sizes=[{'as_int': 10**9}])
    for before, after in (
            ([(PROGRAM, evil)], []), ([], [(PROGRAM, evil)]),
            ([('net/models/MODEL.json', evil)], []), ([], [('NET/models/model.json', evil)]),
            ([], [('net\\models\\model.json', evil)]), ([], [('other/models/model.json', evil)]),
            ([], [('net/models/other.json', evil)]), ([], [('net/../../harmed', b'x')]),
            ([], [('net/data/aotinductor/model/a.so', b'x')]),
            ([], [('net/data/constants/opaque_obj_0', pickle.dumps(Harmful()))]),
            ([], [('net/data/weights/model.pt', pickled(Harmful()))]),
            ([], [('net/data/constants/model.pt', pickled(Harmful()))]),
            ([], [('net/data/weights/model.pt', pickled(Large()))]),
            ([], [('net/data/weights/model.pt', deflated(pickled(dict(a=torch.zeros(10**8)))))]),
            ([], [('version', b'8.20'), ('serialized_example_inputs.pt', pickled(Harmful()))])):
        yield '.pt2, members', lambda path, b=before, a=after: write_pt2(
            path, [*b, *members.items(), *a])
    for name, data in (
            (config, reconfigured(config, use_pickle=True)),
            (constants, reconfigured(constants, use_pickle=True, path_name='opaque_obj_0')),
            (constants, reconfigured(constants, path_name='../../x')),
            (config, reconfigured(config, tensor_meta=sizes)), (config, b'{}'),
            (config, b'[' * 10**5), ('net/data/weights/weight_0', b''),
            ('net/data/weights/weight_0', b'123'),
            ('net/data/sample_inputs/model.pt', pickled(Harmful())), (PROGRAM, b'{' * 10**5),
            (PROGRAM, b'null'), ('net/archive_version', b'99'), ('net/archive_format', b'zip')):
        yield '.pt2, members', lambda path, n=name, d=data: write_pt2(
            path, {**members, n: d}.items())
    for name in (PROGRAM, config, 'net/data/weights/weight_3', 'net/extra/x'):
        big = {**members, name: b' ' * 300_000_000}
        yield '.pt2, inflation', lambda path, b=big: write_pt2(
            path, b.items(), zipfile.ZIP_DEFLATED)
    yield '.pt2, honest', lambda path: write_pt2(path, members.items())
    yield '.pt2, honest', lambda path: write_pt2(path, older_members(folder).items())
    yield '.pt2, honest', lambda path: write_pt2(path, pt2_members(folder, 'any.pt2').items())


def protobuf_cases(folder):
    def changed(change):
        def write(path):
            model = onnx.load(folder / 'net.onnx')
            change(model)
            onnx.save(model, path)
        return write

    def graph_node(op, inputs, outputs, **kwargs):
        return lambda model: model.graph.node.insert(
            0, onnx.helper.make_node(op, inputs, outputs, **kwargs))

    def external(model):
        tensor = model.graph.initializer[0]
        tensor.ClearField('raw_data')
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key='location', value='../../../etc/passwd')

    elsewhere = onnx.TensorProto(
        dims=[9], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    elsewhere.external_data.add(key='location', value='../../../etc/passwd')

    def replaced(name, value):
        def change(model):
            for node in model.graph.node:
                for names in (node.input, node.output):
                    for i, found in enumerate(names):
                        if found == name:
                            names[i] = value
        return change

    body = onnx.helper.make_graph([], 'body', [], [])
    for change in (
            graph_node('Loop', ['', ''], ['x'], body=body),
            graph_node('Scan', [], ['x'], body=body),
            graph_node('If', ['frames'], ['x'], then_branch=body, else_branch=body),
            graph_node('RandomNormal', [], ['x'], shape=[10**5, 10**5]),
            graph_node('NoSuchOperator', ['frames'], ['x']), external,
            graph_node('Constant', [], ['x'], value=elsewhere),
            graph_node('Custom', ['frames'], ['x'], domain='com.microsoft'),
            replaced('logits', 'other'), replaced('frames', 'other'),
            lambda m: m.graph.initializer[0].dims.append(7),
            lambda m: m.graph.initializer[0].ClearField('raw_data'),
            lambda m: m.graph.ClearField('input'), lambda m: m.graph.ClearField('node'),
            lambda m: m.graph.node.extend(list(m.graph.node)),
            lambda m: m.opset_import[0].__setattr__('version', 9999),
            lambda m: m.functions.add(name='f', domain='x'),
            lambda m: setattr(m.graph.input[0].type.tensor_type, 'elem_type', 1),
            lambda m: m.graph.input[0].type.tensor_type.shape.dim.add(dim_value=5)):
        yield '.onnx, graph', changed(change)
    yield '.onnx, honest', changed(lambda model: None)


def ir_cases(folder):
    text, weights = (folder / 'net.xml').read_text(), (folder / 'net.bin').read_bytes()

    def write(path, text=text, weights=weights):
        path.write_text(text)
        if weights is not None:
            path.with_suffix('.bin').write_bytes(weights)

    laughs = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + ''.join(
        f'<!ENTITY {chr(i + 1)} "{f"&{chr(i)};" * 10}">' for i in range(97, 106)) + ']>'
    for old, new in (
            ('<?xml version="1.0"?>', f'<?xml version="1.0"?>{laughs}'),
            ('type="Convolution"', 'type="Loop"'), ('type="ReLU"', 'type="If"'),
            ('type="Convolution"', 'type="NoSuchLayer"'),
            ('version="11"', 'version="99"'), ('offset="0"', 'offset="999999999999"'),
            ('shape="1, 3, 1, 1"', 'shape="1, 3, -1, 1"'), ('"logits"', '"other"'),
            ('names="frames"', 'names="other"'), ('shape="?,?,?,3"', 'shape="?,?,?,4"'),
            ('shape="?,?,?,3"', 'shape="1,99999999,99999999,3"'),
            ('element_type="u8"', 'element_type="x9"'), ('strides="2, 2"', 'strides="0, 0"'),
            ('strides="2, 2"', 'strides="-1, -1"'),
            ('kernel="3, 3"', 'kernel="999999, 999999"'),
            ('from-layer="1"', 'from-layer="99999"'), ('<edge ', '<x '), ('<layer ', '<y ')):
        assert old in text, old
        yield '.xml, graph', lambda path, o=old, n=new: write(path, text.replace(o, n))
    for bad in (None, b'', weights[:1000], weights[:-1], weights[::-1]):
        yield '.xml, weights', lambda path, w=bad: write(path, weights=w)
    yield '.xml, honest', write


def damaged_cases(folder):
    generator = random.Random(0)
    for name in ('net.onnx', 'net.xml', 'net.pt2'):
        content = (folder / name).read_bytes()
        beside = (folder / 'net.bin').read_bytes() if name == 'net.xml' else None

        def write(path, data, beside=beside):
            path.write_bytes(data)
            if beside is not None:
                path.with_suffix('.bin').write_bytes(beside)

        for share in (0, .3, .9, .999):
            part = content[:int(share * len(content))]
            yield f'{name[3:]}, torn', lambda p, d=part, w=write: w(p, d)
        for _ in range(6):
            flipped = bytearray(content)
            for _ in range(generator.choice([1, 5, 50])):
                flipped[generator.randrange(len(flipped))] = generator.randrange(256)
            yield f'{name[3:]}, flipped', lambda p, d=flipped, w=write: w(p, d)


def metadata_cases(folder):
    for name, change in METADATA.items():
        def write_onnx(path, change=change):
            model = onnx.load(folder / 'net.onnx')
            entry = model.metadata_props[0]
            text = changed_metadata(entry.value, change)
            if text is None:
                del model.metadata_props[:]
            else:
                entry.value = text
            onnx.save(model, path)

        def write_ir(path, change=change):
            model = openvino.Core().read_model(folder / 'net.xml')
            text = changed_metadata(model.get_rt_info(METADATA_KEY).astype(str), change)
            model.set_rt_info(text or '', METADATA_KEY)
            openvino.save_model(model, path, compress_to_fp16=False)

        def write_program(path, change=change):
            members = pt2_members(folder)
            key = f'net/extra/{METADATA_FILE}'
            text = changed_metadata(members.pop(key), change)
            write_pt2(path, {**members, **({} if text is None else {key: text})}.items())

        yield f'.onnx, metadata ({name})', write_onnx
        yield f'.xml, metadata ({name})', write_ir
        yield f'.pt2, metadata ({name})', write_program


def in_process(work, limit=4 * SECONDS):
    """Runs a function in a process of its own.

    Returns:
        What it returned, text; seconds of the processor; megabytes at most, those it began with
        included.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.alarm(limit)
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
        try:
            answer = work()
        except BaseException as error:
            answer = f'foreign {type(error).__name__}: {error}'
        os.write(writing, answer.encode()[:4000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    _, status, usage = os.wait4(child, 0)
    if os.WIFSIGNALED(status):
        answer = f'killed by {signal.Signals(os.WTERMSIG(status)).name}'
    return answer, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def open_and_predict(path):
    try:
        predictor = Predictor(path, device='cpu', precision='auto', threads=1)
        predictor(image(*SIZE))
    except ValueError as error:
        return ('refused: ' if str(path) in str(error) else 'no name: ') + str(error)
    return f'loaded, {len(predictor.classes)} classes'


def judge(answer, seconds, megabytes, folder):
    """What is wrong with an outcome; an empty text if nothing is."""
    if list(folder.rglob('harmed')):
        return 'ran code'
    if not answer.startswith(('loaded', 'refused')):
        return answer
    if seconds > SECONDS or megabytes > MEGABYTES:
        return f'{seconds:.1f} s, {megabytes:.0f} MB'
    return ''


def run(folder, every=1, only=''):
    """Yields (kind, number, answer, seconds, megabytes, what is wrong) of each case."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    answer, _, _ = in_process(lambda: write_originals(folder) or 'written', limit=300)
    assert answer == 'written', answer
    makers = (metadata_cases, pt2_cases, protobuf_cases, ir_cases, damaged_cases)
    cases = [case for maker in makers for case in maker(folder)]
    cases = [case for case in cases if only in case[0]][::every]
    idle = in_process(lambda: '')[2]  # megabytes of the libraries, before any file is opened
    for number, (kind, write) in enumerate(cases):
        path = folder / f'crafted{number}' / f'net{kind.split(",")[0]}'
        path.parent.mkdir()
        made, _, _ = in_process(lambda path=path, write=write: write(path) or 'written')
        before = sorted(folder.rglob('*'))
        answer, seconds, megabytes = in_process(lambda path=path: open_and_predict(path))
        megabytes -= idle
        wrong = made if made != 'written' else judge(answer, seconds, megabytes, folder)
        if sorted(folder.rglob('*')) != before:
            wrong = wrong or 'wrote or deleted files'
        for file in path.parent.iterdir():  # 300 MB of zeros, some of them
            file.unlink()
        yield kind, number, answer, seconds, megabytes, wrong


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('folder', type=Path)
    parser.add_argument('--every', type=int, default=1)
    parser.add_argument('--only', default='', help='kinds that contain this')
    parser.add_argument('--json', action='store_true')
    args = parser.parse_args()
    rows = collections.defaultdict(list)
    for outcome in run(args.folder.resolve(), args.every, args.only):
        if args.json:
            print(json.dumps(outcome), flush=True)
        rows[outcome[0].split(' (')[0]].append(outcome)
    if not args.json:
        print('| kind | files | loaded | refused | wrong | most seconds | most MB |')
        print('| --- | --- | --- | --- | --- | --- | --- |')
        for kind, outcomes in sorted(rows.items()):
            answers = [answer.split(':')[0].split(',')[0] for _, _, answer, *_ in outcomes]
            print(f'| {kind} | {len(outcomes)} | {answers.count("loaded")} | '
                  f'{answers.count("refused")} | {sum(bool(o[5]) for o in outcomes)} | '
                  f'{max(o[3] for o in outcomes):.1f} | {max(o[4] for o in outcomes):.0f} |')


if __name__ == '__main__':
    main()
