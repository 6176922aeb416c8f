"""From a frame to its labels: MMSegmentation's inference_model, and every backend of ours.

All see the same weights and the same frame, in turns. 'end to end' is from a picture in memory to
labels in memory; 'with decoding' from its file; 'network' without what is around it. Agreement is
with the labels of FP32 PyTorch, MMSegmentation's among them. Exported files (--files) join in.
"""
import copy
import importlib.util
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from benchmarks.measure import as_mmseg, balance, peak_mb, size
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope

from mmseg_bisenetv2.datasets.toy_cityscapes import draw_scene
from mmseg_bisenetv2.deploy import Predictor
from mmseg_bisenetv2.deploy.image import read_image
from mmseg_bisenetv2.deploy.runtimes import cpu_has_bf16
from mmseg_bisenetv2.models.upsample_argmax import upsample_argmax
from mmseg_bisenetv2.visualization import draw_speeds

from mmseg.apis import inference_model, init_model
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

CONFIG = Path(__file__).parents[2] / 'configs/bisenetv2_fcn_cityscapes.py'


def add_arguments(parser):
    """Sizes, weights, and what takes part."""
    parser.add_argument('--size', type=size, nargs='+', default=[(1024, 2048)], metavar='HxW',
                        help='of the frame; default: 1024x2048')
    parser.add_argument('--batch', type=int, nargs='+', default=[1], help='default: 1')
    parser.add_argument('--config', default=CONFIG, help='default: %(default)s')
    parser.add_argument('--checkpoint', help='default: random weights, the classes balanced')
    parser.add_argument('--frame', metavar='PICTURE', help='default: a drawn street scene')
    parser.add_argument('--files', nargs='+', default=[], metavar='EXPORTED',
                        help='written by tools/export.py from the same weights')
    parser.add_argument('--picture', metavar='PNG', help='draws the ratios as bars')


def run(args):
    """One result for every size, batch, backend and precision, and the post-processing alone."""
    init_default_scope('mmseg')
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for height, width in args.size:
            frame = read_frame(args.frame, height, width)
            path = Path(folder, f'{height}x{width}.png')
            cv2.imwrite(str(path), frame)
            stock, checkpoint = build(args, frame, folder)
            for batch in args.batch:
                rows += measure(args, stock, checkpoint, frame, path, batch)
            rows += postprocessing(args, stock, frame)
    if args.picture:
        draw_speeds(*bars(rows), args.picture)
    return rows


def bars(rows):
    """The ratio of everything that has a network, and what they are; a single size is said once."""
    ratios = {row['setting']: row['ratio'] for row in rows if row['network_ms']}
    label = 'times the speed of MMSegmentation'
    sizes = {setting.split(', ')[0] for setting in ratios}
    if len(sizes) == 1:
        label += f', {sizes.pop()}'
        ratios = {setting.split(', ', 1)[1]: ratio for setting, ratio in ratios.items()}
    return ratios, label


def read_frame(name, height, width):
    if name:
        return cv2.resize(read_image(name), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(draw_scene(np.random.default_rng(0), (height, width))[0][..., ::-1])


def build(args, frame, folder):
    """MMSegmentation's own model, and a checkpoint with its weights for ours."""
    config = Config.fromfile(args.config)
    config.test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    ours = init_model(config, args.checkpoint, device='cpu')
    image = torch.from_numpy(frame.transpose(2, 0, 1).copy())
    if not args.checkpoint:
        balance(ours, dict(inputs=[image]))
    checkpoint = Path(folder, 'weights.pth')
    torch.save(dict(state_dict=ours.state_dict(), meta={}), checkpoint)
    config = config.copy()
    stock = revert_sync_batchnorm(MODELS.build(as_mmseg(config.model))).to(args.device).eval()
    stock.load_state_dict(ours.state_dict())
    stock.cfg = config
    return stock, checkpoint


def variants(args, checkpoint, frame, classes):
    """Every backend and precision that this machine has."""
    height, width = frame.shape[:2]
    options = dict(device=args.device, size=(height, width), threads=args.threads)
    if args.device == 'cpu':
        bf16 = ['bf16'] * cpu_has_bf16()
        wanted = dict(torch=['fp32', *bf16], onnxruntime=['fp32'], openvino=['fp32', *bf16])
    else:
        wanted = dict(torch=['fp32', 'bf16', 'fp16'])
    for backend, precisions in wanted.items():
        if backend != 'torch' and not importlib.util.find_spec(backend):
            print(f'{backend} is not installed (the extra "deploy"): left out')
            continue
        for precision in precisions:
            yield f'{backend} {precision}', Predictor(
                args.config, checkpoint, backend=backend, precision=precision, **options)
    for path in args.files:
        predictor = Predictor(path, **options)
        if len(predictor.classes) != classes:
            raise SystemExit(f'{path} has {len(predictor.classes)} classes, the network {classes}: '
                             'expected an export of the same weights')
        yield f'{predictor.backend} {predictor.precision}, file', predictor


def measure(args, stock, checkpoint, frame, path, batch):
    """Times, memory and agreement of everything that takes part."""
    frames, paths = [frame] * batch, [str(path)] * batch
    inputs = stock.data_preprocessor(dict(inputs=[
        torch.from_numpy(frame.transpose(2, 0, 1).copy())] * batch), False)['inputs']

    def stock_network():
        with torch.no_grad():
            stock._forward(inputs)

    from_file = copy.copy(stock)  # inference_model changes the config of the model for arrays
    from_file.cfg = copy.deepcopy(stock.cfg)
    from_file.cfg.test_pipeline[0].type = 'LoadImageFromFile'
    runs = {'MMSegmentation': lambda source: inference_model(
        from_file if source is paths else stock, source)}
    networks = {}
    for name, predictor in variants(args, checkpoint, frame, stock.num_classes):
        predictor.warm_up(*frame.shape[:2], batch)
        runs[name], networks[name] = predictor, predictor
    labels = {name: labels_of(run(frames)[0]) for name, run in runs.items()}  # this warms up, too
    times = {name: dict(end_to_end=[], decoding=[], network=[]) for name in runs}
    for turn in range(args.pairs):
        order = list(runs)
        for name in order[turn % len(order):] + order[:turn % len(order)]:
            times[name]['end_to_end'].append(seconds(lambda: runs[name](frames)))  # noqa: B023
            times[name]['network'].append(
                networks[name].network_seconds if name in networks else seconds(stock_network))
            times[name]['decoding'].append(seconds(lambda: runs[name](paths)))  # noqa: B023
    base = times['MMSegmentation']
    rows = []
    for name, own in times.items():
        median = {kind: statistics.median(values) for kind, values in own.items()}
        ratios = {kind: sorted(a / b for a, b in zip(base[kind], own[kind], strict=True))
                  for kind in own}
        quarter = args.pairs // 4
        rows.append(dict(
            setting=f'{frame.shape[0]}x{frame.shape[1]} x {batch}, {name}',
            end_to_end_ms=1000 * median['end_to_end'],
            p99_ms=1000 * float(np.quantile(own['end_to_end'], 0.99)),
            fps=batch / median['end_to_end'],
            ratio=statistics.median(ratios['end_to_end']),
            ratio_quartiles=[ratios['end_to_end'][quarter], ratios['end_to_end'][-1 - quarter]],
            with_decoding_ms=1000 * median['decoding'],
            with_decoding_ratio=statistics.median(ratios['decoding']),
            network_ms=1000 * median['network'],
            network_ratio=statistics.median(ratios['network']),
            peak_mb=peak_mb(lambda: runs[name](frames), args.device),  # noqa: B023
            agreement=100 * (labels[name] == labels['torch fp32']).mean()))
    return rows


def seconds(step):
    """Time of one call; every way returns labels in memory, so that a GPU has finished."""
    start = time.perf_counter()
    labels_of(step())
    return time.perf_counter() - start


def labels_of(result):
    """As an array, from MMSegmentation's sample or from ours."""
    if isinstance(result, SegDataSample):
        return result.pred_sem_seg.data[0].cpu().numpy()
    if isinstance(result, list) and isinstance(result[0], SegDataSample):
        return [labels_of(sample) for sample in result]
    return result


def postprocessing(args, stock, frame):
    """From the network's logits to labels, one frame, without the network."""
    shape = frame.shape[:2]
    image = torch.from_numpy(frame.transpose(2, 0, 1).copy())
    with torch.no_grad():
        logits = stock._forward(stock.data_preprocessor(dict(inputs=[image]), False)['inputs'])
    meta = dict(ori_shape=shape, img_shape=shape, pad_shape=shape, padding_size=[0] * 4)

    def theirs():
        full = stock.decode_head.predict_by_feat(logits, [meta])
        return stock.postprocess_result(full, [SegDataSample(metainfo=meta)])[0]

    def ours():
        return upsample_argmax(logits[0], *shape, stock.align_corners).cpu().numpy()

    expected = labels_of(theirs())
    agreement = 100 * (ours() == expected).mean()
    times = [(seconds(theirs), seconds(ours)) for _ in range(args.pairs)]
    rows = []
    for i, (name, run) in enumerate((('MMSegmentation', theirs), ('ours', ours))):
        ratios = sorted(a[0] / a[i] for a in times)
        quarter = args.pairs // 4
        rows.append(dict(
            setting=f'{shape[0]}x{shape[1]}, post-processing, {name}',
            end_to_end_ms=1000 * statistics.median(a[i] for a in times),
            p99_ms=1000 * float(np.quantile([a[i] for a in times], 0.99)), fps=None,
            ratio=statistics.median(ratios),
            ratio_quartiles=[ratios[quarter], ratios[-1 - quarter]],
            with_decoding_ms=None, with_decoding_ratio=None, network_ms=None, network_ratio=None,
            peak_mb=peak_mb(run, args.device), agreement=agreement))
    return rows
