# 600 iterations of bisenetv2_fcn_finetune_camvid.py with plain cross-entropy, for docs/camvid.md.
_base_ = '../../../configs/bisenetv2_fcn_finetune_camvid.py'
max_iters = 600
loss_decode = dict(_delete_=True, type='mmseg_bisenetv2.UpsampleCrossEntropy')
model = dict(
    decode_head=dict(loss_decode=loss_decode),
    auxiliary_head=[dict(head, loss_decode=dict(type='mmseg_bisenetv2.UpsampleCrossEntropy'))
                    for head in _base_.model.auxiliary_head])
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=101, by_epoch=False),
    dict(type='PolyLR', power=0.9, eta_min=1e-4, begin=0, end=max_iters + 1, by_epoch=False)]
train_cfg = dict(max_iters=max_iters, val_interval=200)
randomness = dict(seed=0)
