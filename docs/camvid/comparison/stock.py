# The same training with MMSegmentation's own segmentor, network, heads and loss.
_base_ = './ours.py'
loss_decode = dict(type='CrossEntropyLoss', avg_non_ignore=True)
head = dict(
    type='FCNHead', concat_input=False, dropout_ratio=0.1, num_classes=11, align_corners=False,
    norm_cfg=_base_.norm_cfg, init_cfg=None, loss_decode=loss_decode)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        _delete_=True, type='SegDataPreProcessor', size=(360, 480), pad_val=0, seg_pad_val=255,
        bgr_to_rgb=True, mean=_base_.model.data_preprocessor.mean,
        std=_base_.model.data_preprocessor.std),
    backbone=dict(_delete_=True, type='BiSeNetV2', norm_cfg=_base_.norm_cfg),
    decode_head=dict(
        head, _delete_=True, in_index=0, in_channels=128, channels=1024, num_convs=1),
    auxiliary_head=[
        dict(head, in_index=index, in_channels=in_channels, channels=channels, num_convs=2)
        for index, in_channels, channels in (
            (1, 16, 16), (2, 32, 64), (3, 64, 256), (4, 128, 1024))])
train_pipeline = _base_.train_pipeline
train_pipeline[-1] = dict(type='PackSegInputs')
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
