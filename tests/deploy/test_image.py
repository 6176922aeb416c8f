"""Which files are images, and what reading them gives or refuses."""
import io
import os
import warnings

import cv2
import mmcv
import numpy as np
import pytest
from PIL import Image

import mmseg_bisenetv2  # noqa: F401
from mmseg_bisenetv2.deploy import image
from mmseg_bisenetv2.deploy.image import MAX_PIXELS, find_images, is_image, read_image

PICTURE = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)


def save(path, array=PICTURE):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)
    return path


def jpeg_of(width, height):
    """A JPEG of less than 5 kB whose header announces another size than it holds."""
    data = bytearray(cv2.imencode('.jpg', PICTURE)[1].tobytes())
    frame = data.find(b'\xff\xc0')
    data[frame + 5:frame + 9] = height.to_bytes(2, 'big') + width.to_bytes(2, 'big')
    return bytes(data)


# Too many pixels


def test_pixels_are_counted_before_anything_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(image, 'decode_image', lambda *_: pytest.fail('it was decoded'))
    path = tmp_path / 'a.jpg'
    path.write_bytes(jpeg_of(32_000, 32_000))
    with pytest.raises(ValueError, match=r'a\.jpg: 32000x32000 are 1,024,000,000 pixels.*--max-pi'):
        read_image(path)


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.bmp', '.tif', '.webp', '.ppm', '.gif'])
def test_limit_of_pixels_is_exact(tmp_path, suffix):
    path = save(tmp_path / f'a{suffix}')
    assert read_image(path, max_pixels=32 * 48).shape == (32, 48, 3)
    with pytest.raises(ValueError, match='48x32 are 1,536 pixels, more than 1,535'):
        read_image(path, max_pixels=32 * 48 - 1)


def test_photographs_of_100_megapixels_are_below_the_limit_and_larger_ones_may_be(
        tmp_path, monkeypatch):
    """Pillow, which reads the header, warns of 90 million pixels and refuses 179 million."""
    monkeypatch.setattr(image, 'decode_image', lambda *_: PICTURE)
    path = tmp_path / 'a.jpg'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        path.write_bytes(jpeg_of(12_000, 9_000))
        assert read_image(path) is PICTURE
        path.write_bytes(jpeg_of(20_000, 20_000))
        assert read_image(path, max_pixels=2 ** 29) is PICTURE
    assert 108e6 < MAX_PIXELS < 20_000 ** 2


# What is read, and what is refused


@pytest.mark.parametrize('dtype, channels, kind', [
    (np.float32, 1, '32-bit float values'), (np.float32, 3, '32-bit float values'),
    (np.float64, 3, '64-bit float values'), (np.int16, 3, '16-bit signed integers'),
    (np.int32, 1, '32-bit signed integers')])
def test_tiffs_of_other_numbers_are_named(tmp_path, dtype, channels, kind):
    path = save(tmp_path / 'a.tif', PICTURE[..., :channels].astype(dtype))
    with pytest.raises(ValueError, match=rf'a\.tif: a TIFF of {kind}.*astype\(.uint8.\)'):
        read_image(path)


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
def test_truncated_files_are_refused(tmp_path, suffix):
    data = cv2.imencode(suffix, PICTURE)[1].tobytes()
    (tmp_path / f'a{suffix}').write_bytes(data[:len(data) * 2 // 3])
    with pytest.raises(ValueError, match=rf'a\{suffix}: the image cannot be decoded'):
        read_image(tmp_path / f'a{suffix}')


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.tif', '.webp'])
def test_files_are_upright_as_in_opencv_and_mmcv(tmp_path, suffix):
    path = tmp_path / f'a{suffix}'
    exif = Image.Exif()
    exif[0x112] = 6  # orientation: to be turned clockwise
    Image.fromarray(PICTURE).save(path, exif=exif)
    found = read_image(path)
    if suffix in ('.jpg', '.png'):  # OpenCV looks into the others in some versions only
        assert found.shape == (48, 32, 3)
    content = path.read_bytes()
    assert np.array_equal(found, cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR))
    assert np.array_equal(found, mmcv.imfrombytes(content))


def test_grey_alpha_and_16_bit_become_three_channels_of_8_bit(tmp_path):
    grey, alpha = PICTURE[..., 0], np.dstack([PICTURE, PICTURE[..., 1]])
    for suffix in ('.png', '.tif'):
        for stored, expected in ((grey, np.dstack([grey] * 3)), (alpha, PICTURE),
                                 (PICTURE.astype(np.uint16) * 257, PICTURE)):
            assert np.array_equal(read_image(save(tmp_path / f'a{suffix}', stored)), expected)


def test_first_frame_of_an_animation(tmp_path):
    first, second = (Image.fromarray(np.full((32, 48), value, np.uint8)) for value in (60, 200))
    first.save(tmp_path / 'a.gif', save_all=True, append_images=[second])
    assert is_image(str(tmp_path / 'a.gif'))
    assert np.array_equal(read_image(tmp_path / 'a.gif'), np.full((32, 48, 3), 60))


# Which files


def test_images_are_known_by_their_content_and_damaged_ones_by_their_name(tmp_path):
    names = ['a.jfif', 'b.jp2', 'c.avif', 'd.gif', 'e.webp', 'f.tiff', 'g.ppm', 'h.jpeg', 'no-name']
    for name in names:
        suffix = os.path.splitext(name)[1].replace('.jfif', '.jpg') or '.png'
        if cv2.haveImageWriter(suffix):
            (tmp_path / name).write_bytes(cv2.imencode(suffix, PICTURE)[1])
            assert read_image(tmp_path / name).shape == (32, 48, 3)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert {'a.jfif', 'b.jp2', 'no-name'} < set(names)
    (tmp_path / 'torn.png').write_bytes(b'')
    (tmp_path / 'notes.txt').write_text('no image')
    (tmp_path / '.hidden.png').write_bytes((tmp_path / 'no-name').read_bytes())
    assert find_images([str(tmp_path)]) == [str(tmp_path / name) for name in [*names, 'torn.png']]


def test_folders_patterns_and_links(tmp_path):
    for name in ('[odd]/x.png', 'a/deep/y.png', 'a/x.png', 'z.png'):
        save(tmp_path / name)
    for name in ('again', 'a/back', 'a/deep/up'):  # with three, 40 levels of links never end
        (tmp_path / name).symlink_to(tmp_path)
    (tmp_path / 'a-linked').symlink_to(tmp_path / 'a')
    (tmp_path / 'zz.png').symlink_to(tmp_path / 'z.png')
    found = [str(tmp_path / name) for name in ('[odd]/x.png', 'a/deep/y.png', 'a/x.png', 'z.png')]
    assert find_images([str(tmp_path)]) == found  # each real file once
    assert find_images([found[3], str(tmp_path / '*.png'), str(tmp_path)]) == [
        found[3], *found[:3]]
    assert find_images([str(tmp_path / '[odd]')]) == found[:1]
    assert find_images([]) == []
    for name in ('none.png', 'none*.png', 'empty'):
        (tmp_path / 'empty').mkdir(exist_ok=True)
        with pytest.raises(FileNotFoundError, match=rf'No picture .*{name.replace("*", ".")}'):
            find_images([found[0], str(tmp_path / name)])


def test_files_that_only_look_like_images(tmp_path):
    """Pillow's kinds without a signature (TGA) must not give the size of what OpenCV reads."""
    data = cv2.imencode('.png', np.zeros((300, 300), np.uint8))[1].tobytes()
    (tmp_path / 'a.png').write_bytes(data[:20] + bytes(4) + data[24:])  # of height 0
    with pytest.raises(ValueError, match=r'a\.png: the image cannot be decoded \(no size'):
        read_image(tmp_path / 'a.png')
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, 'TGA')
    (tmp_path / 'b.tga').write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r'b\.tga: the image cannot be decoded \(no size'):
        read_image(tmp_path / 'b.tga')
