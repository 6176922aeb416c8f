"""A small network and pictures for it: narrow, of a few classes, none of which wins everywhere."""
import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope

import mmseg_bisenetv2  # noqa: F401

from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

NORM = dict(type='BN', requires_grad=True)
WIDTHS = dict(detail_channels=(8, 8, 16), semantic_channels=(4, 8, 8, 16), bga_channels=16)
PREPROCESSOR = dict(type='SegDataPreProcessor', mean=[120.0] * 3, std=[60.0] * 3, bgr_to_rgb=True,
                    size=(32, 32), pad_val=0, seg_pad_val=255)


def build(ours=True, classes=4, align_corners=False, test_cfg=None, preprocessor=None, **kwargs):
    """A small network, ours or in MMSegmentation's EncoderDecoder, always of the same weights."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    prefix = 'mmseg_bisenetv2.' if ours else ''
    model = MODELS.build(ConfigDict(
        type=f'{prefix}EncoderDecoder',
        data_preprocessor=dict(PREPROCESSOR, **(preprocessor or {})),
        backbone=dict(type='mmseg_bisenetv2.BiSeNetV2', norm_cfg=NORM, **WIDTHS),
        decode_head=dict(
            type='mmseg_bisenetv2.FCNHead', in_channels=16, channels=16, num_convs=1, in_index=0,
            concat_input=False, num_classes=classes, norm_cfg=NORM, align_corners=align_corners,
            init_cfg=None),
        train_cfg=dict(), test_cfg=test_cfg or dict(mode='whole'), **kwargs))
    with torch.no_grad():  # statistics of these images, and no class that wins everywhere
        inputs = model.data_preprocessor(batch(number=8), training=False)['inputs']
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1
        model.train()(inputs)
        logits = model.eval()(inputs)
        seg = model.decode_head.conv_seg
        deviation = logits.std((0, 2, 3))
        seg.bias.sub_(logits.mean((0, 2, 3))).div_(deviation)
        seg.weight.div_(deviation[:, None, None, None])
    return model


def image(height=64, width=96, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    return coarse.repeat(8, 0).repeat(8, 1)[:height, :width].astype(np.uint8)


def batch(meta=None, number=2, **kwargs):
    inputs = [torch.from_numpy(image(seed=i, **kwargs).transpose(2, 0, 1).copy())
              for i in range(number)]
    shape = tuple(inputs[0].shape[1:])
    metas = dict(ori_shape=shape, img_shape=shape, pad_shape=shape, padding_size=[0] * 4)
    return dict(inputs=inputs, data_samples=[
        SegDataSample(metainfo=dict(metas, **(meta or {}))) for _ in inputs])


def write(folder, test_pipeline=(), metainfo=None, name='small.py', **kwargs):
    """Its config and its checkpoint, as files: the two paths."""
    model = build(**kwargs)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=metainfo or {})),
               folder / 'small.pth')
    (folder / name).write_text(CONFIG.format(
        preprocessor=PREPROCESSOR, norm=NORM, widths=WIDTHS,
        classes=kwargs.get('classes', 4), align_corners=kwargs.get('align_corners', False),
        test_pipeline=[dict(type='LoadImageFromFile'), *test_pipeline,
                       dict(type='PackSegInputs')]))
    return folder / name, folder / 'small.pth'


CONFIG = '''
custom_imports = dict(imports=['mmseg_bisenetv2'], allow_failed_imports=False)
default_scope = 'mmseg'
norm = {norm}
model = dict(
    type='mmseg_bisenetv2.EncoderDecoder',
    data_preprocessor={preprocessor},
    backbone=dict(type='mmseg_bisenetv2.BiSeNetV2', norm_cfg=norm, **{widths}),
    decode_head=dict(
        type='mmseg_bisenetv2.FCNHead', in_channels=16, channels=16, num_convs=1, in_index=0,
        concat_input=False, num_classes={classes}, norm_cfg=norm, align_corners={align_corners},
        init_cfg=None),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
test_pipeline = {test_pipeline}
'''
