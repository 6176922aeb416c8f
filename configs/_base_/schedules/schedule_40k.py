# The reference schedule, 40,000 iterations long.
_base_ = './schedule_860e_cityscapes.py'
max_iters = 40000
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=1001, by_epoch=False),
    dict(type='PolyLR', power=0.9, eta_min=1e-4, begin=0, end=max_iters + 1, by_epoch=False),
]
train_cfg = dict(max_iters=max_iters, val_interval=4000)
default_hooks = dict(checkpoint=dict(interval=4000))
