# FCN + BiSeNetV2 on CamVid at 480x360: goes on where bisenetv2_fcn_finetune_camvid.py ended, with
# the learning rate raised once more. The second of the two trainings that made
# weights/bisenetv2_fcn_camvid.safetensors:
#
#   mim train mmseg configs/bisenetv2_fcn_finetune-longer_camvid.py --cfg-options \
#       load_from=work_dirs/bisenetv2_fcn_finetune_camvid/iter_2200.pth
#
# Rare classes weigh less here than there, and pictures are enlarged less, so that more objects are
# as large as in a test. docs/camvid.md has the figures that spoke for this.
# Expected: see weights/README.md.
# 2,750 iterations at 46 an epoch (ceil(367 / 8)): 60 epochs. Total batch 8, lr 0.025.
_base_ = './bisenetv2_fcn_finetune_camvid.py'
max_iters = 2750
randomness = dict(seed=1)
# (mean share / share of the class)^0.25 of the train pixels, scaled to a mean of 1 over the pixels.
class_weight = [0.97, 0.89, 1.97, 0.83, 1.35, 1.11, 1.89, 1.91, 1.26, 2.2, 2.67]
loss_decode = dict(type='mmseg_bisenetv2.UpsampleCrossEntropy', class_weight=class_weight)
model = dict(
    decode_head=dict(loss_decode=loss_decode),
    auxiliary_head=[dict(head, loss_decode=loss_decode) for head in _base_.model.auxiliary_head])
train_pipeline = _base_.train_pipeline
train_pipeline[2].update(ratio_range=(0.75, 1.5))  # RandomResizeCrop
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(end=max_iters + 1)
train_cfg = dict(max_iters=max_iters, val_interval=550)
