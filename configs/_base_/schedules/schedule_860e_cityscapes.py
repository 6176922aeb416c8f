# 860 epochs of Cityscapes at a total batch of 16: ceil(2975 images / 16) = 186 iterations an
# epoch, 186 x 860 = 159,960 iterations.
# Learning rate of iteration i: warm-up(i) x poly(i), both counted from iteration 0; warm-up rises
# linearly from 0.1 to 1 at iteration 1000, poly(i) = (0.05 - 1e-4) (1 - i / 159960)^0.9 + 1e-4.
_base_ = 'mmseg::_base_/schedules/schedule_160k.py'
max_iters = 159960
# weight decay of every parameter; fused is PyTorch's single kernel, with the same result to 1e-7
optimizer = dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=5e-4, fused=True)
optim_wrapper = dict(optimizer=optimizer)
param_scheduler = [
    # MMEngine reaches the end value at iteration end - 1, the reference at iteration end
    dict(type='LinearLR', start_factor=0.1, begin=0, end=1001, by_epoch=False),
    dict(type='PolyLR', power=0.9, eta_min=1e-4, begin=0, end=max_iters + 1, by_epoch=False),
]
# The rate above belongs to a total batch of 16. With auto_scale_lr.enable=True MMEngine scales it
# in proportion to the batch that the devices really add up to.
auto_scale_lr = dict(enable=False, base_batch_size=16)
# A training that cannot be lost. These types do it for any config of MMSegmentation:
# resuming takes seconds and continues to the last bit; MMEngine's loads all past data again
train_cfg = dict(
    type='mmseg_bisenetv2.IterBasedTrainLoop', max_iters=max_iters, val_interval=186 * 20)
default_hooks = dict(
    # reads the losses when they are logged: MMEngine's waits for the GPU in every iteration
    runtime_info=dict(type='mmseg_bisenetv2.RuntimeInfoHook'),
    # stops a training whose loss is not finite
    divergence=dict(type='mmseg_bisenetv2.DivergenceHook'),
    # saves whole files or none, resumes from the newest whole one
    checkpoint=dict(type='mmseg_bisenetv2.CheckpointHook', interval=186 * 20, max_keep_ckpts=3,
                    save_best='mIoU'),
    # refuses a second training in the same folder
    work_dir_lock=dict(type='mmseg_bisenetv2.WorkDirLockHook'),
    # writes curve, class scores, confusion matrix and pictures; enabled=False: nothing
    results=dict(type='mmseg_bisenetv2.ResultsHook'),
    visualization=dict(interval=1))  # --show-dir draws every image, not every 50th
