"""Looks at every file of a data set before it is trained on, and at the installation.

    python tools/check_dataset.py configs/mine.py

Ends with exit code 1 if a training would fail. Draws some pictures under their label maps.
"""
import argparse
import json
import os
import sys
from pathlib import Path

from _arguments import positive
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

import mmseg_bisenetv2  # noqa: F401 - before mmseg
from mmseg_bisenetv2.datasets import inspection


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('--split', nargs='+', choices=('train', 'val', 'test'),
                        default=['train', 'val'], help='default: train val')
    parser.add_argument('--json', action='store_true', help='prints JSON instead of tables')
    parser.add_argument('--picture', metavar='PNG', help='default: work_dirs/CONFIG/dataset.png')
    parser.add_argument('--num-workers', type=positive, default=os.cpu_count(), metavar='N',
                        help='threads; default: as many as cores')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={},
                        metavar='KEY=VALUE', help='overrides the config')
    args = parser.parse_args()
    try:
        config = Config.fromfile(args.config)
        config.merge_from_dict(args.cfg_options)
    except Exception as error:  # A config is code, which may raise anything.
        sys.exit(f'{args.config} cannot be read: {type(error).__name__}: '
                 + ' '.join(str(error).split()))
    if 'model' not in config or not any(config.get(f'{name}_dataloader') for name in args.split):
        sys.exit(f'{args.config}: expected a model, and a data loader of {", ".join(args.split)}')
    init_default_scope('mmseg')
    MMLogger.get_instance('check_dataset', log_level='ERROR')  # The tables say what it would.
    splits = inspection.inspect_config(config, args.split, args.num_workers)
    versions, warnings = inspection.describe_installation()
    errors = [error for split in splits.values() for error in split.errors]
    picture = Path(args.picture or f'work_dirs/{Path(args.config).stem}/dataset.png')
    drawn = any(split.pairs for split in splits.values())
    if drawn:
        inspection.draw_pairs(splits, picture)
    if args.json:
        print(json.dumps(dict(
            splits={name: split.to_json() for name, split in splits.items()},
            installation=dict(versions=versions, warnings=warnings),
            picture=str(picture) if drawn else None)))
    else:
        inspection.print_splits(splits)
        for warning in warnings:
            print(f'installation: warning: {warning}')
        print(', '.join(f'{name} {version}' for name, version in versions.items()))
        if drawn:
            print(f'Pictures under their label maps: {picture}')
        plural = 's' if len(errors) > 1 else ''
        print(f'A training would fail: {len(errors)} error{plural}' if errors
              else f'A training can start: mim train mmseg {args.config}')
    sys.exit(1 if errors else 0)


if __name__ == '__main__':
    main()
