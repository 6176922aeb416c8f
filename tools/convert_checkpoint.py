"""Converts a checkpoint between layouts, strips it for inference, or makes it a safetensors.

python tools/convert_checkpoint.py SOURCE TARGET [--to LAYOUT] [--strip] [--half]
"""
import argparse
import os
import sys

from mmseg_bisenetv2.checkpoints import LAYOUTS, CheckpointError, convert_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', help='file or address, of any layout')
    parser.add_argument('target', help='file to write; .safetensors for that format, else .pth')
    parser.add_argument('--to', choices=LAYOUTS, default=LAYOUTS[0], help='default: %(default)s')
    parser.add_argument('--strip', action='store_true',
                        help='keep what inference needs: no auxiliary heads, optimiser, log')
    parser.add_argument('--half', action='store_true',
                        help='store the weights of convolutions in FP16: half the size')
    args = parser.parse_args()
    try:
        sizes = convert_checkpoint(args.source, args.target, args.to, args.strip, args.half)
    except (CheckpointError, OSError) as error:
        sys.exit(f'Nothing was written: {error}')
    for name, size in zip((args.source, args.target), sizes, strict=True):
        print(f'{size["tensors"]:4d} tensors {size["parameters"] / 1e6:6.2f} M parameters '
              f'{size["bytes"] / 1e6:7.2f} MB  {name}')
    print(f'{args.target}: {args.to}, {os.path.getsize(args.target) / 1e6:.2f} MB on disk')


if __name__ == '__main__':
    main()
