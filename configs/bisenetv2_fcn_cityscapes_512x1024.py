# FCN + BiSeNetV2 on Cityscapes by the paper's real-time protocol: images are halved to 1024x512
# for inference, and scored at full size. Training is unchanged, so any checkpoint of
# bisenetv2_fcn_cityscapes.py can be tested with this config.
#
#   mim train mmseg configs/bisenetv2_fcn_cityscapes_512x1024.py
#
# Expected: no result is published for this recipe. The paper's own, trained with OHEM, has 73.4 %
# mIoU on val by this protocol (arXiv 2004.02147; its ablation: 73.19 without OHEM).
# 186 iterations an epoch x 860 epochs = 159,960 iterations.
# Total batch 16: 16 x 1, 4 x 4 or 2 x 8 GPUs, lr 0.05; see bisenetv2_fcn_cityscapes.py.
_base_ = './bisenetv2_fcn_cityscapes.py'
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(1024, 512), keep_ratio=True),
    dict(type='LoadAnnotations'),  # after Resize: labels are compared at full size
    dict(type='PackSegInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
