# FCN + BiSeNetV2 on Cityscapes with a total batch of 32 at the same learning rate.
#
#   mim train mmseg configs/bisenetv2_fcn_b32_cityscapes.py
#
# Expected: no result is published for exactly this recipe. MMSegmentation's own goes from 73.21 to
# 75.76 % mIoU on val when its batch doubles from 4 x 4 to 4 x 8 at lr 0.05 (its model zoo): the
# best single-scale figure of this network that we know of. Both are single runs, and runs of one
# recipe spread over two points (CoinCheung's README: 73.1 to 75.1).
# 93 iterations an epoch (ceil(2975 / 32)) x 1,720 epochs = 159,960 iterations: twice the epochs,
# and on the same devices about twice the time, of bisenetv2_fcn_cityscapes.py.
# 32 is the total batch and 0.05 the rate that belongs to it:
#   1 GPU : as above; 32 images on it
#   4 GPUs: --launcher pytorch --gpus 4 --cfg-options train_dataloader.batch_size=8
#   8 GPUs: --launcher pytorch --gpus 8 --cfg-options train_dataloader.batch_size=4
# Where the total is not 32, add auto_scale_lr.enable=True: lr = 0.05 x total / 32.
_base_ = './bisenetv2_fcn_cityscapes.py'
train_dataloader = dict(batch_size=32)
auto_scale_lr = dict(base_batch_size=32)
