"""Predicts pictures, folders, videos, cameras and streams.

python tools/predict.py INPUT... --config CONFIG --checkpoint FILE --out DIR
python tools/predict.py INPUT... --model EXPORTED --out DIR

Exit codes: 1 if an input could not be read to its end, 130 after Ctrl-C, 143 after SIGTERM. What is
written by then is complete. A second Ctrl-C ends at once.
"""
import argparse
import signal
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmseg_bisenetv2.deploy import Predictor, stream


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('inputs', nargs='+', metavar='INPUT', help='picture, video, folder, '
                        "'pattern*', number of a camera, or rtsp:// or http:// address")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument('--config', help='config of the model')
    model.add_argument('--model', help='exported model, in place of config and checkpoint')
    parser.add_argument('--checkpoint', help='weights for --config')
    parser.add_argument('--out', required=True, help='output folder')
    parser.add_argument('--write', nargs='+', choices=stream.OUTPUTS, default=['overlay'],
                        help="labels: PNG of train ids; label-ids: as Cityscapes' server takes "
                        'them; default: overlay')
    parser.add_argument('--opacity', type=float, default=0.5, help='default: %(default)s')
    parser.add_argument('--backend', default='auto', help='default: %(default)s')
    parser.add_argument('--precision', default='auto', help='default: %(default)s')
    parser.add_argument('--device', help='default: a GPU if there is one')
    parser.add_argument('--size', type=positive, nargs=2, metavar=('H', 'W'), help='at which the '
                        "network sees every frame; default: as the config's test pipeline has it")
    parser.add_argument('--threads', type=positive, help='of the processor; default: all cores')
    parser.add_argument('--every', type=positive, default=1, metavar='N', help='each Nth frame')
    parser.add_argument('--max-frames', type=positive, metavar='N', help='of each video')
    parser.add_argument('--fps', type=float, help="default: the video's, 25 if it tells none")
    parser.add_argument('--show', action='store_true', help='in a window, too; q ends')
    args = parser.parse_args()
    if args.model and args.model.endswith('.py'):
        parser.error('--model takes an exported file; a config goes with --config and --checkpoint')
    if args.config and args.config.endswith(('.onnx', '.pt2', '.xml')):
        parser.error('--config takes a config; an exported file goes with --model')
    if args.config and not args.checkpoint:
        parser.error('--config needs --checkpoint FILE: without it the weights are random')
    return args


def positive(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} is less than 1')
    return int(text)


def main():
    args = parse_args()
    sources, problems = stream.find_sources(args.inputs, args.out)
    if not sources:
        sys.exit('\n'.join(['Nothing to read', *problems]))
    caught = []

    def catch(number, _):
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)

    try:
        if args.show:
            stream.check_display()
        predictor = Predictor(args.model or args.config, args.checkpoint, backend=args.backend,
                              precision=args.precision, device=args.device,
                              size=args.size, threads=args.threads)
        writer = stream.Writer(predictor, args.out, sources, args.write, args.opacity)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(f'Nothing was written: {error}')
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, catch)
        columns = BarColumn(), MofNCompleteColumn(), TextColumn('frames'), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task('', total=stream.count_frames(sources, args.every, args.max_frames))
            report = stream.predict_all(
                predictor, sources, writer, args.every, args.max_frames, args.fps, args.show,
                stopped=lambda: caught, progress=lambda: bar.advance(task))
    except OSError as error:
        sys.exit(f'Stopped: {error}')
    for output, number in writer.files.items():
        print(f'{args.out}/{output}: {number} files')
    interrupted = 'interrupted; ' if caught else ''
    print(f'{interrupted}{report.frames} frames, {report.dropped} of a camera dropped; '
          f'{predictor.backend}, {predictor.precision}')
    if report.frames > 1:  # the first is left out: it pays for compilation
        for name, seconds in (('end to end', report.seconds), ('network', report.network_seconds)):
            print(f'{(report.frames - 1) / seconds:7.1f} frames per second, {name}')
    if problems := problems + report.problems:
        print('Not read, or not to the end:', *problems, sep='\n', file=sys.stderr)
    sys.exit(128 + caught[0] if caught else bool(problems))


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:  # before there is anything to complete
        sys.exit(130)
