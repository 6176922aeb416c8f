"""Decodes a data set once, so that training maps pixels and decodes nothing.

    python tools/cache_dataset.py configs/bisenetv2_fcn_cityscapes.py --num-workers 8

Writes DATA_ROOT/cache_mmseg_bisenetv2, which the data sets of this package use from then on:
25 GB for Cityscapes' training split. Run it again after a change of the data or after an
interruption: finished files are checked by their hashes and kept. Data sets inside of wrappers,
such as RepeatDataset and ConcatDataset, are decoded one by one.
"""
import argparse
import sys

from _arguments import positive
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope

import mmseg_bisenetv2  # noqa: F401 - before mmseg
from mmseg_bisenetv2.datasets.cache import build_cache
from mmseg_bisenetv2.datasets.inspection import build_datasets


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('--split', nargs='+', choices=('train', 'val', 'test'), default=['train'],
                        help='default: train')
    parser.add_argument('--out', metavar='DIR', help='writes there, and links to it')
    parser.add_argument('--num-workers', type=positive, default=4, metavar='N',
                        help='threads; default: %(default)s')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={},
                        metavar='KEY=VALUE', help='overrides the config')
    args = parser.parse_args()
    init_default_scope('mmseg')
    try:
        config = Config.fromfile(args.config)
        config.merge_from_dict(args.cfg_options)
        for split in args.split:
            for dataset in build_datasets(config[f'{split}_dataloader'].dataset):
                files = dataset.load_data_list()
                decoded, kept = build_cache(
                    dataset.data_root, [file['img_path'] for file in files],
                    [file['seg_map_path'] for file in files if 'seg_map_path' in file],
                    args.out, args.num_workers)
                print(f'{split}: {decoded} files decoded, {kept} were finished')
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == '__main__':
    main()
