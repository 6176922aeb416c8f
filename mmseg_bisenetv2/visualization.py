"""Pictures and curves of a run, from what MMEngine leaves in its work directory.

The figures are made without ``matplotlib.pyplot``, so that a notebook keeps its backend.
"""
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.figure import Figure

_TITLE_HEIGHT = 24
_PANEL_SIDE = 1024  # Larger pictures are drawn smaller.


def colour_table(palette: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
    """Makes a table that colours label maps: ``colour_table(palette)[labels]``.

    Args:
        palette: An RGB colour for each class, from 0 to 255.

    Returns:
        (256, 3) uint8 RGB; ids without a class are black.
    """
    table = np.zeros((256, 3), np.uint8)
    table[:len(palette)] = palette
    return table


def draw_sample(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray,
                classes: Sequence[str], palette: Sequence[Sequence[int]], path: str | Path) -> None:
    """Writes input, ground truth and prediction side by side, above the classes that occur.

    Args:
        image: BGR, uint8, (H, W, 3); of another size than the label maps it is resized to theirs.
        truth: Class ids, (H, W). What is no class is drawn black.
        prediction: The same.
        classes: Their names.
        palette: Their RGB colours, from 0 to 255.
        path: The PNG to write; its folder is made if missing.
    """
    height, width = truth.shape
    scale = min(1, _PANEL_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    truth, prediction = (cv2.resize(labels.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
                         for labels in (truth, prediction))
    colours = colour_table(palette)[:, ::-1]  # BGR
    panels = {'input': image, 'ground truth': colours[truth], 'prediction': colours[prediction]}
    picture = np.hstack([_titled(*item) for item in panels.items()])
    found = [i for i in np.unique([truth, prediction]) if i < len(classes)]
    legend = _legend([(classes[i], colours[i]) for i in found], picture.shape[1])
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), np.vstack([picture, legend])):
        raise OSError(f'{path} could not be written')


def _titled(title: str, picture: np.ndarray) -> np.ndarray:
    strip = np.full((_TITLE_HEIGHT, picture.shape[1], 3), 255, np.uint8)
    _write(strip, title, 6, 17)
    return np.vstack([strip, np.ascontiguousarray(picture)])


def _legend(entries: Sequence[tuple[str, np.ndarray]], width: int) -> np.ndarray:
    """Draws names beside squares of their BGR colours, in as many rows as they need."""
    x, y, places = 6, 0, []
    for name, colour in entries:
        needed = 18 + cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0] + 14
        if x > 6 and x + needed > width:
            x, y = 6, y + _TITLE_HEIGHT
        places.append((x, y, name, colour))
        x += needed
    legend = np.full((y + _TITLE_HEIGHT, width, 3), 255, np.uint8)
    for x, y, name, colour in places:
        cv2.rectangle(legend, (x, y + 6), (x + 12, y + 18), colour.tolist(), cv2.FILLED)
        _write(legend, name, x + 18, y + 17)
    return legend


def _write(picture: np.ndarray, text: str, x: int, y: int) -> None:
    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)


class Curve(NamedTuple):
    """What a training has logged, by iteration."""

    losses: dict[int, float]
    scores: dict[int, float]  # Validation mIoU, in per cent.


def read_curve(work_dir: str | Path) -> Curve:
    """Reads the losses and the validation mIoU of a training; resumed runs are joined.

    Where a run was begun anew in the same folder, what was logged before it does not count; where
    it was resumed, what it repeated counts once.

    Args:
        work_dir: That of the training, with ``*/vis_data/scalars.json``, MMEngine's log as JSON
            lines.

    Raises:
        FileNotFoundError: If nothing was logged there.
    """
    curve = Curve({}, {})
    logs = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    for log in logs:
        rows = list(_read_rows(log))
        begin = next((row['iter'] for row in rows if 'loss' in row), None)
        if begin is None:
            continue
        if _began_anew(log):
            begin = 0
        for values in curve:
            for iteration in [i for i in values if i >= begin]:
                del values[iteration]
        last, by_epoch = 0, False
        for row in rows:
            if 'loss' in row:
                last = row['iter']
                curve.losses[last] = row['loss']
                by_epoch = 'epoch' in row
            elif 'mIoU' in row:  # Its step is the epoch where the training counts epochs.
                curve.scores[last if by_epoch else row['step']] = row['mIoU']
    if not curve.losses:
        raise FileNotFoundError(
            f'No training was logged in {work_dir}: expected its work directory, with '
            '*/vis_data/scalars.json')
    return curve


def _read_rows(log: Path) -> Iterable[dict]:
    lines = log.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            if number < len(lines):  # A run that was killed may have torn its last line.
                raise


def _began_anew(log: Path) -> bool:
    """Whether MMEngine's copy of the config, beside the log, says that nothing was resumed."""
    config = log.with_name('config.py')
    return config.is_file() and not re.search(r'^resume = True', config.read_text(), re.MULTILINE)


def draw_curves(work_dirs: Mapping[str, str | Path], path: str | Path) -> None:
    """Plots training loss and validation mIoU of one or several trainings over the iterations.

    Args:
        work_dirs: Those of the trainings, with their labels as keys.
        path: The picture to write, such as a PNG.

    Raises:
        FileNotFoundError: If nothing was logged in one of them.
    """
    curves = {label: read_curve(work_dir) for label, work_dir in work_dirs.items()}
    is_scored = any(curve.scores for curve in curves.values())
    figure = Figure(figsize=(8, 6 if is_scored else 3.5), layout='constrained')
    axes = figure.subplots(1 + is_scored, sharex=True, squeeze=False)[:, 0]
    for label, curve in curves.items():
        axes[0].plot(*_points(curve.losses), label=label, linewidth=1)
        if is_scored:
            axes[1].plot(*_points(curve.scores), label=label, marker='.')
    axes[0].set(ylabel='training loss', ylim=(0, None))
    if is_scored:
        axes[1].set(ylabel='validation mIoU (%)', ylim=(0, None))
    axes[-1].set(xlabel='iteration', xlim=(0, None))
    for each in axes:
        each.grid(alpha=0.3)
        each.spines[['top', 'right']].set_visible(False)
    if len(curves) > 1:
        axes[0].legend()
    _save(figure, path)


def _points(values: dict[int, float]) -> tuple[list[int], list[float]]:
    iterations = sorted(values)
    return iterations, [values[i] for i in iterations]


def draw_confusion(confusion: np.ndarray, classes: Sequence[str], path: str | Path) -> None:
    """Draws a confusion matrix, each row in per cent of the pixels of its class.

    Args:
        confusion: Pixels, true class by predicted class, (C, C).
        classes: Their names.
        path: The PNG to write; its folder is made if missing.
    """
    share = 100 * confusion / confusion.sum(1, keepdims=True).clip(min=1)
    has_numbers = len(classes) <= 40  # With more, small cells without numbers keep it readable.
    size = 2.5 + (0.4 if has_numbers else 0.11) * len(classes)
    figure = Figure(figsize=(size + 1, size), layout='constrained')
    axes = figure.subplots()
    image = axes.imshow(share, vmin=0, vmax=100, cmap='Blues')
    axes.set(xlabel='predicted', ylabel='true', xticks=range(len(classes)),
             yticks=range(len(classes)), xticklabels=classes, yticklabels=classes)
    axes.tick_params('x', rotation=90)
    axes.tick_params(labelsize='medium' if has_numbers else 6)
    if has_numbers:
        for (row, column), value in np.ndenumerate(share):
            if value >= 0.5:
                axes.text(column, row, f'{value:.0f}', ha='center', va='center', fontsize=7,
                          color='white' if value > 50 else 'black')
    figure.colorbar(image, label='% of the true class', shrink=0.8)
    _save(figure, path)


def _save(figure: Figure, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
