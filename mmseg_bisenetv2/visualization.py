"""Pictures and curves of a run, from what MMEngine leaves in its work directory.

The figures are made without ``matplotlib.pyplot``, so that a notebook keeps its backend.
"""
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure
from mmengine.dataset import BaseDataset
from torch import nn

_TITLE_HEIGHT = 24


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


def draw_samples(model: nn.Module, dataset: BaseDataset, out_dir: str | Path,
                 indices: Iterable[int]) -> list[Path]:
    """Writes input, ground truth and prediction side by side, one PNG per image.

    Args:
        model: What ``mmseg.apis.init_model`` returns.
        dataset: With label maps; its palette colours them.
        out_dir: Where to write; made if missing.
        indices: Which images of the data set.

    Returns:
        The pictures.
    """
    from mmseg.apis import inference_model

    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    colours = colour_table(dataset.metainfo['palette'])[:, ::-1]  # BGR
    paths = []
    for index in indices:
        image_path = Path(dataset.get_data_info(index)['img_path'])
        image = cv2.imread(str(image_path))
        truth = dataset[index]['data_samples'].gt_sem_seg.data[0].numpy()
        prediction = inference_model(model, image).pred_sem_seg.data[0].cpu().numpy()
        panels = {'input': image, 'ground truth': colours[truth], 'prediction': colours[prediction]}
        paths.append(out_dir / f'{image_path.stem}.png')
        cv2.imwrite(str(paths[-1]), np.hstack([_titled(*item) for item in panels.items()]))
    return paths


def _titled(title: str, picture: np.ndarray) -> np.ndarray:
    strip = np.full((_TITLE_HEIGHT, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, title, (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([strip, np.ascontiguousarray(picture)])


def draw_curve(work_dir: str | Path, path: str | Path) -> None:
    """Plots training loss and validation mIoU over the iterations; resumed runs are joined.

    Args:
        work_dir: That of the training.
        path: The PNG to write.

    Raises:
        FileNotFoundError: If ``work_dir`` holds no ``*/vis_data/scalars.json``.
    """
    logs = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    if not logs:
        raise FileNotFoundError(f'No */vis_data/scalars.json in {work_dir}: was it trained?')
    rows = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    # The dicts keep one value an iteration, so that what a resumed run repeated counts once.
    losses = sorted({row['iter']: row['loss'] for row in rows if 'loss' in row}.items())
    scores = sorted({row['step']: row['mIoU'] for row in rows if 'mIoU' in row}.items())
    figure = Figure(figsize=(7, 4), layout='constrained')
    left = figure.subplots()
    left.plot(*zip(*losses, strict=True), color='tab:blue', marker='.')
    left.set(xlabel='iteration', ylim=(0, None))
    left.set_ylabel('training loss (sum of five heads)', color='tab:blue')
    right = left.twinx()
    if scores:
        right.plot(*zip(*scores, strict=True), color='tab:red', marker='o')
    right.set(ylim=(0, 100))
    right.set_ylabel('validation mIoU (%)', color='tab:red')
    _save(figure, path)


def read_scores(work_dir: str | Path) -> dict[str, float]:
    """Reads the metrics of the newest ``mim test`` in ``work_dir``.

    Returns:
        Such as ``{'mIoU': 74.62, 'aAcc': ...}``, in per cent.

    Raises:
        FileNotFoundError: If nothing was tested there.
    """
    results = sorted(Path(work_dir).glob('[0-9]*/[0-9]*.json'))
    if not results:
        raise FileNotFoundError(f'No result of a test in {work_dir}')
    return json.loads(results[-1].read_text())


def draw_confusion(confusion: np.ndarray, classes: Sequence[str], path: str | Path) -> None:
    """Draws a confusion matrix, each row in per cent of the pixels of its class.

    Args:
        confusion: Pixels, true class by predicted class, (C, C).
        classes: Their names.
        path: The PNG to write; its folder is made if missing.
    """
    share = 100 * confusion / confusion.sum(1, keepdims=True).clip(min=1)
    size = 2.5 + 0.4 * len(classes)
    figure = Figure(figsize=(size + 1, size), layout='constrained')
    axes = figure.subplots()
    image = axes.imshow(share, vmin=0, vmax=100, cmap='Blues')
    axes.set(xlabel='predicted', ylabel='true', xticks=range(len(classes)),
             yticks=range(len(classes)), xticklabels=classes, yticklabels=classes)
    axes.tick_params('x', rotation=90)
    if len(classes) <= 40:  # The cells of more classes are too small for numbers.
        for (row, column), value in np.ndenumerate(share):
            if value >= 0.5:
                axes.text(column, row, f'{value:.0f}', ha='center', va='center', fontsize=7,
                          color='white' if value > 50 else 'black')
    figure.colorbar(image, label='% of the true class', shrink=0.8)
    _save(figure, path)


def _save(figure: Figure, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
