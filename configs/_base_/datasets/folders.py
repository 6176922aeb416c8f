# Any data set in the layout DATA_ROOT/{img_dir,ann_dir}/{train,val}: images, and 8-bit PNG maps of
# class ids from 0, 255 where a pixel is to be ignored. Trained on crops, tested whole, at
# its own size.
dataset_type = 'mmseg_bisenetv2.BaseSegDataset'
data_root = 'data/my_dataset'
crop_size = (512, 512)  # (height, width)
scale = (1280, 720)  # (width, height) that training images are fitted into, times 0.5 to 2
train_pipeline = [
    dict(type='mmseg_bisenetv2.LoadImageFromFile'),
    dict(type='mmseg_bisenetv2.LoadAnnotations'),
    dict(type='mmseg_bisenetv2.RandomResizeCrop', scale=scale, ratio_range=(0.5, 2.0),
         crop_size=crop_size, cat_max_ratio=0.75, flip_prob=0.5),
    dict(type='mmseg_bisenetv2.PhotoMetricDistortion'),
    dict(type='mmseg_bisenetv2.PackSegInputs'),
]
val_pipeline = [
    dict(type='mmseg_bisenetv2.LoadImageFromFile'),
    dict(type='mmseg_bisenetv2.LoadAnnotations'),
    dict(type='mmseg_bisenetv2.PackSegInputs'),
]
test_pipeline = [  # MMSegmentation's names: its inferencer looks for them
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
tta_pipeline = [  # for mim test --tta
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[
        [dict(type='Resize', scale_factor=r, keep_ratio=True)
         for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)],
        [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
        [dict(type='LoadAnnotations')],
        [dict(type='PackSegInputs')],
    ]),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='img_dir/train', seg_map_path='ann_dir/train'),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='img_dir/val', seg_map_path='ann_dir/val'),
        pipeline=val_pipeline))
test_dataloader = dict(val_dataloader, dataset=dict(
    val_dataloader['dataset'], pipeline=test_pipeline))
val_evaluator = dict(type='mmseg_bisenetv2.IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
