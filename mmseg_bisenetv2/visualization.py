"""Pictures and curves of a run, from what MMEngine leaves in its work directory."""
import json
from pathlib import Path

import cv2
import numpy as np

_TITLE_HEIGHT = 24


def draw_samples(model, dataset, out_dir, indices):
    """Writes input, ground truth and prediction side by side, one PNG per image.

    Args:
        model (nn.Module): What ``mmseg.apis.init_model`` returns.
        dataset (BaseSegDataset): With label maps; its palette colours them.
        out_dir (str | Path): Where to write; made if missing.
        indices (Iterable[int]): Which images of the data set.

    Returns:
        list[Path]: The pictures.
    """
    from mmseg.apis import inference_model

    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    palette = np.zeros((256, 3), np.uint8)  # ids without a class stay black
    palette[:len(dataset.metainfo['palette'])] = dataset.metainfo['palette']
    paths = []
    for index in indices:
        image_path = Path(dataset.get_data_info(index)['img_path'])
        image = cv2.imread(str(image_path))
        truth = dataset[index]['data_samples'].gt_sem_seg.data[0].numpy()
        prediction = inference_model(model, image).pred_sem_seg.data[0].cpu().numpy()
        panels = {
            'input': image,
            'ground truth': palette[truth][..., ::-1],  # RGB -> BGR
            'prediction': palette[prediction][..., ::-1],
        }
        paths.append(out_dir / f'{image_path.stem}.png')
        cv2.imwrite(str(paths[-1]), np.hstack([_titled(*item) for item in panels.items()]))
    return paths


def _titled(title, picture):
    strip = np.full((_TITLE_HEIGHT, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, title, (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([strip, np.ascontiguousarray(picture)])


def draw_curve(work_dir, path):
    """Plots training loss and validation mIoU over the iterations; resumed runs are joined.

    Args:
        work_dir (str | Path): That of the training.
        path (str | Path): The PNG to write.

    Raises:
        FileNotFoundError: If ``work_dir`` holds no ``*/vis_data/scalars.json``.
    """
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    logs = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    if not logs:
        raise FileNotFoundError(f'No */vis_data/scalars.json in {work_dir}: was it trained?')
    rows = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    # by iteration, so that what a resumed run repeated counts once
    losses = sorted({row['iter']: row['loss'] for row in rows if 'loss' in row}.items())
    scores = sorted({row['step']: row['mIoU'] for row in rows if 'mIoU' in row}.items())
    figure, left = plt.subplots(figsize=(7, 4), layout='constrained')
    left.plot(*zip(*losses, strict=True), color='tab:blue', marker='.')
    left.set(xlabel='iteration', ylim=(0, None))
    left.set_ylabel('training loss (sum of five heads)', color='tab:blue')
    right = left.twinx()
    if scores:
        right.plot(*zip(*scores, strict=True), color='tab:red', marker='o')
    right.set(ylim=(0, 100))
    right.set_ylabel('validation mIoU (%)', color='tab:red')
    figure.savefig(path, dpi=120)
    plt.close(figure)


def read_scores(work_dir):
    """The metrics of the newest ``mim test`` in ``work_dir``.

    Returns:
        dict[str, float]: Such as ``{'mIoU': 74.62, 'aAcc': ...}``, in per cent.

    Raises:
        FileNotFoundError: If nothing was tested there.
    """
    results = sorted(Path(work_dir).glob('[0-9]*/[0-9]*.json'))
    if not results:
        raise FileNotFoundError(f'No result of a test in {work_dir}')
    return json.loads(results[-1].read_text())


def draw_confusion(confusion, classes, path):
    """Draws a confusion matrix, each row in per cent of the pixels of its class.

    Args:
        confusion (np.ndarray): Pixels, true class by predicted class, (C, C).
        classes (Sequence[str]): Their names.
        path (str | Path): The PNG to write; its folder is made if missing.
    """
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    share = 100 * confusion / confusion.sum(1, keepdims=True).clip(min=1)
    size = 2.5 + 0.4 * len(classes)
    figure, axes = plt.subplots(figsize=(size + 1, size), layout='constrained')
    image = axes.imshow(share, vmin=0, vmax=100, cmap='Blues')
    axes.set(xlabel='predicted', ylabel='true', xticks=range(len(classes)),
             yticks=range(len(classes)), xticklabels=classes, yticklabels=classes)
    axes.tick_params('x', rotation=90)
    if len(classes) <= 40:  # more cells are too small for numbers
        for (row, column), value in np.ndenumerate(share):
            if value >= 0.5:
                axes.text(column, row, f'{value:.0f}', ha='center', va='center', fontsize=7,
                          color='white' if value > 50 else 'black')
    figure.colorbar(image, label='% of the true class', shrink=0.8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_speeds(ratios, label, path):
    """Draws figures as bars, one below the other.

    Args:
        ratios (dict[str, float]): A figure for each name.
        label (str): What they are.
        path (str | Path): The PNG to write; its folder is made if missing.
    """
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.35 * len(ratios)), layout='constrained')
    bars = axes.barh(list(ratios), list(ratios.values()), color='tab:blue')
    axes.bar_label(bars, fmt='%.1f', padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.spines[['top', 'right']].set_visible(False)
    axes.set_xlabel(label)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
