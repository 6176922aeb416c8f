"""Draws predictions beside the ground truth, and the training curve, of a finished training.

A training with this package's configs draws six pictures and its curve by itself (ResultsHook).
This tool draws as many pictures as --num says, and serves where that hook was off.
"""
import argparse
from pathlib import Path

from mmengine.config import Config

import mmseg_bisenetv2  # noqa: F401 - before mmseg.apis, which needs it
from mmseg_bisenetv2.visualization import draw_curves, draw_samples, read_scores

from mmseg.apis import init_model
from mmseg.registry import DATASETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('work_dir',
                        help='of the training; pictures/ and training_curve.png are put there')
    parser.add_argument('--test-dir', help='work directory of `mim test`: prints its mIoU')
    parser.add_argument('--num', type=int, default=6, help='pictures; default: %(default)s')
    parser.add_argument('--device', default='cpu', help='default: %(default)s')
    args = parser.parse_args()
    config = Config.fromfile(args.config)
    model = init_model(config, args.checkpoint, device=args.device)
    dataset = DATASETS.build(config.test_dataloader.dataset)
    work_dir = Path(args.work_dir)
    pictures = draw_samples(
        model, dataset, work_dir / 'pictures', range(min(args.num, len(dataset))))
    draw_curves({work_dir.name: work_dir}, work_dir / 'training_curve.png')
    print(f'Pictures:   {pictures[0].parent}/ ({len(pictures)})')
    print(f'Curve:      {work_dir / "training_curve.png"}')
    print(f'Checkpoint: {args.checkpoint}')
    if args.test_dir:
        print(f'mIoU:       {read_scores(args.test_dir)["mIoU"]:.2f} %')


if __name__ == '__main__':
    main()
