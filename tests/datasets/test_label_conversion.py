"""Labels of every kind become the expected class ids; what is not understood is refused by name."""
import json
import runpy
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_bisenetv2.datasets.label_conversion import (
    convert_labels,
    number_labels,
    parse_classes,
    split_pictures,
)
from mmseg_bisenetv2.datasets.label_files import fill_polygon

from mmseg.registry import DATASETS

ROOT = Path(__file__).parents[2]
HEIGHT, WIDTH = 8, 12


def write_picture(path, size=(HEIGHT, WIDTH), **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path, **kwargs)


def write_map(path, labels, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.array(labels, np.uint8))
    if palette:
        picture.putpalette(palette)
    picture.save(path)


def shape(label, points, kind='polygon'):
    return dict(label=label, points=points, shape_type=kind)


def write_labelme(folder, name, *shapes, suffix='.jpg', **content):
    write_picture(folder / f'{name}{suffix}')
    (folder / f'{name}.json').write_text(json.dumps(dict(
        version='5.5.0', shapes=shapes, imagePath=f'{name}{suffix}', imageData=None,
        imageHeight=HEIGHT, imageWidth=WIDTH) | content))


def write_coco(path, annotations, pictures=('a.jpg', 'b.jpg'), categories=('road', 'car'),
               size=(HEIGHT, WIDTH)):
    for name in pictures:
        write_picture(path.parent / name)
    path.write_text(json.dumps(dict(
        images=[dict(id=10 + i, file_name=name, height=size[0], width=size[1])
                for i, name in enumerate(pictures)],
        categories=[dict(id=90 - i, name=name) for i, name in enumerate(categories)],
        annotations=[dict(dict(id=i, image_id=10, category_id=90), **annotation)
                     for i, annotation in enumerate(annotations)])))


def read(target, name):
    """The label map of a picture, of whichever split it went to."""
    path, = target.glob(f'ann_dir/*/{name}.png')
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def rectangle(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def test_labelme(tmp_path):
    source, target = tmp_path / 'source', tmp_path / 'target'
    write_labelme(
        source, 'a', shape('road', rectangle(0, 4, 12, 8)),
        shape('car', [[2, 2], [5, 6]], 'rectangle'),
        shape('road', rectangle(4, 5, 12, 6)), shape('__ignore__', rectangle(0, 0, 1, 1)))
    write_labelme(source, 'b', shape('car', [[6, 4], [6, 6]], 'circle'),
                  shape('_background_', rectangle(6, 0, 12, 8)))
    write_labelme(source, 'c')
    (source / 'c.json').write_text('{"shapes": []}')  # All background.
    write_picture(source / 'unlabelled.jpg')
    result = convert_labels(source, target)
    assert result.kind == 'labelme' and result.img_suffix == '.jpg'
    assert result.classes == ['background', 'car', 'road'] and len(result.palette) == 3
    assert result.left_out == [source / 'unlabelled.jpg']
    assert (target / 'classes.txt').read_text() == 'background\ncar\nroad\n'
    assert result.sizes == {(WIDTH, HEIGHT): 3}
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[4:] = 2
    expected[2:6, 2:5] = 1
    expected[5, 4:] = 2  # The later shape is on top.
    expected[0, 0] = 255
    assert (read(target, 'a') == expected).all()
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)  # The left half of a circle of radius 2.
    expected[2:6, 5] = expected[3:5, 4] = 1
    assert (read(target, 'b') == expected).all()
    assert not read(target, 'c').any()
    assert sorted(len(n) for n in result.pixels.values()) == [1, 2]
    assert sum(n.sum(0) for n in result.pixels.values())[255] == 1
    copy, = target.glob('img_dir/*/a.jpg')
    assert copy.read_bytes() == (source / 'a.jpg').read_bytes()


def test_labelme_of_another_folder_and_name(tmp_path):
    for i, name in enumerate(('renamed', 'b')):
        write_labelme(tmp_path / 'json', name, shape('road', rectangle(i, 0, 12, 8)),
                      imagePath='..\\pictures\\film\\a.jpg' if i == 0 else 'gone.jpg')
        (tmp_path / f'json/{name}.jpg').unlink()
        write_picture(tmp_path / 'pictures' / ('film/a.jpg', 'b.jpg')[i])
    with pytest.raises(ValueError, match=r'renamed\.json: expected one picture.*film/a\.jpg'):
        convert_labels(tmp_path / 'pictures', tmp_path / 'target', tmp_path / 'json')
    shutil.move(tmp_path / 'pictures/film/a.jpg', tmp_path / 'pictures/renamed.jpg')
    convert_labels(tmp_path / 'pictures', tmp_path / 'target', tmp_path / 'json')
    assert read(tmp_path / 'target', 'renamed').all()
    assert read(tmp_path / 'target', 'b')[:, 1:].all()


def test_coco(tmp_path):
    crowd = dict(segmentation=dict(size=[8, 12], counts=[0, 96]), iscrowd=1)
    write_coco(tmp_path / 'source/instances.json', [
        dict(segmentation=[[0, 6, 2, 6, 2, 8, 0, 8], [10, 6, 12, 6, 12, 8, 10, 8]],
             category_id=89), crowd,
        dict(segmentation=dict(size=[8, 12], counts='a0350a02]O000f0'), category_id=89)])
    result = convert_labels(tmp_path / 'source', tmp_path / 'target')
    assert result.kind == 'coco' and result.classes == ['background', 'car', 'road']
    expected = np.full((HEIGHT, WIDTH), 2, np.uint8)
    expected[6:, :2] = expected[6:, 10:] = 1  # The crowd is below.
    expected[1:4, 2:4] = expected[2:7, 6:9] = 1  # pycocotools.mask.encode made the string of these.
    assert (read(tmp_path / 'target', 'a') == expected).all()
    assert not read(tmp_path / 'target', 'b').any()  # It is listed, and has no object.


def test_coco_in_the_folders_of_its_splits(tmp_path):
    segmentation = [[0, 0, 12, 0, 12, 8, 0, 8]]
    for folder in ('train', 'valid'):
        write_coco(tmp_path / f'source/{folder}/_annotations.coco.json',
                   [dict(segmentation=segmentation)])
    convert_labels(tmp_path / 'source', tmp_path / 'target')
    for split in ('train', 'val'):
        assert {path.name for path in (tmp_path / 'target/img_dir' / split).iterdir()} == {
            'a.jpg', 'b.jpg'}
        assert cv2.imread(str(tmp_path / f'target/ann_dir/{split}/a.png'))[0, 0, 0] == 1


COLOURS = [[0, 0, 0], [128, 64, 128], [0, 0, 142]]
INDICES = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 3


@pytest.mark.parametrize('palette_picture', [False, True])
@pytest.mark.parametrize('how', ['found', 'named', 'palette'])
def test_colours(tmp_path, how, palette_picture):
    for name in ('a', 'b'):
        write_picture(tmp_path / f'pictures/{name}.jpg')
        if palette_picture:
            flat = [value for colour in COLOURS for value in colour]
            write_map(tmp_path / f'masks/{name}.png', INDICES, flat)
        else:
            write_map(tmp_path / f'masks/{name}.png', np.array(COLOURS)[INDICES])
    kwargs, ids, palette = dict(
        found=({}, [0, 2, 1], [[0, 0, 0], [0, 0, 142], [128, 64, 128]]),
        named=(dict(classes=parse_classes(['car=#00008e', 'ignore=#804080'])), [0, 255, 1],
               [[0, 0, 0], [0, 0, 142]]),
        palette=(dict(classes=dict.fromkeys(['car', 'road', 'x'], ()),
                      palette=[COLOURS[2], COLOURS[1], COLOURS[0]]), [2, 1, 0],
                 [COLOURS[2], COLOURS[1], COLOURS[0]]))[how]
    result = convert_labels(tmp_path / 'pictures', tmp_path / 'target', tmp_path / 'masks',
                            kind='colours' if palette_picture else None, **kwargs)
    assert result.kind == 'colours' and result.palette == palette
    assert (read(tmp_path / 'target', 'a') == np.array(ids)[INDICES]).all()
    if how == 'found':
        assert result.classes == ['background', 'colour_00008e', 'colour_804080']


@pytest.mark.parametrize('channels', [1, 3])
def test_binary_masks_beside_the_pictures(tmp_path, channels):
    mask = (INDICES == 1) * 255
    for name in ('a', 'b'):
        write_picture(tmp_path / f'source/{name}.jpg')
        write_map(tmp_path / f'source/{name}.png', mask if channels == 1 else np.dstack([mask] * 3))
    result = convert_labels(tmp_path / 'source', tmp_path / 'target')
    assert result.kind == 'binary' and result.classes == ['background', 'foreground']
    assert (read(tmp_path / 'target', 'a') == (INDICES == 1)).all()
    result = convert_labels(tmp_path / 'source', tmp_path / 'target', overwrite=True,
                            classes=parse_classes(['drivable']))
    assert result.classes == ['background', 'drivable']
    assert (read(tmp_path / 'target', 'b') == (INDICES == 1)).all()
    with pytest.raises(ValueError, match='belongs to road and to car'):
        convert_labels(tmp_path / 'source', tmp_path / 'other',
                       classes=parse_classes(['road', 'car']))


@pytest.mark.parametrize('values, kwargs, classes, expected', [
    ([0, 1, 255], {}, ['class_0', 'class_1'], [0, 1, 255]),
    ([7, 26, 11], {}, ['class_7', 'class_11', 'class_26'], [0, 2, 1]),
    ([0, 1, 2], dict(classes=parse_classes(['road', 'car'])), ['background', 'road', 'car'],
     [0, 1, 2]),
    ([0, 1, 2], dict(classes=dict.fromkeys(['sky', 'road', 'car'], ())), ['sky', 'road', 'car'],
     [0, 1, 2]),
    ([0, 1, 2], dict(classes=parse_classes(['road', 'car'], True), ignore_unlabelled=True),
     ['road', 'car'], [255, 0, 1]),
    ([7, 26, 11], dict(classes=parse_classes(['background=11', 'drivable=7,26'])),
     ['background', 'drivable'], [1, 1, 0]),
])
def test_ids(tmp_path, values, kwargs, classes, expected):
    for name in ('a', 'b'):
        write_picture(tmp_path / f'source/{name}.jpg')
        write_map(tmp_path / f'source/{name}.png', np.array(values)[INDICES])
    result = convert_labels(tmp_path / 'source', tmp_path / 'target', **kwargs)
    assert result.kind == 'ids' and result.classes == classes
    assert (read(tmp_path / 'target', 'a') == np.array(expected)[INDICES]).all()


def test_cityscapes(tmp_path):
    for split in ('train', 'val'):
        write_picture(tmp_path / f'leftImg8bit/{split}/ulm/ulm_0_leftImg8bit.png')
        write_map(tmp_path / f'gtFine/{split}/ulm/ulm_0_gtFine_labelIds.png',
                  np.array([0, 7, 33])[INDICES])
        write_map(tmp_path / f'gtFine/{split}/ulm/ulm_0_gtFine_color.png', INDICES)
        (tmp_path / f'gtFine/{split}/ulm/ulm_0_gtFine_polygons.json').write_text('{}')
    result = convert_labels(
        tmp_path / 'leftImg8bit', tmp_path / 'target', tmp_path / 'gtFine',
        classes=parse_classes(['cityscapes']), img_suffix='_leftImg8bit.png',
        seg_map_suffix='_gtFine_labelIds.png')
    assert len(result.classes) == 19 and result.img_suffix == '.png'
    for split in ('train', 'val'):
        labels = cv2.imread(str(tmp_path / f'target/ann_dir/{split}/ulm/ulm_0.png'), -1)
        assert (labels == np.array([255, 0, 18])[INDICES]).all()
        assert (tmp_path / f'target/img_dir/{split}/ulm/ulm_0.png').is_file()


def test_pictures_of_several_formats_become_png(tmp_path):
    write_labelme(tmp_path / 'source', 'a', shape('road', rectangle(0, 0, 3, 3)), suffix='.JPEG')
    write_labelme(tmp_path / 'source', 'b', suffix='.png')
    assert convert_labels(tmp_path / 'source', tmp_path / 'target').img_suffix == '.png'
    for name in ('a.JPEG', 'b.png'):
        copy, = (tmp_path / 'target/img_dir').glob(f'*/{name[0]}.png')
        assert (cv2.imread(str(copy)) == cv2.imread(str(tmp_path / 'source' / name))).all()


def test_unlabelled_pixels_can_be_ignored(tmp_path):
    for name in ('a', 'b'):
        write_labelme(tmp_path / 'source', name, shape('road', rectangle(0, 0, 12, 4)),
                      shape('car', rectangle(0, 0, 2, 2)))
    result = convert_labels(tmp_path / 'source', tmp_path / 'target', ignore_unlabelled=True)
    assert result.classes == ['car', 'road']
    assert (read(tmp_path / 'target', 'a')[4:] == 255).all()
    # A config without a class "background" ignores them too.
    convert_labels(tmp_path / 'source', tmp_path / 'target', overwrite=True,
                   classes=dict(road=[], car=[]))
    assert (read(tmp_path / 'target', 'a')[4:] == 255).all()


ROAD = shape('road', rectangle(0, 0, 3, 3))


@pytest.mark.parametrize('shapes, content, kwargs, message', [
    ([shape('pole', [[1, 1], [2, 2]], 'line')], {}, {}, r"shape 1, 'pole', is a line of 2 points"),
    ([ROAD, shape('pole', [[1, 1], [2, 2]])], {}, {}, "shape 2, 'pole', is a polygon of 2 points"),
    ([shape('road', [[1, 1], [2, float('nan')], [3, 3]])], {}, {}, 'not all numbers'),
    ([ROAD], dict(imageHeight=WIDTH, imageWidth=HEIGHT), {}, '8x12 pixels, but .*a.jpg has 12x8'),
    ([ROAD, shape('tree', ROAD['points'])], {}, dict(classes=parse_classes(['road', 'car'])),
     'the labels tree are of no class; known are .*car.*road.*--classes'),
    ([dict(points=ROAD['points'])], {}, {}, r"not as LabelMe.*KeyError\('label'\)"),
])
def test_labelme_refused(tmp_path, shapes, content, kwargs, message):
    write_labelme(tmp_path / 'source', 'b', ROAD)
    write_labelme(tmp_path / 'source', 'a', *shapes, **content)
    with pytest.raises(ValueError, match=r'(?s)source/a\.json: .*' + message):
        convert_labels(tmp_path / 'source', tmp_path / 'target', **kwargs)
    assert [path.name for path in tmp_path.iterdir()] == ['source']  # Nothing half-written.


def test_unturned_labels_of_a_turned_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ('a', 'b'):
        write_labelme(tmp_path / 'source', name, ROAD)
        write_picture(tmp_path / f'source/{name}.jpg', exif=exif)
    with pytest.raises(ValueError, match=r'json: labels for 12x8.*jpg has 8x12.*EXIF'):
        convert_labels(tmp_path / 'source', tmp_path / 'target')
    for name in ('a', 'b'):  # As LabelMe shows it.
        write_labelme(tmp_path / 'source', name, ROAD, imageHeight=WIDTH, imageWidth=HEIGHT)
        write_picture(tmp_path / f'source/{name}.jpg', exif=exif)
    convert_labels(tmp_path / 'source', tmp_path / 'target')
    assert read(tmp_path / 'target', 'a').shape == (WIDTH, HEIGHT)


@pytest.mark.parametrize('annotation, message', [
    (dict(segmentation=[]), r'annotation 0 has the segmentation \[\], expected polygons'),
    (dict(bbox=[0, 0, 5, 5]), 'annotation 0 has the segmentation None.*a box does not'),
    (dict(segmentation=[[1, 1, 2, 2]]), 'annotation 0 has the segmentation'),
    (dict(segmentation=[[1, 1, 2, 2, 3]]), 'reshape'),
    (dict(segmentation=dict(size=[8, 12], counts=[3, 4])), 'run lengths of 7 pixels for a.jpg'),
    (dict(segmentation=dict(size=[12, 8], counts=[0, 96])),
     r'run lengths of 96 pixels .*a mask of \[12, 8\] for a picture of \[8, 12\]'),
    (dict(segmentation=dict(counts=[0, 96])), 'annotation 0 has the segmentation {.counts'),
    (dict(segmentation=[[0, 0, 3, 0, 3, 3]], image_id=4), r'not as LabelMe.*KeyError\(4\)'),
    (dict(segmentation=[[0, 0, 3, 0, 3, 3]], category_id=4), r'not as LabelMe.*KeyError\(4\)'),
])
def test_coco_refused(tmp_path, annotation, message):
    write_coco(tmp_path / 'source/coco.json', [annotation])
    with pytest.raises(ValueError, match=r'coco\.json: .*' + message):
        convert_labels(tmp_path / 'source', tmp_path / 'target')


def test_coco_without_its_picture(tmp_path):
    write_coco(tmp_path / 'source/coco.json', [dict(segmentation=[[0, 0, 3, 0, 3, 3]])])
    (tmp_path / 'source/b.jpg').unlink()
    with pytest.raises(ValueError, match=r'coco\.json: expected one picture.*b\.jpg, found none'):
        convert_labels(tmp_path / 'source', tmp_path / 'target')


@pytest.mark.parametrize('name, content, message', [
    ('b.json', b'{}', r'b\.json: neither of LabelMe'),
    ('b.json', b'{"shapes": [', r'b\.json: no valid JSON: Expecting value'),
    ('b.json', b'\xff\xfe\xff', r'b\.json: no valid JSON: '),
    ('b.json', b'[1]', r'b\.json: neither of LabelMe'),
    ('b.json', b'{"annotations": [], "images": [], "categories": []}',
     r'b\.json: is of coco, expected labelme'),
    ('a.png', None, r'a\.json: expected one picture .*a\.jpg.*a\.png.*--img-suffix'),
    ('a.jpg', b'\xff\xd8 broken', r'a\.jpg: the image cannot be decoded'),
    ('A.json', None, r'a\.json: .*a\.jpg has labels in .*A\.json too'),
])
def test_files_refused(tmp_path, name, content, message):
    write_labelme(tmp_path / 'source', 'a', ROAD)
    write_labelme(tmp_path / 'source', 'c', ROAD)
    if name == 'a.png':
        write_picture(tmp_path / 'source/a.png')
    elif name == 'A.json':
        shutil.copy(tmp_path / 'source/a.json', tmp_path / 'source' / name)
    else:
        (tmp_path / 'source' / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        convert_labels(tmp_path / 'source', tmp_path / 'target')
    assert not (tmp_path / 'target').exists()


def test_label_maps_refused(tmp_path):
    def convert(**kwargs):
        convert_labels(tmp_path / 'pictures', tmp_path / 'target', tmp_path / 'masks', **kwargs)

    for name in ('a', 'b'):
        write_picture(tmp_path / f'pictures/{name}.png')
        write_map(tmp_path / f'masks/{name}.png', INDICES)
    with pytest.raises(ValueError, match=r'a\.png: the labels 2 are of no class; known are 0, 1'):
        convert(classes=parse_classes(['road']))
    write_map(tmp_path / 'masks/b.png', INDICES.T)
    with pytest.raises(ValueError, match=r'b\.png: labels for 8x12 pixels, but .* has 12x8'):
        convert()
    write_picture(tmp_path / 'masks/b.png', (64, 64))
    with pytest.raises(ValueError, match=r'b\.png: holds 4096 colours, expected one'):
        convert()
    write_map(tmp_path / 'masks/b.png', INDICES)
    shutil.move(tmp_path / 'masks/b.png', tmp_path / 'masks/b_mask.png')
    with pytest.raises(ValueError, match=r'b_mask\.png: expected one picture .*b_mask.*none'):
        convert()
    write_picture(tmp_path / 'masks/b.jpg')
    with pytest.raises(ValueError, match=r'b\.jpg: the label map is a JPEG'):
        convert()
    Path(tmp_path / 'masks/b.jpg').unlink()
    path = tmp_path / 'masks/b.png'
    write_picture(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r'b\.png: the label map cannot be decoded'):
        convert()
    with pytest.raises(ValueError, match=r'2 pictures in .*pictures, 0 of them with labels'):
        convert_labels(tmp_path / 'pictures', tmp_path / 'target')


@pytest.mark.parametrize('kwargs', [
    {}, dict(classes=dict(road=['1'])), dict(classes=dict(road=['1', '2'], car=['2']))])
def test_classes_refused(kwargs):
    with pytest.raises(ValueError, match=r'Training needs 2 to 255|belongs to road and to car'):
        number_labels('ids', {'1'}, **kwargs)


def test_classes_as_typed():
    assert parse_classes(['road', 'car=#ABCDEF,7', 'car=van']) == dict(
        background=[], road=[], car=['#abcdef', '7', 'van'])
    assert parse_classes(['road', 'background']) == dict(road=[], background=[])
    assert parse_classes(['road'], ignore_unlabelled=True) == dict(road=[])
    for texts in (['road,car'], ['road,', 'car'], ['background,road,car']):
        assert list(parse_classes(texts).items()) == [
            (name, []) for name in ('background', 'road', 'car')]
    assert parse_classes(['road,drivable=lane,kerb', 'car,van']) == dict(
        background=[], road=[], drivable=['lane', 'kerb'], car=[], van=[])
    assert parse_classes(['road=7,car=26,27']) == dict(background=[], road=['7'], car=['26', '27'])


@pytest.mark.parametrize('name', ['road\ncar', 'road\u2028car', ' '])
def test_name_that_is_no_line_is_refused(tmp_path, name):
    for picture in 'ab':
        write_labelme(tmp_path / 'source', picture, shape(name, rectangle(0, 4, 12, 8)))
    with pytest.raises(ValueError, match='is no name of a class'):
        convert_labels(tmp_path / 'source', tmp_path / 'target')
    assert not (tmp_path / 'target').exists()


def test_target(tmp_path):
    source, target = tmp_path / 'source', tmp_path / 'target'
    for name in ('a', 'b'):
        write_labelme(source, name, ROAD)
    for folder in (tmp_path / 'nowhere', source / 'a.jpg'):
        with pytest.raises(FileNotFoundError, match=f'^{folder}: no folder of pictures$'):
            convert_labels(folder, target)
    with pytest.raises(FileNotFoundError, match=r'nowhere: no folder or file of labels$'):
        convert_labels(source, target, tmp_path / 'nowhere')
    with pytest.raises(ValueError, match='lies in'):
        convert_labels(source, source / 'target')
    target.mkdir()
    convert_labels(source, target)
    with pytest.raises(FileExistsError, match='--overwrite'):
        convert_labels(source, target)
    write_labelme(source, 'c', shape('new', ROAD['points']))
    (source / 'c.jpg').write_bytes(b'')
    with pytest.raises(ValueError, match=r'c\.jpg'):
        convert_labels(source, target, overwrite=True)
    assert len(list(target.glob('ann_dir/*/*.png'))) == 2  # The earlier one is as it was.
    write_picture(source / 'c.jpg')
    convert_labels(source, target, overwrite=True)
    assert len(list(target.glob('ann_dir/*/*.png'))) == 3
    (target / 'notes.txt').write_text('mine')
    with pytest.raises(FileExistsError, match=r'holds .*notes\.txt'):
        convert_labels(source, target, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['source', 'target']


def test_split():
    keys = [f'{i:03d}' for i in range(100)]
    splits = split_pictures(keys, 0.2)
    assert sorted(splits, key=lambda pair: pair[1]) == [(split, key) for (split, _), key in
                                                       zip(splits, keys, strict=True)]
    assert sum(split == 'val' for split, _ in splits) == 20
    assert dict(zip(keys, splits, strict=True)) == dict(
        zip(keys[::-1], split_pictures(keys[::-1], 0.2), strict=True))
    assert split_pictures(keys[:1], 0) == [('train', '000')]
    with pytest.raises(ValueError, match='at least one for train and one for val'):
        split_pictures(keys[:1], 0.2)
    with pytest.raises(ValueError, match='20 of the pictures for validation'):
        split_pictures(keys, 20)


def test_split_keeps_films_together():
    keys = [f'film{i}/{j:03d}' for i, count in enumerate((50, 20, 20, 5, 5)) for j in range(count)]
    splits = split_pictures(keys, 0.3)
    films = {(split, key.split('/')[0]) for split, key in splits}
    assert len(films) == 5 and {split for split, _ in films} == {'train', 'val'}
    assert sum(split == 'val' for split, _ in splits) <= 30
    assert {split for split, key in split_pictures(['x/1', 'x/2', 'y/1'], 0.1)
            if key == 'y/1'} == {'val'}  # The smallest, if none is small enough.


def test_split_of_folders():
    assert split_pictures(
        ['img/train2017/a', 'img/Valid/s/b', 'img/test/c', 'img/train2017/valley/d'], 0.2) == [
        ('train', 'img/a'), ('val', 'img/s/b'), ('test', 'img/c'), ('train', 'img/valley/d')]
    with pytest.raises(ValueError, match='c: lies in no folder train or val'):
        split_pictures(['train/a', 'val/b', 'c'], 0.2)
    with pytest.raises(ValueError, match='2 pictures would become train/a'):
        split_pictures(['train/a', 'val/b', 'train2017/a'], 0.2)


def test_polygons_that_share_an_edge_share_no_pixel():
    square = np.array(rectangle(-5, -5, 25, 25), float)
    for middle in np.random.default_rng(0).random((50, 2)) * 20 - 2:
        count = np.zeros((16, 18), np.uint8)
        for i in range(4):
            part = np.zeros_like(count)
            fill_polygon(part, np.array([middle, square[i - 1], square[i]]), 1)
            count += part
        assert (count == 1).all()


def test_polygons_of_every_form():
    """As OpenCV says of each pixel's centre whether it lies inside; enlarged, for its integers."""
    rng = np.random.default_rng(0)
    centres = 2 * np.mgrid[:15, :18].reshape(2, -1).T[:, ::-1] + 1.0
    for _ in range(50):
        points = rng.random((rng.integers(3, 9), 2)) * 30 - 6
        found = np.zeros((15, 18), np.uint8)
        fill_polygon(found, points, 1)
        expected = [cv2.pointPolygonTest((2 * points).astype(np.float32), centre, False) > 0
                    for centre in centres]
        assert found.ravel().tolist() == expected


def run_tool(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['convert_labels.py', *map(str, args)])
    runpy.run_path(str(ROOT / 'tools/convert_labels.py'), run_name='__main__')


def test_command_line(tmp_path, monkeypatch, capsys):
    for name in 'abcde':
        write_labelme(tmp_path / 'source', name, shape('lane', rectangle(0, 4, 12, 8)))
    run_tool(monkeypatch, tmp_path / 'source', tmp_path / 'my target',
             '--classes', 'drivable=road,lane')
    out = capsys.readouterr().out
    assert 'Labels of the kind labelme' in out
    assert [line.split() for line in out.splitlines() if line.startswith('drivable')] == [
        ['drivable', '4', '50.00%', '1', '50.00%']]
    settings = {}
    lines, last = out.split('For the config:')[1].split('\nNext: ')
    exec(lines, settings)  # The lines are Python.
    assert last == ('python -m mmseg_bisenetv2 new_config mine.py --data '
                    f"'{tmp_path}/my target'\n")
    assert settings['classes'] == ('background', 'drivable') and settings['scale'] == (12, 8)
    dataset = DATASETS.build(dict(
        type='mmseg_bisenetv2.BaseSegDataset', **settings['data'],
        metainfo=dict(classes=settings['classes'], palette=settings['palette']),
        data_prefix=dict(img_path='img_dir/val', seg_map_path='ann_dir/val'), pipeline=[
            dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
            dict(type='PackSegInputs')]))
    assert dataset[0]['data_samples'].gt_sem_seg.data.float().mean() == 0.5
    with pytest.raises(SystemExit, match='--overwrite'):
        run_tool(monkeypatch, tmp_path / 'source', tmp_path / 'my target')


def test_command_line_with_a_config(tmp_path, monkeypatch, capsys):
    for name in ('a', 'b'):
        write_picture(tmp_path / f'source/{name}.jpg')
        write_map(tmp_path / f'source/{name}.png',
                  np.array([[0, 0, 0], [128, 64, 128], [0, 0, 0]])[INDICES])
    run_tool(monkeypatch, tmp_path / 'source', tmp_path / 'target', '--config',
             ROOT / 'configs/bisenetv2_fcn_custom.py')
    out = capsys.readouterr().out
    assert "classes = ('background', 'drivable')" in out and 'new_config' not in out
    assert (read(tmp_path / 'target', 'a') == (INDICES == 1)).all()
