"""Multiply-accumulates and parameters of a config, by MMEngine's analysis.

    python tools/get_flops.py configs/bisenetv2_fcn_cityscapes.py --size 2048x1024

Counts what runs at inference, on BatchNorm folded into the convolutions; GMAC are those of the
convolutions, as papers state them.
"""
import argparse
import logging
import sys

import torch
from _arguments import SIZE, format_size
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config

import mmseg_bisenetv2  # noqa: F401 - before mmseg
from mmseg_bisenetv2.deploy.network import ImageNetwork

from mmseg.apis import init_model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('--size', **SIZE, default=(512, 1024), help='default: 1024x512')
    args = parser.parse_args()
    try:
        model = init_model(Config.fromfile(args.config), device='cpu')
        network = ImageNetwork(model)
    except (OSError, KeyError, SyntaxError, TypeError, ValueError) as error:
        sys.exit(f'{args.config}: {error}')
    logging.getLogger('mmengine').setLevel(logging.ERROR)
    analysis = FlopAnalyzer(network, (torch.zeros(1, network.in_channels, *args.size), ))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    gmac = analysis.by_operator()['conv'] / 1e9
    parts = analysis.by_module_and_operator()
    heads = model.auxiliary_head if model.with_auxiliary_head else torch.nn.Identity()
    total, heads = (sum(p.numel() for p in module.parameters()) / 1e6
                    for module in (model, heads))
    print(f'{args.config}, {format_size(args.size)}')
    print(f'GMAC           {gmac:.2f}')
    for name in ('backbone.detail', 'backbone.semantic', 'backbone.bga', 'decode_head'):
        print(f'  {name:<18}{parts[name]["conv"] / 1e9:.2f}')
    print(f'parameters (M) {total:.2f} in training, {total - heads:.2f} without auxiliary heads')


if __name__ == '__main__':
    main()
