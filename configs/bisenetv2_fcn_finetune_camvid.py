# FCN + BiSeNetV2 on CamVid at 480x360, in under two hours on one CPU core, from weights that were
# trained on another outdoor data set, RUGD. The first of the two trainings that made
# weights/bisenetv2_fcn_camvid.safetensors:
#
#   mim train mmseg configs/bisenetv2_fcn_finetune_camvid.py --cfg-options load_from=RUGD.pth
#
# RUGD.pth holds weights for RUGD (off-road scenes, 25 classes), rebuilt in float from the quantised
# network of github.com/KangneoungLee/bisenet_ros (MIT). Without load_from, it starts from scratch.
# Expected: 72.02 % mIoU on val. docs/camvid.md says which choices below were compared.
# 2,200 iterations at 46 an epoch (ceil(367 / 8)): 48 epochs. Total batch 8, lr 0.025.
_base_ = './bisenetv2_fcn_camvid.py'
max_iters = 2200
randomness = dict(seed=0)
# (mean share / share of the class)^0.5 of the train pixels, scaled to a mean of 1 over the pixels:
# poles, signs and bicyclists each have about a hundredth of the pixels.
class_weight = [0.88, 0.75, 3.63, 0.64, 1.7, 1.15, 3.32, 3.39, 1.49, 4.5, 6.66]
loss_decode = dict(type='mmseg_bisenetv2.UpsampleCrossEntropy', class_weight=class_weight)
model = dict(
    backbone=dict(with_cp=None),  # memory is no concern at this size
    decode_head=dict(loss_decode=loss_decode, with_cp=None),
    auxiliary_head=[
        dict(head, loss_decode=loss_decode, with_cp=None)
        for head in _base_.model.auxiliary_head])
train_pipeline = _base_.train_pipeline
train_pipeline[2].update(ratio_range=(0.75, 2.0))  # RandomResizeCrop; less padding than from 0.5
train_dataloader = dict(num_workers=1, dataset=dict(pipeline=train_pipeline))
# BF16 on the CPU; on a GPU: type='AmpOptimWrapper', dtype='bfloat16'
optim_wrapper = dict(type='mmseg_bisenetv2.CPUAmpOptimWrapper')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=101, by_epoch=False),
    dict(type='PolyLR', power=0.9, eta_min=1e-4, begin=0, end=max_iters + 1, by_epoch=False),
]
train_cfg = dict(max_iters=max_iters, val_interval=440)
default_hooks = dict(checkpoint=dict(interval=110), logger=dict(interval=10))
