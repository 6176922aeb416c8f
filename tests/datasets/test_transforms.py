"""The faster transforms give what MMSegmentation's give; what is broken is named."""
import io
import struct
import traceback
import zlib

import cv2
import mmcv
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.registry import TRANSFORMS
from mmengine.runner import Runner
from mmengine.structures import PixelData
from PIL import Image, PngImagePlugin
from scipy.stats import chi2_contingency, ks_2samp

import mmseg_bisenetv2  # noqa: F401
from mmseg_bisenetv2 import decoding
from mmseg_bisenetv2.decoding import decode_image, decode_labels

from mmseg.evaluation import IoUMetric
from mmseg.registry import MODELS

OURS = 'mmseg_bisenetv2.'
fuzz = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


def pipelines(scale, crop_size, ratio_range=(0.5, 2.0), cat_max_ratio=0.75, prob=0.5):
    """MMSegmentation's three transforms, and the one in their place."""
    theirs = [TRANSFORMS.build(transform) for transform in (
        dict(type='RandomResize', scale=scale, ratio_range=ratio_range, keep_ratio=True),
        dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=cat_max_ratio),
        dict(type='RandomFlip', prob=prob))]
    ours = [TRANSFORMS.build(dict(
        type=OURS + 'RandomResizeCrop', scale=scale, crop_size=crop_size, flip_prob=prob,
        ratio_range=ratio_range, cat_max_ratio=cat_max_ratio))]
    return theirs, ours


def apply(transforms, image, labels, seed):
    np.random.seed(seed)
    results = dict(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2],
                   gt_seg_map=labels, seg_fields=['gt_seg_map'])
    for transform in transforms:
        results = transform(results)
    return results, np.random.get_state()[1:3]


def assert_equal(theirs, ours):
    (theirs, state), (ours, our_state) = theirs, ours
    np.testing.assert_array_equal(ours.pop('img'), theirs.pop('img'))
    np.testing.assert_array_equal(ours.pop('gt_seg_map'), theirs.pop('gt_seg_map'))
    theirs.pop('swap_seg_labels', None)  # always None
    assert ours == theirs
    np.testing.assert_array_equal(our_state[0], state[0])  # as many numbers drawn
    assert our_state[1] == state[1]


def picture(height, width, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (height // 8 + 1, width // 8 + 1), np.uint8)
    labels[rng.random(labels.shape) < 0.2] = 255
    labels = labels.repeat(8, 0).repeat(8, 1)[:height, :width].copy()
    return rng.integers(0, 256, (height, width, 3), np.uint8), labels


@pytest.mark.parametrize('height, width, crop_size', [
    (128, 256, (128, 128)), (97, 201, (64, 80)), (300, 150, (64, 64)), (40, 50, (128, 256)),
    (700, 1301, (512, 512))])
def test_same_draws_same_pixels(height, width, crop_size):
    image, labels = picture(height, width)
    theirs, ours = pipelines((width, height), crop_size)
    for seed in range(12 if height < 500 else 4):
        assert_equal(apply(theirs, image, labels, seed), apply(ours, image, labels, seed))


def test_small_crop_of_an_image_that_hardly_changes_its_size():
    """Rounding leaves the size of the part that is resized as it was; OpenCV would copy it."""
    image, labels = picture(1, 400)
    theirs, ours = pipelines((399, 1), (1, 8), (1, 1))
    for seed in range(12):
        assert_equal(apply(theirs, image, labels, seed), apply(ours, image, labels, seed))


@fuzz
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_same_draws_same_pixels_at_any_size(data, seed):
    side = st.integers(1, 150)
    image, labels = picture(data.draw(side), data.draw(side), data.draw(st.integers(1, 4)), seed)
    low = data.draw(st.floats(0.3, 3))
    theirs, ours = pipelines(
        (data.draw(st.integers(8, 200)), data.draw(st.integers(8, 200))),
        (data.draw(side), data.draw(side)), (low, low + data.draw(st.floats(0, 2))),
        data.draw(st.sampled_from([0.2, 0.5, 0.75, 1.0])), data.draw(st.floats(0, 1)))
    try:
        expected = apply(theirs, image, labels, seed)
    except cv2.error:  # a side of no pixels
        with pytest.raises(cv2.error):
            apply(ours, image, labels, seed)
        return
    assert_equal(expected, apply(ours, image, labels, seed))


@pytest.mark.parametrize('labels, redraws', [
    (np.zeros((64, 128), np.uint8), True),  # one class only: ten redraws, the last is taken
    (np.full((64, 128), 255, np.uint8), True),  # nothing that counts
    (np.arange(64 * 128, dtype=np.uint8).reshape(64, 128), False)])
def test_a_class_that_fills_the_crop_is_drawn_anew_ten_times(labels, redraws, monkeypatch):
    image = picture(64, 128)[0]
    theirs, ours = pipelines((128, 64), (32, 32))
    assert_equal(apply(theirs, image, labels, 3), apply(ours, image, labels, 3))
    calls, randint = [], np.random.randint
    monkeypatch.setattr(np.random, 'randint', lambda *args: calls.append(args) or randint(*args))
    apply(ours, image, labels, 3)
    assert len(calls) == 2 * (11 if redraws else 1)


def test_source_is_left_alone():
    image, labels = picture(64, 128)
    kept = image.copy(), labels.copy()
    transforms = [*pipelines((128, 64), (32, 32))[1],
                  TRANSFORMS.build(dict(type=OURS + 'PhotoMetricDistortion'))]
    for seed in range(5):
        apply(transforms, image, labels, seed)
    np.testing.assert_array_equal(image, kept[0])
    np.testing.assert_array_equal(labels, kept[1])


def test_scale_crop_and_flip_are_distributed_as_theirs():
    """Of independent draws: the image holds its own coordinates, so that crops tell their place."""
    rows, columns = np.mgrid[:64, :128].astype(np.float32)
    image = np.stack([rows, columns, columns], 2)
    labels = picture(64, 128)[1]
    theirs, ours = pipelines((128, 64), (24, 32))

    def draw(transforms, seed):
        results = apply(transforms, image, labels, seed)[0]
        y, x = results['img'][0, -1 if results['flip'] else 0, :2]
        return results['scale_factor'][0], y, x, results['flip']

    samples = [np.array([draw(transforms, first + i) for i in range(400)]).T
               for transforms, first in ((theirs, 0), (ours, 1000))]
    for theirs_values, our_values in list(zip(*samples, strict=True))[:3]:
        assert ks_2samp(theirs_values, our_values).pvalue > 0.01
    flips = [[flip.sum(), len(flip) - flip.sum()] for *_, flip in samples]
    assert chi2_contingency(flips).pvalue > 0.01


def test_photometric_distortion_is_equal():
    ramp = np.stack(np.meshgrid(np.arange(0, 256, 5), np.arange(0, 256, 3)), 2)
    smooth = np.concatenate([ramp, 255 - ramp[..., :1]], 2).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    theirs = TRANSFORMS.build(dict(type='PhotoMetricDistortion'))
    ours = TRANSFORMS.build(dict(type=OURS + 'PhotoMetricDistortion'))
    for seed in range(150):  # of 64 combinations of brightness, order, contrast, saturation, hue
        for image in (noise, smooth, noise[:, ::-1]):
            (expected, state), (result, our_state) = (
                apply([t], image, None, seed) for t in (theirs, ours))
            np.testing.assert_array_equal(result['img'], expected['img'])
            assert our_state[1] == state[1]


def test_photometric_arguments():
    kwargs = dict(brightness_delta=80, contrast_range=(0.2, 3), saturation_range=(0, 4),
                  hue_delta=90)
    image = picture(32, 32)[0]
    theirs, ours = (TRANSFORMS.build(dict(type=prefix + 'PhotoMetricDistortion', **kwargs))
                    for prefix in ('', OURS))
    for seed in range(30):
        expected, result = (apply([t], image, None, seed)[0]['img'] for t in (theirs, ours))
        np.testing.assert_array_equal(result, expected)


def load(prefix, image, labels, **info):
    results = dict(img_path=str(image), seg_map_path=str(labels), seg_fields=[],
                   reduce_zero_label=False, **info)
    for name in ('LoadImageFromFile', 'LoadAnnotations'):
        results = TRANSFORMS.build(dict(type=prefix + name))(results)
    return results


LABELS = np.arange(12 * 18, dtype=np.uint8).reshape(12, 18)


@pytest.fixture
def files(tmp_path):
    """An image and a label map of 12x18."""
    image, labels = tmp_path / 'a.png', tmp_path / 'a_labels.png'
    cv2.imwrite(str(image), picture(12, 18)[0])
    cv2.imwrite(str(labels), LABELS)
    return image, labels


def save(path, kind):
    if kind == 'palette':
        picture = Image.fromarray(LABELS, 'P')
        picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
        picture.save(path)
    elif kind == '1 bit':
        Image.fromarray(LABELS % 2 == 1).save(path)
    else:
        cv2.imwrite(str(path), LABELS.astype(np.uint16 if kind == '16 bits' else np.uint8))


@pytest.mark.parametrize('kind', ['8 bits', 'palette', '1 bit', '16 bits'])
@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.bmp'])
@pytest.mark.parametrize('info', [{}, dict(label_map={0: 1, 1: 0, 7: 255}),
                                  dict(reduce_zero_label=True, label_map={0: 3, 200: 0})])
def test_loads_what_mmseg_loads(files, kind, suffix, info):
    image = files[0].with_suffix(suffix)
    cv2.imwrite(str(image), picture(12, 18)[0])
    save(files[1], kind)
    theirs, ours = ({**load(prefix, image, files[1])} for prefix in ('', OURS))
    assert theirs.keys() == ours.keys()
    np.testing.assert_array_equal(ours['img'], theirs['img'])
    for prefix, results in (('', theirs), (OURS, ours)):
        results.update(dict(reduce_zero_label=False, seg_fields=[]), **info)
        TRANSFORMS.build(dict(type=prefix + 'LoadAnnotations'))(results)
    np.testing.assert_array_equal(ours['gt_seg_map'], theirs['gt_seg_map'])
    assert ours['gt_seg_map'].dtype == np.uint8


def test_turned_photograph_is_loaded_upright(files):
    """OpenCV turns what a camera marked as turned; so does MMSegmentation."""
    photograph = Image.fromarray(picture(12, 18)[0])
    exif = photograph.getexif()
    exif[0x0112] = 6
    path = files[0].with_suffix('.jpg')
    photograph.save(path, exif=exif)
    image = decode_image(path.read_bytes(), path)
    assert image.shape == (18, 12, 3)


PNGS = {  # name: Pillow's mode, options for saving, whether it is plain
    'RGB': ('RGB', {}, True),
    'described': ('RGB', dict(dpi=(72, 72), icc_profile=b'profile', pnginfo='gamma'), True),
    'turned': ('RGB', dict(exif='turned'), False),
    'RGB with a transparent colour': ('RGB', dict(transparency=(1, 2, 3)), False),
    'moving': ('RGB', dict(save_all=True, append_images='another'), False),
    'RGBA': ('RGBA', {}, False), 'LA': ('LA', {}, False), 'L': ('L', {}, False),
    '1': ('1', {}, False), 'palette': ('P', {}, False), 'I;16': ('I;16', {}, False),
}


@pytest.mark.parametrize('kind', PNGS)
def test_png_equals_opencvs(kind, monkeypatch):
    mode, options, plain = PNGS[kind]
    image, options = Image.fromarray(picture(12, 18)[0]).convert('RGB'), dict(options)
    if 'pnginfo' in options:
        options['pnginfo'] = PngImagePlugin.PngInfo()
        options['pnginfo'].add(b'gAMA', (30000).to_bytes(4, 'big'))
    if 'exif' in options:
        options['exif'] = image.getexif()
        options['exif'][0x0112] = 6
    if 'append_images' in options:
        options['append_images'] = [image.rotate(180)]
    file = io.BytesIO()
    image = image.convert('L').convert(mode) if mode == 'I;16' else image.convert(mode)
    image.save(file, 'PNG', **options)
    content = file.getvalue()
    expected = mmcv.imfrombytes(content)
    np.testing.assert_array_equal(decode_image(content, 'street.png'), expected)
    with monkeypatch.context() as patch:  # OpenCV decodes what imagecodecs does not.
        patch.setattr(mmcv, 'imfrombytes', lambda content, **kwargs: None)
        if plain:
            np.testing.assert_array_equal(decode_image(content, 'street.png'), expected)
        else:
            with pytest.raises(ValueError, match='cannot be decoded'):
                decode_image(content, 'street.png')
    monkeypatch.setattr(decoding, 'imagecodecs', None)  # The extra is not installed.
    np.testing.assert_array_equal(decode_image(content, 'street.png'), expected)


def png(height, width, **chunks):
    """An RGB file of these chunks."""
    content = b'\x89PNG\r\n\x1a\n'
    header = struct.pack('>II5B', width, height, 8, 2, 0, 0, 0)
    for name, chunk in dict(IHDR=header, **chunks, IEND=b'').items():
        content += struct.pack('>I', len(chunk)) + name.encode() + chunk
        content += struct.pack('>I', zlib.crc32(name.encode() + chunk))
    return content


@fuzz
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 9), data=st.data())
def test_png_of_any_filters_equals_opencvs(height, width, seed, data):
    """Any bytes are an image, whatever the rows' filters say."""
    rows = np.random.default_rng(seed).integers(0, 256, (height, 1 + 3 * width), np.uint8)
    rows[:, 0] = data.draw(st.lists(st.integers(0, 4), min_size=height, max_size=height))
    content = png(height, width, IDAT=zlib.compress(rows.tobytes()))
    np.testing.assert_array_equal(decode_image(content, 'a.png'), mmcv.imfrombytes(content))


@pytest.mark.parametrize('content', [
    png(4, 4), png(4, 4, JUNK=b'x', IDAT=zlib.compress(bytes(52))),
    png(900_000, 900_000, IDAT=zlib.compress(bytes(52))),
    png(4, 4, IDAT=zlib.compress(bytes(52))).replace(b'\r\n\x1a', b'\r\n\x1b')],
    ids=['no data', 'unknown chunk', 'huge', 'signature'])
def test_broken_png_is_named(content):
    """imagecodecs has an exception of another kind for each."""
    with pytest.raises(ValueError, match=r'street\.png: the image cannot be decoded'):
        decode_image(content, 'street.png')


def jpeg_with_preview():
    """A JPEG whose header holds a smaller one, as cameras write it."""
    small, large = (cv2.imencode('.jpg', picture(size, size)[0])[1].tobytes() for size in (8, 64))
    return large[:2] + b'\xff\xe1' + (2 + len(small)).to_bytes(2, 'big') + small + large[2:]


@pytest.mark.parametrize('suffix', ['.png', '.jpg', 'preview', '.bmp', '.webp'])
@pytest.mark.parametrize('share', [0, 0.05, 0.5, 0.99])
def test_truncated_image_is_named(suffix, share):
    if suffix == 'preview':
        content = jpeg_with_preview()
    else:
        content = cv2.imencode(suffix, picture(64, 64)[0])[1].tobytes()
    assert decode_image(content, 'whole').shape == (64, 64, 3)
    if suffix == '.bmp' and share > 0.9:
        return  # has no end that could be missing
    with pytest.raises(ValueError, match=r'street\.x: the image cannot be decoded'):
        decode_image(content[:int(share * len(content))], 'street.x')


@pytest.mark.parametrize('kind', ['.png', '.jpg', 'preview'])
def test_image_without_its_end_is_named_where_opencv_returns_its_first_rows(kind, monkeypatch):
    """As OpenCV 4 does; OpenCV 5 returns nothing."""
    image = picture(64, 64)[0]
    content = (jpeg_with_preview() if kind == 'preview'
               else cv2.imencode(kind, image)[1].tobytes())
    monkeypatch.setattr(mmcv, 'imfrombytes', lambda content, **kwargs: image)
    decode_image(content, 'street.x')
    with pytest.raises(ValueError, match=r'street\.x: .*its end is missing; \d+ bytes'):
        decode_image(content[:-13], 'street.x')


@pytest.mark.parametrize('share', [0, 0.05, 0.5, 0.9])
def test_truncated_label_map_is_named(share):
    content = cv2.imencode('.png', picture(64, 64)[0][..., 0])[1].tobytes()
    with pytest.raises(ValueError, match=r'street\.png: the label map cannot be decoded'):
        decode_labels(content[:int(share * len(content))], 'street.png')


def damage(content, data):
    """Cuts it off, or changes some of its bytes."""
    if data.draw(st.booleans()):
        return content[:data.draw(st.integers(0, len(content) - 1))]
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    return bytes(content)


@fuzz
@given(data=st.data(), suffix=st.sampled_from(['.png', '.jpg', '.bmp', '.webp', '.tiff']))
def test_damaged_image_is_an_image_or_an_error_with_its_name(data, suffix):
    content = damage(cv2.imencode(suffix, picture(20, 30)[0])[1].tobytes(), data)
    try:
        image = decode_image(content, 'street.x')
    except ValueError as error:
        assert 'street.x' in str(error)
    else:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


@fuzz
@given(data=st.data(), suffix=st.sampled_from(['.png', '.jpg', '.bmp', '.tiff']))
def test_damaged_label_map_is_a_map_or_an_error_with_its_name(data, suffix):
    content = damage(cv2.imencode(suffix, picture(20, 30)[1])[1].tobytes(), data)
    try:
        labels = decode_labels(content, 'street.x')
    except ValueError as error:
        assert 'street.x' in str(error)
    else:
        assert labels.dtype == np.uint8 and labels.ndim == 2


@fuzz
@given(content=st.binary(max_size=200))
def test_anything_else_is_an_error_with_its_name(content):
    for decode in (decode_image, decode_labels):
        with pytest.raises(ValueError, match=r'street\.x: .*cannot be decoded'):
            decode(content, 'street.x')


def test_colour_map_is_named(files):
    cv2.imwrite(str(files[1]), picture(12, 18)[0])
    with pytest.raises(ValueError, match=r'a_labels\.png: a picture of several channels'):
        load(OURS, *files)


def test_id_beyond_eight_bits_is_named(files):
    """MMSegmentation would train on class 0 here."""
    cv2.imwrite(str(files[1]), LABELS.astype(np.uint16) + 256)
    with pytest.raises(ValueError, match=r'a_labels\.png: values from 256 to 471.*from 0 to 255'):
        load(OURS, *files)


def test_jpeg_label_map_is_refused(files):
    """Its compression changes class ids; MMSegmentation trains on them."""
    path = files[1].with_suffix('.jpg')
    cv2.imwrite(str(path), LABELS)
    with pytest.raises(ValueError, match=r'a_labels\.jpg: the label map is a JPEG.*as PNG'):
        load(OURS, files[0], path)


@pytest.mark.parametrize('values', [[0.5, 1], [float('nan'), 1]])
def test_label_map_of_fractions_is_refused(files, values):
    path = files[1].with_suffix('.tiff')
    Image.fromarray(np.tile(np.float32(values), (12, 9))).save(path)
    with pytest.raises(ValueError, match=r'a_labels\.tiff: the label map holds fractions'):
        load(OURS, files[0], path)


def test_label_map_of_whole_floats_is_loaded(files):
    path = files[1].with_suffix('.tiff')
    Image.fromarray(LABELS.astype(np.float32)).save(path)
    np.testing.assert_array_equal(load(OURS, files[0], path)['gt_seg_map'], LABELS)


def test_map_of_a_turned_picture_that_is_not_turned_is_named(files):
    photograph = Image.fromarray(picture(12, 18)[0])
    exif = photograph.getexif()
    exif[0x0112] = 8
    path = files[0].with_suffix('.jpg')
    photograph.save(path, exif=exif)
    with pytest.raises(ValueError, match=r'a map of \(12, 18\) for an image of \(18, 12\).*'
                                         r"The picture's EXIF orientation is 8.*Turn the map"):
        load(OURS, path, files[1])
    cv2.imwrite(str(files[0]), picture(18, 12)[0])  # not turned, but of another size
    with pytest.raises(ValueError, match=r'a map of \(12, 18\)') as info:
        load(OURS, *files)
    assert 'EXIF' not in str(info.value)


def test_map_of_another_size_is_named(files):
    cv2.imwrite(str(files[1]), LABELS[:-1])
    with pytest.raises(ValueError, match=r'a_labels\.png: a map of \(11, 18\) for an image of '
                                         r'\(12, 18\), .*a\.png'):
        load(OURS, *files)


def test_labels_after_resize_are_compared_with_the_file(files):
    results = dict(img_path=str(files[0]), seg_map_path=str(files[1]), seg_fields=[],
                   reduce_zero_label=False)
    for transform in (dict(type=OURS + 'LoadImageFromFile'),
                      dict(type='Resize', scale=(36, 24), keep_ratio=True),
                      dict(type=OURS + 'LoadAnnotations')):
        results = TRANSFORMS.build(transform)(results)
    assert results['img'].shape == (24, 36, 3)
    assert results['gt_seg_map'].shape == (12, 18)


@pytest.mark.parametrize('flipped', [False, True])
def test_packs_as_mmseg_but_for_the_type_of_labels(flipped):
    image, labels = picture(24, 40)
    if flipped:
        image, labels = image[:, ::-1], labels[:, ::-1]
    results = dict(img=image, gt_seg_map=labels, img_path='a.png', seg_map_path='b.png',
                   ori_shape=(24, 40), img_shape=(24, 40), flip=flipped, reduce_zero_label=False)
    theirs, ours = (TRANSFORMS.build(dict(type=prefix + 'PackSegInputs'))(dict(results))
                    for prefix in ('', OURS))
    assert ours.keys() == theirs.keys()
    assert ours['inputs'].is_contiguous() and torch.equal(ours['inputs'], theirs['inputs'])
    expected, sample = theirs['data_samples'], ours['data_samples']
    assert sample.metainfo == expected.metainfo
    assert sample.gt_sem_seg.data.dtype == torch.uint8
    assert expected.gt_sem_seg.data.dtype == torch.int64
    assert sample.gt_sem_seg.data.shape == expected.gt_sem_seg.data.shape
    assert torch.equal(sample.gt_sem_seg.data.long(), expected.gt_sem_seg.data)


def test_packs_without_labels():
    results = dict(img=picture(24, 40)[0], img_path='a.png')
    packed = TRANSFORMS.build(dict(type=OURS + 'PackSegInputs'))(results)
    assert packed['inputs'].shape == (3, 24, 40) and 'gt_sem_seg' not in packed['data_samples']


def packed(kind, size=(24, 40)):
    image, labels = picture(*size)
    return TRANSFORMS.build(dict(type=kind))(dict(
        img=image, gt_seg_map=labels, ori_shape=size, img_shape=size))


@pytest.mark.parametrize('sampler', [
    None, dict(type='OHEMPixelSampler', thresh=0.7, min_kept=100)])
def test_loss_of_uint8_labels_is_that_of_int64(sampler):
    head = MODELS.build(dict(
        type=OURS + 'FCNHead', in_channels=1, channels=1, num_classes=5, sampler=sampler,
        loss_decode=dict(type=OURS + 'UpsampleCrossEntropy')))
    preprocessor = MODELS.build(dict(
        type='SegDataPreProcessor', size=(32, 48), seg_pad_val=255, pad_val=0))
    logits = torch.randn(2, 5, 8, 12, generator=torch.manual_seed(0))
    losses = []
    for prefix in ('', OURS):
        items = [packed(prefix + 'PackSegInputs'), packed(prefix + 'PackSegInputs', (32, 30))]
        data = preprocessor(dict(inputs=[item['inputs'] for item in items],
                                 data_samples=[item['data_samples'] for item in items]), True)
        labels = data['data_samples'][0].gt_sem_seg.data
        assert labels.shape == (1, 32, 48) and (labels[:, 24:] == 255).all()
        losses.append(head.loss_by_feat(logits, data['data_samples']))
    assert losses[0]['loss_ce'] == losses[1]['loss_ce']
    assert losses[0]['acc_seg'] == losses[1]['acc_seg']


def test_score_of_uint8_labels_is_that_of_int64():
    prediction = torch.randint(0, 5, (1, 24, 40), generator=torch.manual_seed(0))
    areas = []
    for prefix in ('', OURS):
        sample = packed(prefix + 'PackSegInputs')['data_samples']
        sample.pred_sem_seg = PixelData(data=prediction)
        metric = IoUMetric()
        metric.dataset_meta = dict(classes=list('abcde'))
        metric.process({}, [sample.to_dict()])
        areas.append(torch.stack(metric.results[0]))
    assert torch.equal(*areas)


PIPELINE = [
    dict(type=OURS + 'LoadImageFromFile'), dict(type=OURS + 'LoadAnnotations'),
    dict(type=OURS + 'RandomResizeCrop', scale=(18, 12), crop_size=(6, 8)),
    dict(type=OURS + 'PhotoMetricDistortion'), dict(type=OURS + 'PackSegInputs')]


def loader(root, seed, num_workers=2):
    return Runner.build_dataloader(dict(
        batch_size=1, num_workers=num_workers, sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type=OURS + 'BaseSegDataset', data_root=str(root), img_suffix='.png',
            data_prefix=dict(img_path='img', seg_map_path='ann'), pipeline=PIPELINE,
            metainfo=dict(classes=[str(i) for i in range(255)]))), seed=seed)


@pytest.fixture
def twins(tmp_path):
    """Four times the same image and label map."""
    for folder, pixels in (('img', picture(12, 18)[0]), ('ann', LABELS)):
        (tmp_path / folder).mkdir()
        for name in 'abcd':
            cv2.imwrite(str(tmp_path / folder / f'{name}.png'), pixels)
    return tmp_path


def test_every_worker_and_rank_draws_its_own_numbers_and_a_seed_the_same(twins, monkeypatch):
    def draws(seed):
        return [batch['inputs'][0].numpy().tobytes() for batch in loader(twins, seed)]

    first = draws(7)
    assert len(set(first)) == 4  # from two workers
    assert draws(7) == first
    monkeypatch.setattr('mmengine.runner.runner.get_rank', lambda: 1)
    assert not set(draws(7)) & set(first)


def test_error_in_a_worker_names_the_file(twins):
    content = (twins / 'img/c.png').read_bytes()
    (twins / 'img/c.png').write_bytes(content[:len(content) // 2])
    with pytest.raises(ValueError, match=r'img/c\.png: the image cannot be decoded'):
        list(loader(twins, 0, num_workers=1))


def test_any_error_names_the_files(twins):
    dataset = loader(twins, 0).dataset
    dataset.pipeline.transforms.insert(2, lambda results: results['nothing'])
    with pytest.raises(KeyError) as info:
        dataset[1]
    text = ''.join(traceback.format_exception(info.value))  # what a data loader's worker sends
    assert f'Image {twins}/img/b.png, label map {twins}/ann/b.png' in text
