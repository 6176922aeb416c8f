# Cityscapes: MMSegmentation's pipeline (scale 0.5-2, crop 1024x1024 with at most 75 % of one class,
# flip, photometric distortion) by faster transforms that give the same pixels, batch 16 on one GPU,
# labels checked. After tools/cache_dataset.py nothing needs to be decoded any more.
_base_ = 'mmseg::_base_/datasets/cityscapes_1024x1024.py'
dataset_type = 'mmseg_bisenetv2.CityscapesDataset'
crop_size = (1024, 1024)  # (height, width)
train_pipeline = [
    dict(type='mmseg_bisenetv2.LoadImageFromFile'),
    dict(type='mmseg_bisenetv2.LoadAnnotations'),
    dict(type='mmseg_bisenetv2.RandomResizeCrop', scale=(2048, 1024), ratio_range=(0.5, 2.0),
         crop_size=crop_size, cat_max_ratio=0.75, flip_prob=0.5),
    dict(type='mmseg_bisenetv2.PhotoMetricDistortion'),
    dict(type='mmseg_bisenetv2.PackSegInputs'),
]
val_pipeline = [  # testing keeps MMSegmentation's, for whose names its inferencer looks
    dict(type='mmseg_bisenetv2.LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 1024), keep_ratio=True),
    dict(type='mmseg_bisenetv2.LoadAnnotations'),  # after Resize: compared at full size
    dict(type='mmseg_bisenetv2.PackSegInputs'),
]
train_dataloader = dict(
    batch_size=16, num_workers=8, dataset=dict(type=dataset_type, pipeline=train_pipeline))
val_dataloader = dict(num_workers=4, dataset=dict(type=dataset_type, pipeline=val_pipeline))
test_dataloader = dict(num_workers=4, dataset=dict(type=dataset_type))
val_evaluator = dict(type='mmseg_bisenetv2.IoUMetric')
test_evaluator = val_evaluator
