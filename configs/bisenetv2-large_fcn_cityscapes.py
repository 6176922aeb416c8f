# FCN + BiSeNetV2-Large on Cityscapes: alpha = 2, d = 3.
#
#   mim train mmseg configs/bisenetv2-large_fcn_cityscapes.py
#
# Expected: no result is published for this recipe. The paper's own has 75.8 % mIoU on val, with
# 118.5 GFLOPs at 1024x512 (arXiv 2004.02147). It does not spell the two factors out. Read here:
# alpha multiplies every width, the heads' included, and d the number of gather-and-expansion
# layers of each stage (2, 2, 4 become 6, 6, 12). That is 105.7 GMAC at 1024x512; with the decode
# head left at 1024 channels it is 86.2.
# 186 iterations an epoch x 860 epochs = 159,960 iterations.
# Total batch 16: 16 x 1, 4 x 4 or 2 x 8 GPUs, lr 0.05; see bisenetv2_fcn_cityscapes.py.
_base_ = './bisenetv2_fcn_cityscapes.py'
model = dict(
    backbone=dict(width_factor=2, depth_factor=3),
    decode_head=dict(in_channels=256, channels=2048),
    auxiliary_head=[
        dict(head, in_channels=2 * head.in_channels, channels=2 * head.channels)
        for head in _base_.model.auxiliary_head
    ])
