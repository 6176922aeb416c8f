"""MMSegmentation's networks for real time beside ours: time, size, memory and published mIoU.

All see the same frame, with random weights, in turns.

- 'stock' is MMSegmentation's inference_model, from a frame in memory to labels in memory.
- 'OpenVINO' is the network alone, from a normalised image to its logits, converted and compiled in
  the same way for all. It shows what the other networks would gain from that runtime, too.
- 'Predictor' is this package's way from a frame to labels, which its own networks have.

Where MMSegmentation tests a network in sliding windows (SegFormer), all three figures, and the
multiply-accumulates, are those of all windows.
"""
import copy
import tempfile
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _arguments import format_size
from benchmarks.inference import find_frame
from benchmarks.measure import build_model, peak_mb, time_in_turns
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.hub import get_config
from mmengine.utils import get_installed_path
from torch import Tensor
from torch.optim.swa_utils import update_bn
from torch.utils.flop_counter import FlopCounterMode

from mmseg_bisenetv2.compat import cpu_has_bf16
from mmseg_bisenetv2.deploy import Predictor
from mmseg_bisenetv2.deploy.runtimes import import_optional, openvino_config, openvino_core

from mmseg.apis import inference_model
from mmseg.models import BaseSegmentor

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
# Of each network the config of MMSegmentation's model zoo that has the best mIoU at a single scale,
# on Cityscapes. None of them needs compiled operators.
PEERS = {
    'PIDNet-S': 'pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes',
    'DDRNet23-slim': 'ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024',
    'SegFormer-B0': 'segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024',
    'STDC2': 'stdc/stdc2_in1k-pre_4xb12-80k_cityscapes-512x1024',
    'BiSeNetV2': 'bisenetv2/bisenetv2_fcn_4xb8-160k_cityscapes-1024x1024',
    'BiSeNetV1-R18': 'bisenetv1/bisenetv1_r18-d32-in1k-pre_4xb8-160k_cityscapes-1024x1024',
    'STDC1': 'stdc/stdc1_in1k-pre_4xb12-80k_cityscapes-512x1024',
    'ICNet-R18': 'icnet/icnet_r18-d8-in1k-pre_4xb2-160k_cityscapes-832x832',
    'ERFNet': 'erfnet/erfnet_fcn_4xb4-160k_cityscapes-512x1024',
    'Fast-SCNN': 'fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024',
    'MobileNetV3-LRASPP': 'mobilenet_v3/mobilenet-v3-d8_lraspp_4xb4-320k_cityscapes-512x1024',
    'CGNet': 'cgnet/cgnet_fcn_4xb8-60k_cityscapes-512x1024',
}
# Ours: config, published mIoU and whose it is. The first is MMSegmentation's BiSeNetV2 to the bit,
# whose weights it loads.
OURS = {
    'BiSeNetV2-ours': ('bisenetv2_fcn_b32_cityscapes.py', 75.76, 'MMSegmentation'),
    'BiSeNetV2-head128-ours': ('bisenetv2_fcn_head128_cityscapes.py', 73.73, 'zh320'),
}
NETWORKS = [*PEERS, *OURS]
WORDS = dict(stock='stock', openvino='OpenVINO', predictor='Predictor')


@torch.no_grad()
def measure(args: Namespace) -> list[dict[str, Any]]:
    """Figures of each network at one size of frame, the best published mIoU first."""
    networks = args.networks or NETWORKS
    unknown = sorted(set(networks) - set(NETWORKS))
    if unknown:
        raise SystemExit(f'--networks {" ".join(unknown)}: expected some of {", ".join(NETWORKS)}')
    frame = find_frame(args)
    steps: dict[tuple[str, str], Callable] = {}
    figures: dict[str, dict[str, Any]] = {}
    for name in networks:
        try:
            own_steps, own_figures = prepare(name, frame, args)
        except RuntimeError as error:  # MobileNetV3 pools with a window of 784 pixels
            print(f'{name} is left out: {error}')
            continue
        steps.update({(name, way): step for way, step in own_steps.items()})
        figures[name] = own_figures
    if not figures:
        raise SystemExit(f'None of the networks takes a frame of {format_size(args.size)}')
    times = time_in_turns(steps, args.pairs)
    ways = list(dict.fromkeys(way for _, way in steps))
    rows = []
    for name, figure in figures.items():
        row: dict[str, Any] = dict(setting=name, size=format_size(args.size), **figure)
        for way in ways:
            own = times.get((name, way))
            row[f'{way}_ms'] = 1000 * float(np.median(own)) if own else None
            row[f'{way}_p99_ms'] = 1000 * float(np.quantile(own, 0.99)) if own else None
            if 'openvino' not in way:
                row[f'{way}_peak_mb'] = peak_mb(steps[name, way], args.device) if own else None
        rows.append(row)
    return sorted(rows, key=lambda row: -row['miou'])


def prepare(name: str, frame: np.ndarray, args: Namespace
            ) -> tuple[dict[str, Callable], dict[str, Any]]:
    """What is timed of a network, by the way it is run, and its figures that need no timing.

    Raises:
        RuntimeError: If the network takes no frame of this size.
    """
    if name in OURS:
        path, miou, source = OURS[name]
        config = Config.fromfile(CONFIGS / path)
    else:
        config = get_config(f'mmseg::{PEERS[name]}.py')
        miou, source = zoo_miou(PEERS[name]), 'MMSegmentation'
    config.test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    stock = build_model(config, args.device)
    stock.cfg = config
    image = torch.from_numpy(frame).permute(2, 0, 1)
    inputs = stock.data_preprocessor(dict(inputs=[image]))['inputs']
    # Statistics of this frame, so that random weights give numbers of usual size. Some layers
    # normalise over the images of a batch alone: it needs more than one.
    update_bn([torch.cat(inputs.chunk(2, dim=3))], stock)
    stock.eval()
    seen = windows(stock, inputs)
    gmac, parameters = count(stock, seen.shape)
    steps: dict[str, Callable] = dict(stock=lambda: inference_model(
        stock, frame).pred_sem_seg.data.cpu())
    precisions = ['fp32']
    if args.device != 'cpu':
        precisions.append('fp16')
    elif cpu_has_bf16():
        precisions.append('bf16')
    if args.device == 'cpu':
        for precision, run in openvino_steps(stock, seen, precisions, args.threads).items():
            steps[f'openvino_{precision}'] = run
    if name in OURS:
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder, 'weights.pth')
            torch.save(dict(state_dict=stock.state_dict(), meta={}), weights)
            for precision in precisions:
                predictor = Predictor(CONFIGS / path, weights, precision=precision,
                                      device=args.device, size=args.size, threads=args.threads)
                predictor.warm_up(*args.size)
                steps[f'predictor_{precision}'] = partial(predictor, frame)
    return steps, dict(miou=miou, source=source, gmac=gmac, params_m=parameters)


def zoo_miou(path: str) -> float:
    """The mIoU on Cityscapes val, at a single scale, that MMSegmentation states for a config."""
    folder, name = path.split('/')
    metafile = Path(get_installed_path('mmseg'), '.mim/configs', folder, 'metafile.yaml')
    results, = (model['Results'] for model in load(metafile)['Models'] if model['Name'] == name)
    assert results['Dataset'] == 'Cityscapes', path
    return results['Metrics']['mIoU']


def windows(model: BaseSegmentor, inputs: Tensor) -> Tensor:
    """What the network sees of an image: the image, or in slide mode all windows as a batch."""
    if model.test_cfg['mode'] == 'whole':
        return inputs
    starts = []
    for side, crop, stride in zip(inputs.shape[2:], model.test_cfg['crop_size'],
                                  model.test_cfg['stride'], strict=True):
        # The arithmetic is that of MMSegmentation's slide_inference.
        number = max(side - crop + stride - 1, 0) // stride + 1
        starts.append([slice(max(min(i * stride + crop, side) - crop, 0),
                             min(i * stride + crop, side)) for i in range(number)])
    return torch.cat([inputs[:, :, rows, columns] for rows in starts[0] for columns in starts[1]])


def count(model: BaseSegmentor, shape: torch.Size) -> tuple[float, float]:
    """Billions of multiply-accumulates of a pass, and millions of parameters that it uses.

    On the meta device, which computes nothing. Parameters are those that the logits have a gradient
    of: layers that only training uses have none.
    """
    network = copy.deepcopy(model).to('meta')
    with torch.enable_grad():
        with FlopCounterMode(display=False) as counter:
            logits = network(torch.empty(shape, device='meta'), mode='tensor')
        logits.sum().backward()
    used = sum(p.numel() for p in network.parameters() if p.grad is not None)
    return counter.get_total_flops() / 2e9, used / 1e6


def openvino_steps(model: BaseSegmentor, inputs: Tensor, precisions: list[str],
                   threads: int | None) -> dict[str, Callable]:
    """The network in OpenVINO, for each precision; none if OpenVINO is not installed.

    Raises:
        SystemExit: If OpenVINO computes something else in FP32 than PyTorch.
    """
    try:
        openvino = import_optional('openvino')
    except ImportError as error:
        print(f'OpenVINO is left out: {error}')
        return {}
    converted = openvino.convert_model(model, example_input=inputs)
    converted.reshape(list(inputs.shape))
    array = inputs.contiguous().numpy()
    steps: dict[str, Callable] = {}
    for precision in precisions:
        compiled = openvino_core().compile_model(
            converted, 'CPU', openvino_config(precision, threads))
        steps[precision] = partial(
            compiled.create_infer_request().infer, [array], share_inputs=True)
    expected = model(inputs).numpy()
    difference = np.abs(steps['fp32']()[0] - expected).max() / expected.std()
    if difference > 0.01:
        raise SystemExit(f'{type(model.backbone).__name__}: the logits of OpenVINO differ by '
                         f'{difference:.2g} standard deviations: its time says nothing')
    return steps


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as they are printed: medians, and in brackets the 99th percentile."""
    titles = dict(setting='network', miou='published mIoU', source='by', gmac='GMAC',
                  params_m='M parameters')
    ways = [key.removesuffix('_p99_ms') for key in rows[0] if key.endswith('_p99_ms')]
    lines = []
    for row in rows:
        line = {title: row[key] for key, title in titles.items()}
        for way in ways:
            time = row[f'{way}_ms'] and f'{row[f"{way}_ms"]:.0f} ({row[f"{way}_p99_ms"]:.0f})'
            name = ' '.join(WORDS.get(word, word.upper()) for word in way.split('_'))
            line[f'{name}, ms'] = time
            if f'{way}_peak_mb' in row:
                line[f'{name}, MB'] = row[f'{way}_peak_mb'] and f'{row[f"{way}_peak_mb"]:.0f}'
        lines.append(line)
    return lines


def draw(rows: list[dict[str, Any]], path: str) -> None:
    """Draws the published mIoU over the time of a frame, on a logarithmic scale."""
    figure = Figure(figsize=(9, 5.5), layout='constrained')
    axes = figure.subplots()
    ways = [('stock', 'o', "MMSegmentation's inference_model"),
            ('openvino_fp32', 's', 'network alone in OpenVINO, FP32'),
            ('openvino_bf16', 'D', 'network alone in OpenVINO, BF16'),
            ('predictor_fp32', '^', 'Predictor of this package, FP32'),
            ('predictor_bf16', 'v', 'Predictor of this package, BF16'),
            ('predictor_fp16', 'v', 'Predictor of this package, FP16')]
    colours = {row['setting']: 'tab:red' if row['setting'] in OURS else 'tab:blue' for row in rows}
    for way, marker, label in ways:
        measured = [row for row in rows if row.get(f'{way}_ms')]
        if measured:
            axes.scatter([row[f'{way}_ms'] for row in measured], [row['miou'] for row in measured],
                         c=[colours[row['setting']] for row in measured], marker=marker, alpha=0.8)
            axes.scatter([], [], c='grey', marker=marker, label=label)
    for row in rows:
        times = [row[f'{way}_ms'] for way, *_ in ways if row.get(f'{way}_ms')]
        name, ours = row['setting'], row['setting'] in OURS
        axes.plot([min(times), max(times)], [row['miou']] * 2, c=colours[name], lw=0.8, alpha=0.5)
        # Ours have their names on the left: MMSegmentation's BiSeNetV2 is in the same line.
        axes.annotate(name, (min(times) if ours else max(times), row['miou']), va='center',
                      xytext=(-7 if ours else 7, 0), ha='right' if ours else 'left',
                      textcoords='offset points', fontsize=8, color=colours[name])
    axes.set_xscale('log')
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter('{x:g}')
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.2)
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    axes.set_xlabel(f'ms a frame of {rows[0]["size"]} (faster is left)')
    axes.set_ylabel('published mIoU on Cityscapes val, %')
    axes.legend(fontsize=8, loc='lower left')
    figure.savefig(path, dpi=120)
