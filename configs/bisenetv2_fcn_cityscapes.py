# FCN + BiSeNetV2 on Cityscapes, FP32: the reference recipe.
#
#   mim train mmseg configs/bisenetv2_fcn_cityscapes.py
#
# Expected: 74.62 % mIoU on val (2048x1024, single scale; SSSegmentation model zoo).
# 186 iterations an epoch (ceil(2975 / 16)) x 860 epochs = 159,960 iterations; lr 0.05, poly.
# 16 is the total batch and 0.05 the rate that belongs to it:
#   1 GPU : as above; 16 images on it
#   4 GPUs: --launcher pytorch --gpus 4 --cfg-options train_dataloader.batch_size=4
#   8 GPUs: --launcher pytorch --gpus 8 --cfg-options train_dataloader.batch_size=2
# Where the total is not 16, add auto_scale_lr.enable=True: lr = 0.05 x total / 16.
_base_ = [
    './_base_/models/fcn_bisenetv2.py',
    './_base_/datasets/cityscapes.py',
    './_base_/schedules/schedule_860e_cityscapes.py',
    'mmseg::_base_/default_runtime.py',
]
