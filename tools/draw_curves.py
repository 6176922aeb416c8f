"""Draws training loss and validation mIoU of one or several trainings into one picture.

    python tools/draw_curves.py work_dirs/mine
    python tools/draw_curves.py work_dirs/ours work_dirs/stock --out curves.png

Reads MMEngine's log as JSON lines, WORK_DIR/*/vis_data/scalars.json, of any MMSegmentation config.
The losses are those of the log: each is a mean over the iterations before it.
"""
import argparse
import sys
from pathlib import Path

from mmseg_bisenetv2.visualization import draw_curves


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR',
                        help='work directory of a training')
    parser.add_argument('--labels', nargs='+', metavar='LABEL',
                        help='one for each training; default: the names of the folders')
    parser.add_argument('--out', default='curves.png', metavar='PICTURE',
                        help='.png, .svg or .pdf; default: %(default)s')
    args = parser.parse_args()
    labels = args.labels or [Path(folder).resolve().name for folder in args.work_dirs]
    if len(labels) != len(args.work_dirs):
        parser.error(f'--labels: expected {len(args.work_dirs)}, one for each training, '
                     f'got {len(labels)}')
    if len(set(labels)) < len(labels):
        parser.error(f'two trainings have the same label, {", ".join(labels)}: name each by '
                     '--labels')
    try:
        draw_curves(dict(zip(labels, args.work_dirs, strict=True)), args.out)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(args.out)


if __name__ == '__main__':
    main()
