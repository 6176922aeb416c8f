"""Predicts pictures, folders, videos, cameras and streams.

python tools/predict.py INPUT... --config CONFIG --checkpoint FILE --out DIR
python tools/predict.py INPUT... --model EXPORTED --out DIR
python tools/predict.py INPUT... --model camvid --out DIR  # the network that comes with the package

Exit codes: 1 if an input could not be read to its end, 130 after Ctrl-C, 143 after SIGTERM, 129
after the terminal was closed. What is written by then is complete. A second Ctrl-C ends at once.
"""
import argparse
import functools
import os
import signal
import sys
from types import FrameType

from _arguments import SIZE, positive
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmseg_bisenetv2.deploy import Predictor
from mmseg_bisenetv2.deploy.image import MAX_PIXELS
from mmseg_bisenetv2.deploy.predictor import DTYPES, PRECISIONS
from mmseg_bisenetv2.deploy.shipped import SHIPPED
from mmseg_bisenetv2.video import pipeline, sources, writers


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('inputs', nargs='+', metavar='INPUT', help='picture (of an animation the '
                        "first frame), video, folder, 'pattern*', number of a camera, or rtsp:// "
                        'or http:// address')
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument('--config', help='config of the model')
    model.add_argument('--model', help='exported model, in place of config and checkpoint; or '
                       f'one that comes with the package: {", ".join(SHIPPED)}')
    parser.add_argument('--checkpoint', help='weights for --config')
    parser.add_argument('--out', required=True, help='output folder')
    parser.add_argument('--write', nargs='+', choices=writers.OUTPUTS, default=['overlay'],
                        help="labels: PNG of train ids; label-ids: as Cityscapes' server takes "
                        'them; default: overlay')
    parser.add_argument('--opacity', type=float, default=0.5,
                        help='0 to 1; default: %(default)s')
    parser.add_argument('--backend', choices=('auto', *PRECISIONS), default='auto',
                        help='default: auto, the fastest that is installed')
    parser.add_argument('--precision', choices=('auto', *DTYPES, 'int8'), default='auto',
                        help='fp16 needs a GPU, int8 an exported file; default: auto, fp16 on a '
                        'GPU, bf16 on a CPU where it is faster, else fp32')
    parser.add_argument('--device', help='default: a GPU if there is one')
    parser.add_argument('--size', **SIZE, help='at which the network sees every frame; default: as '
                        "the config's test pipeline has it")
    parser.add_argument('--threads', type=positive, help='of the processor; default: all cores')
    parser.add_argument('--every', type=positive, default=1, metavar='N', help='each Nth frame')
    parser.add_argument('--max-frames', type=positive, metavar='N', help='of each video')
    parser.add_argument('--max-pixels', type=positive, default=MAX_PIXELS, metavar='N',
                        help='larger pictures are refused unread; default: %(default)s')
    parser.add_argument('--fps', type=float,
                        help="up to 1000; default: the video's, 25 if it tells none")
    parser.add_argument('--show', action='store_true', help='in a window, too; q ends')
    args = parser.parse_args()
    if not 0 <= args.opacity <= 1:
        parser.error(f'argument --opacity: expected 0 to 1, got {args.opacity}')
    if args.fps is not None and not 0 < args.fps <= 1000:
        parser.error(f'argument --fps: expected more than 0 and at most 1000, got {args.fps}')
    if args.model and args.model.endswith('.py'):
        parser.error('--model takes an exported file; a config goes with --config and --checkpoint')
    if args.config and args.config.endswith(('.onnx', '.pt2', '.xml')):
        parser.error('--config takes a config; an exported file goes with --model')
    if args.config and not args.checkpoint:
        parser.error('--config needs --checkpoint FILE: without it the weights are random')
    return args


def catch_signals() -> list[int]:
    """The signals that ask to end, in a list that fills as they come."""
    caught: list[int] = []
    terminals = [fd for fd in (1, 2) if os.isatty(fd)]

    def catch(signum: int, _: FrameType | None) -> None:
        caught.append(signum)
        if signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_DFL)
        else:  # it comes twice, and what is printed to a closed terminal is an error
            for fd in terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), fd)

    for name in ('SIGINT', 'SIGTERM', 'SIGHUP'):  # Windows has no SIGHUP; nohup ignores it
        signum = getattr(signal, name, None)
        if signum and not (name == 'SIGHUP' and signal.getsignal(signum) == signal.SIG_IGN):
            signal.signal(signum, catch)
    return caught


def main() -> None:
    args = parse_args()
    sources.silence_decoders()
    found, problems = sources.find_sources(args.inputs, args.out)
    if not found:
        sys.exit('\n'.join(['Nothing to read', *problems]))
    try:
        if args.show:
            pipeline.check_display()
        predictor = Predictor(args.model or args.config, args.checkpoint, backend=args.backend,
                              precision=args.precision, device=args.device,
                              size=args.size, threads=args.threads)
        writer = writers.Writer(predictor, args.out, found, args.write, args.opacity)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(f'Nothing was written: {error}')
    read = functools.partial(sources.read_frames, every=args.every, max_frames=args.max_frames,
                             fps=args.fps, max_pixels=args.max_pixels)
    caught = catch_signals()
    try:
        columns = BarColumn(), MofNCompleteColumn(), TextColumn('frames'), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task('', total=sources.count_frames(found, args.every, args.max_frames))
            summary = pipeline.predict_all(
                predictor, found, writer, read, args.show,
                stopped=lambda: caught, progress=lambda: bar.advance(task))
    except OSError as error:
        sys.exit(f'Stopped: {error}')
    for output, files in writer.files.items():
        print(f'{args.out}/{output}: {files} file{"" if files == 1 else "s"}')
    interrupted = 'interrupted; ' if caught else ''
    live = any(source.kind == 'live' for source in found)
    dropped = f', {summary.dropped} of a camera dropped' if live else ''
    print(f'{interrupted}{summary.frames} frame{"" if summary.frames == 1 else "s"}{dropped}; '
          f'{predictor.backend}, {predictor.precision}')
    if summary.frames > 1:  # the first is left out: it pays for compilation
        for what, seconds in (('end to end', summary.seconds),
                              ('network', summary.network_seconds)):
            print(f'{(summary.frames - 1) / seconds:7.1f} frames per second, {what}')
    if problems := problems + summary.problems:
        print('Not read, or not to the end:', *problems, sep='\n', file=sys.stderr)
    sys.exit(128 + caught[0] if caught else bool(problems))


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:  # before there is anything to complete
        sys.exit(130)
