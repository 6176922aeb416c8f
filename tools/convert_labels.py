"""Converts labels to the folders of bisenetv2_fcn_custom.py.

    python tools/convert_labels.py PICTURES data/my_dataset --classes road car
    python tools/convert_labels.py PICTURES data/my_dataset --config configs/mine.py

LabelMe and COCO .json, and label maps of colours, of 0 and 255, or of class ids are recognised.
Pixels without a label become class 0, "background", which --classes need not name.
"""
import argparse
import shlex
import sys

from mmengine.config import Config

import mmseg_bisenetv2  # noqa: F401 - before mmseg
from mmseg_bisenetv2.datasets.label_conversion import KINDS, convert_labels, parse_classes

from mmseg.registry import DATASETS


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', help='folder of the pictures, with their labels beside them')
    parser.add_argument('target', help='folder to write')
    parser.add_argument('--labels', help='folder or file of the labels, if it is another')
    parser.add_argument('--from', dest='kind', choices=KINDS, help='default: recognised')
    group = parser.add_mutually_exclusive_group()
    group.add_argument('--classes', nargs='+', default=(), metavar='NAME', help=(
        'in the order of their ids, between spaces or commas. "background" is put in front unless '
        'you name it or say --ignore-unlabelled. NAME=LABEL,LABEL for labels of another name, such '
        'as lane=#804080 or lane=7; ignore=LABEL for 255; "cityscapes" for labelIds. Default: what '
        'is found, in alphabetical order'))
    group.add_argument('--config', help='takes the classes and the palette of its training data')
    parser.add_argument('--val', type=float, default=0.2, metavar='SHARE', help=(
        'for validation, unless folders are called train and val; default: %(default)s'))
    parser.add_argument('--ignore-unlabelled', action='store_true', help='255, not background')
    parser.add_argument('--img-suffix', default='', help='such as _leftImg8bit.png')
    parser.add_argument('--seg-map-suffix', default='', help='such as _gtFine_labelIds.png')
    parser.add_argument('--overwrite', action='store_true', help='replaces an earlier conversion')
    return parser.parse_args()


def main() -> None:
    args = vars(parse_args())
    texts, config = args.pop('classes'), args.pop('config')
    try:
        if config:
            dataset = Config.fromfile(config).train_dataloader.dataset
            metainfo = DATASETS.get(dataset.type).METAINFO | dataset.get('metainfo', {})
            args.update(classes=dict.fromkeys(metainfo['classes'], ()),
                        palette=metainfo.get('palette') or ())
        elif texts:
            args.update(classes=parse_classes(texts, args['ignore_unlabelled']))
        result = convert_labels(**args)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(f'Labels of the kind {result.kind}. Pictures without labels, left out: '
          f'{len(result.left_out)}', *result.left_out[:1])
    print(result.table())
    print(f'\nFor the config:\nclasses = {tuple(result.classes)}\npalette = {result.palette}\n'
          f'scale = {result.sizes.most_common(1)[0][0]}\ndata = dict(data_root={args["target"]!r}, '
          f'img_suffix={result.img_suffix!r}, seg_map_suffix=\'.png\')')
    if not config:
        print('\nNext: python -m mmseg_bisenetv2 new_config mine.py --data '
              + shlex.quote(args['target']))


if __name__ == '__main__':
    main()
