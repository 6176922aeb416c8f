# FCN + BiSeNetV2 on CamVid at 480x360, from scratch.
#
#   mim train mmseg configs/bisenetv2_fcn_camvid.py
#
# Expected: no result is published for this recipe. For scale, on the test split: the paper has
# 72.4 % mIoU at 960x720; at 480x360, trained on train+val, DABNet has 66.72 (its README).
# 40,000 iterations at 46 an epoch (ceil(367 / 8)): 870 epochs.
# Total batch 8 on one GPU, lr 0.025 = 0.05 x 8 / 16. On 4 GPUs train_dataloader.batch_size=2; on 8
# GPUs 2 as well, a total of 16, with auto_scale_lr.enable=True.
# `mim test` scores val; the test split is one option away:
#   --cfg-options test_dataloader.dataset.data_prefix.img_path=img_dir/test \
#                 test_dataloader.dataset.data_prefix.seg_map_path=ann_dir/test
_base_ = [
    './_base_/models/fcn_bisenetv2.py',
    './_base_/datasets/camvid.py',
    './_base_/schedules/schedule_40k.py',
    'mmseg::_base_/default_runtime.py',
]
optimizer = dict(lr=0.025)
optim_wrapper = dict(optimizer=optimizer)
auto_scale_lr = dict(base_batch_size=8)
data_preprocessor = dict(size=(360, 480))
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=11),
    auxiliary_head=[dict(head, num_classes=11) for head in _base_.model.auxiliary_head])
