"""Writes a toy Cityscapes, cartoon scenes with all 19 classes, in the layout of the real data set.

python tools/make_toy_cityscapes.py data/toy_cityscapes --train 64 --val 16 --size 512x256
"""
import argparse

from _arguments import SIZE, format_size, positive

from mmseg_bisenetv2.datasets.toy_cityscapes import make_toy_cityscapes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Write a toy Cityscapes for CityscapesDataset; an earlier one is replaced.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('root', nargs='?', default='data/toy_cityscapes', help='output folder')
    parser.add_argument('--train', type=positive, default=64, metavar='N', help='training images')
    parser.add_argument('--val', type=positive, default=16, metavar='N', help='validation images')
    parser.add_argument('--size', **SIZE, default='512x256', help='in pixels')
    parser.add_argument('--seed', type=int, default=0, help='another seed, other scenes')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    root = make_toy_cityscapes(args.root, args.train, args.val, args.size, args.seed)
    print(f'{root}: {args.train} training and {args.val} validation images of '
          f'{format_size(args.size)}')


if __name__ == '__main__':
    main()
