# FCN + BiSeNetV2 on the synthetic scenes of tools/make_toy_cityscapes.py: the demo. For a CPU.
#
#   python tools/make_toy_cityscapes.py data/toy_cityscapes
#   mim train mmseg configs/bisenetv2_fcn_toy-cityscapes.py
#
# Expected: about 30 % mIoU (30.43 when we ran it); it says nothing of real streets.
# 64 images / batch 4 = 16 iterations an epoch x 20 epochs = 320 iterations. The 512x256 images are
# trained on and tested at 256x128, and scored at full size. One process; lr 0.02 for batch 4.
_base_ = './bisenetv2_fcn_cityscapes.py'
data_root = 'data/toy_cityscapes'
crop_size = (128, 256)
max_iters = 320
train_pipeline = [
    dict(type='mmseg_bisenetv2.LoadImageFromFile'),
    dict(type='mmseg_bisenetv2.LoadAnnotations'),
    dict(type='mmseg_bisenetv2.RandomResizeCrop', scale=(512, 256), ratio_range=(0.5, 0.75),
         crop_size=crop_size, flip_prob=0.5),
    dict(type='mmseg_bisenetv2.PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(256, 128), keep_ratio=True),
    dict(type='LoadAnnotations'),  # after Resize: labels are compared at full size
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=4, num_workers=1, dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(
    num_workers=1, dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
data_preprocessor = dict(size=crop_size)
model = dict(data_preprocessor=data_preprocessor)
optimizer = dict(lr=0.02)
optim_wrapper = dict(optimizer=optimizer)
auto_scale_lr = dict(base_batch_size=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=21, by_epoch=False),
    dict(type='PolyLR', power=0.9, eta_min=1e-4, begin=0, end=max_iters + 1, by_epoch=False),
]
train_cfg = dict(max_iters=max_iters, val_interval=80)
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(interval=max_iters, save_best=None))
