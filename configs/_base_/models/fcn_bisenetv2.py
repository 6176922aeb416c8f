# FCN + BiSeNetV2: the network of the SSSegmentation model zoo, 19 classes.
# 14.80 M parameters; 3.36 M without the auxiliary (booster) heads, which only training uses.
custom_imports = dict(imports=['mmseg_bisenetv2'], allow_failed_imports=False)
norm_cfg = dict(type='SyncBN', requires_grad=True)  # becomes BN where there is one device
# Mean over the valid pixels. MMSegmentation's CrossEntropyLoss divides by all pixels, ignored ones
# included: with 20 % ignored, four fifths of the loss and of the gradient. With
# avg_non_ignore=True it gives the same loss as here, but resizes the logits first: 5 times the
# time on two cores and 56 times the memory (tools/benchmark.py loss).
loss_decode = dict(type='mmseg_bisenetv2.UpsampleCrossEntropy')
# Activation checkpointing of the detail branch and the heads: normalisation and activation are
# computed again in backward. None keeps everything, 'stages' less still; the gradients are equal.
with_cp = 'activations'
data_preprocessor = dict(  # a variable, since MMSegmentation's visualization_cam looks for it
    type='mmseg_bisenetv2.SegDataPreProcessor',
    channels_last=True,  # the layout in which convolutions are fastest
    mean=[123.675, 116.28, 103.53],  # RGB, of ImageNet
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    size=(1024, 1024),  # smaller crops are padded to it
    pad_val=0,
    seg_pad_val=255)
head = dict(
    type='mmseg_bisenetv2.FCNHead',
    concat_input=False,
    dropout_ratio=0.1,
    num_classes=19,
    norm_cfg=norm_cfg,
    align_corners=False,
    init_cfg=None,  # PyTorch's default initialisation, here and in the backbone
    loss_decode=loss_decode,
    with_cp=with_cp)
model = dict(
    type='mmseg_bisenetv2.EncoderDecoder',
    data_preprocessor=data_preprocessor,
    backbone=dict(type='mmseg_bisenetv2.BiSeNetV2', norm_cfg=norm_cfg, with_cp=with_cp),
    decode_head=dict(head, in_index=0, in_channels=128, channels=1024, num_convs=1),
    auxiliary_head=[
        dict(head, in_index=1, in_channels=16, channels=16, num_convs=2),
        dict(head, in_index=2, in_channels=32, channels=64, num_convs=2),
        dict(head, in_index=3, in_channels=64, channels=256, num_convs=2),
        dict(head, in_index=4, in_channels=128, channels=1024, num_convs=2),
    ],
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
