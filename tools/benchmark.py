"""Times MMSegmentation and this package on the same inputs, in turns, in one process.

    python tools/benchmark.py loss                              # 2 crops of 1024x1024
    python tools/benchmark.py loss --batch 2 8 --crop 1024x512 1024x1024 --json loss.json
    python tools/benchmark.py draw peers.json peers.png         # as --picture when it was measured

Prints for every setting the medians, their ratio (MMSegmentation's time divided by ours) with its
quartiles, and the memory. Whether the results of the two are equal is checked by the tests.
"""
import argparse
import itertools
import json
import re
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from _arguments import SIZE, format_size, positive
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from prettytable import PrettyTable, TableStyle

import mmseg_bisenetv2  # noqa: F401 - before mmseg

from mmseg.utils import register_all_modules

ROOT = Path(__file__).resolve().parents[1]
SIZES = dict(SIZE, nargs='+')
SEVERAL = dict(type=positive, nargs='+', metavar='N')
AMP = dict(choices=('none', 'bfloat16', 'float16'))
OPTIONS: dict[str, dict[str, Any]] = dict(
    pairs=dict(type=positive, help='timed runs of each side'),
    device=dict(help='cpu or cuda'),
    threads=dict(type=positive, help="of the processor; None is PyTorch's choice"),
    json=dict(metavar='FILE', help='writes the results there, too'),
    size=dict(SIZES, help='of the images, one or several'),
    crop=dict(SIZES, help='of the crops, one or several'),
    batch=dict(SEVERAL, help='images at a time, one or several numbers'),
    classes=dict(SEVERAL, help='one or several numbers'),
    config=dict(help="of this package's network"),
    checkpoint=dict(help='None is random weights, with balanced classes'),
    frame=dict(metavar='PICTURE', help='None draws a street scene'),
    files=dict(nargs='+', metavar='EXPORTED', help='by tools/export.py from the same weights'),
    networks=dict(nargs='+', metavar='NAME', help='which ones'),
    picture=dict(metavar='PNG', help='draws the results of the first size'),
    ohem=dict(action='store_true', help='with OHEM in every head'),
    amp=dict(AMP, help='precision of the step'),
    mmseg_amp=dict(AMP, help="that of MMSegmentation's step; None is that of --amp"),
    precision=dict(choices=('fp32', 'bf16', 'fp16'), help='of the network'),
    with_cp=dict(choices=('none', 'activations', 'stages'),
                 help="activation checkpointing of our network; None is the config's"))
COMMON = dict(pairs=9, device='cpu', threads=None, json=None)
CONFIG = dict(config=ROOT / 'configs/bisenetv2_fcn_cityscapes.py')
TUNED = ('eval', 'train')  # MMSegmentation's default_runtime.py lets cuDNN try its algorithms.
SETTINGS = ('size', 'batch', 'crop', 'classes')  # Of these, every combination is measured.
COMMANDS: dict[str, tuple[str, dict[str, Any]]] = dict(  # with the defaults of their own options
    accuracy=('mIoU on the validation set against time, for trained weights',
              dict(config=ROOT / 'configs/bisenetv2_fcn_camvid.py',
                   checkpoint=ROOT / 'weights/bisenetv2_fcn_camvid.safetensors', files=[],
                   picture=None)),
    data=('training pipeline on one core, from PNG and from a decoded cache',
          dict(size=[(1024, 2048)], crop=[(1024, 1024)], threads=1)),
    compile=('the deployed network on its device: eager, compiled, as a CUDA graph',
             dict(CONFIG, size=[(1024, 2048)], batch=[1], precision='fp32')),
    eval=('evaluation as `mim test` runs it: files, network, labels, mIoU',
          dict(CONFIG, size=[(1024, 2048)], classes=[19])),
    inference=("from a frame to its labels: MMSegmentation's inference_model and our backends",
               dict(CONFIG, size=[(1024, 2048)], batch=[1], checkpoint=None, frame=None, files=[],
                    picture=None)),
    loss=("losses and accuracy of five heads' logits, forward and backward, without a network",
          dict(batch=[2], crop=[(1024, 1024)], classes=[19], ohem=False)),
    peers=("MMSegmentation's networks for real time beside ours, with their published mIoU",
           dict(size=[(1024, 2048)], frame=None, networks=None, picture=None)),
    train=('a whole training step, from uint8 images to updated weights',
           dict(CONFIG, batch=[2], crop=[(512, 1024)], amp='none', mmseg_amp=None, with_cp=None)))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, (text, own) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        for option, default in {**COMMON, **own}.items():
            shown = ' '.join(map(format_size, default)) if option in ('size', 'crop') else default
            kwargs = dict(OPTIONS[option], help=f'{OPTIONS[option]["help"]} (default: {shown})')
            command.add_argument(f'--{option.replace("_", "-")}', default=default, **kwargs)
    text = 'prints and draws what accuracy, inference or peers measured before'
    command = commands.add_parser('draw', help=text, description=text)
    command.add_argument('json', metavar='JSON', help='which --json wrote')
    command.add_argument('picture', metavar='PNG')
    return parser.parse_args()


def describe_machine(device: str) -> dict[str, Any]:
    """What the figures depend on, beside the options."""
    processor = re.search(r'model name\s*: (.*)', Path('/proc/cpuinfo').read_text())
    failed, commit = subprocess.getstatusoutput(f'git -C "{ROOT}" describe --always --dirty')
    machine = dict(processor=processor[1] if processor else 'unknown',
                   threads=torch.get_num_threads(), device=device, torch=torch.__version__,
                   commit='unknown' if failed else commit)
    if device == 'cpu':
        return machine
    return dict(machine, gpu=torch.cuda.get_device_name(device), cuda=torch.version.cuda,
                tf32_convolutions=torch.backends.cudnn.allow_tf32,
                cudnn_benchmark=torch.backends.cudnn.benchmark)


def format_table(rows: list[dict[str, Any]]) -> PrettyTable:
    """A column for each setting, or a line for each if they are more than four; in Markdown."""
    cells = [list(rows[0]), *([format_value(row.get(key)) for key in rows[0]] for row in rows)]
    if len(rows) <= 4:
        cells = [list(line) for line in zip(*cells, strict=True)]
    table = PrettyTable(cells[0], align='r')
    table.align[cells[0][0]] = 'l'
    table.set_style(TableStyle.MARKDOWN)
    table.add_rows(cells[1:])
    return table


def format_value(value: Any) -> str:
    if isinstance(value, list):
        return ' - '.join(map(format_value, value))
    if value is None:
        return ''
    return f'{value:.4g}' if isinstance(value, float) else str(value).replace('|', '/')


def main() -> None:
    args = parse_args()
    if args.command == 'draw':
        return show_earlier(args.json, args.picture)
    # MMSegmentation warns of the versions it runs with, past any filter, and logs every result.
    warnings.showwarning = lambda *_, **__: None
    MMLogger.get_current_instance().setLevel('ERROR')
    register_all_modules()
    init_default_scope('mmseg')
    torch.manual_seed(0)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device != 'cpu':
        # the one that is waited for, and whose memory is read
        torch.cuda.set_device(torch.device(args.device).index or 0)
    torch.backends.cudnn.benchmark = args.command in TUNED
    machine = describe_machine(args.device)
    print(', '.join(f'{key} {value}' for key, value in machine.items()))
    module = import_module(f'benchmarks.{args.command}')
    several = [key for key in SETTINGS if key in args]
    rows: list[dict[str, Any]] = []
    for values in itertools.product(*(getattr(args, key) for key in several)):
        setting = dict(zip(several, values, strict=True))
        rows += module.measure(argparse.Namespace(**{**vars(args), **setting}))
    if args.json:
        content = dict(options=vars(args), machine=machine, results=rows)
        Path(args.json).write_text(json.dumps(content, indent=2, default=str))
    show(module, rows, getattr(args, 'picture', None))


def show(module: Any, rows: list[dict[str, Any]], picture: str | None) -> None:
    """Prints the results of a command's module, and draws them if it can and a name is given."""
    print(format_table(module.table(rows) if hasattr(module, 'table') else rows))
    if picture:
        module.draw(rows, picture)


def show_earlier(path: str, picture: str) -> None:
    """The same for results that ``--json`` wrote."""
    content = json.loads(Path(path).read_text())
    command = content['options']['command']
    module = import_module(f'benchmarks.{command}')
    if not hasattr(module, 'draw'):
        sys.exit(f'{path} holds results of {command}, of which there is no picture: expected '
                 'those of accuracy, inference or peers')
    print(', '.join(f'{key} {value}' for key, value in content['machine'].items()))
    show(module, content['results'], picture)


if __name__ == '__main__':
    main()
