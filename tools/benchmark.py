"""MMSegmentation and this package, same inputs, interleaved pairs in one process.

    python tools/benchmark.py loss                                     # 2 crops of 1024x1024
    python tools/benchmark.py loss --batch 2 8 --crop 512x1024 1024x1024 --ohem --json loss.json

Prints for every size the medians, their ratio with its quartiles, the memory, and how far the
two's results lie apart.
"""
import argparse
import json
import platform
import warnings
from importlib import import_module

import torch
from mmengine.logging import MMLogger
from prettytable import PrettyTable

import mmseg_bisenetv2  # noqa: F401 - before mmseg

from mmseg.utils import register_all_modules

COMMANDS = ('data', 'eval', 'inference', 'loss', 'train')


def describe(args):
    """What the figures hold for."""
    machine = dict(processor=processor(), threads=torch.get_num_threads(), device=args.device,
                   torch=torch.__version__)
    if args.device != 'cpu':
        machine['gpu'] = torch.cuda.get_device_name()
    return machine


def processor():
    try:
        with open('/proc/cpuinfo') as file:
            return next(line.split(':')[1].strip() for line in file if 'model name' in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(rows):
    """A column for every setting and a line for every figure, or, of many settings, turned."""
    figures = list(rows[0])[1:]  # after the setting
    if len(rows) > 4:
        lines = PrettyTable(['', *figures], align='r')
        lines.add_rows([[text(row[name]) for name in row] for row in rows])
    else:
        lines = PrettyTable(['', *(row['setting'] for row in rows)], align='r')
        lines.add_rows([[name, *(text(row[name]) for row in rows)] for name in figures])
    lines.align[''] = 'l'
    return lines


def text(value):
    if value is None:
        return ''
    if isinstance(value, (list, tuple)):
        return ' - '.join(map(text, value))
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument('--pairs', type=int, default=9, help='default: %(default)s')
    common.add_argument('--device', default='cpu', help='default: %(default)s')
    common.add_argument('--threads', type=int, help='default: as PyTorch chooses')
    common.add_argument('--json', metavar='FILE', help='writes the results there too')
    for name in COMMANDS:
        module = import_module(f'benchmarks.{name}')
        command = commands.add_parser(name, parents=[common], help=module.__doc__.splitlines()[0],
                                      description=module.__doc__,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
        module.add_arguments(command)
        command.set_defaults(run=module.run)

    args = parser.parse_args()
    # MMSegmentation warns of the versions it runs with, against any filter, and logs each result
    warnings.showwarning = lambda *_, **__: None
    MMLogger.get_current_instance().setLevel('ERROR')
    register_all_modules()
    if args.threads:
        torch.set_num_threads(args.threads)
    machine = describe(args)
    print(', '.join(f'{key} {value}' for key, value in machine.items()))
    rows = args.run(args)
    print(table(rows))
    if args.json:
        options = {key: value for key, value in vars(args).items() if key != 'run'}
        with open(args.json, 'w') as file:
            json.dump(dict(options=options, machine=machine, results=rows), file, indent=2,
                      default=lambda value: value.item() if hasattr(value, 'item') else str(value))


if __name__ == '__main__':
    main()
