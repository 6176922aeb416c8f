"""Writes a config for your own classes and pictures, to be trained from any folder.

    python tools/new_config.py mine.py --data data/my_dataset --classes background,road,car

The folder holds img_dir/{train,val}/NAME.jpg and ann_dir/{train,val}/NAME.png, label maps of class
ids. tools/convert_labels.py makes such a folder from labels of other kinds, with a classes.txt, so
that --classes can be left out.
"""
import argparse
import sys

from _arguments import SIZE

from mmseg_bisenetv2.new_config import write_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the file to write, NAME.py')
    parser.add_argument('--data', required=True, metavar='DIR', help='the folder of the data set')
    parser.add_argument('--classes', nargs='+', metavar='NAME', help=(
        'all of them in the order of their ids, "background" too if the label maps have it, '
        'between commas or spaces; or a text file. Default: classes.txt in the folder of --data'))
    parser.add_argument('--size', **SIZE,
                        help='of the pictures; default: that of the first training picture')
    parser.add_argument('--force', action='store_true', help='overwrites an existing file')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    classes = args.classes and [
        name for text in args.classes for name in text.removesuffix(',').split(',')]
    try:
        print(write_config(args.config, args.data, classes,
                           args.size and args.size[::-1], args.force))
    except (OSError, ValueError) as error:
        sys.exit(f'Nothing was written: {error}')
    print('Its first lines say how to check the data and train. Look at the settings below them.')


if __name__ == '__main__':
    main()
