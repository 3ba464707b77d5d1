"""FCN-D8 with a ResNet-18 on Fashion Scenes: the whole of segmentation in minutes, on two CPU cores.

python transfer/segment.py --ckpt runs/fashion/last.pth --task fashion-fcn

Cost: to be measured
Published: none, the scenes are this suite's own
"""

_base_ = ["bases/runtime.py", "bases/fcn_d8.py", "bases/fashion.py", "bases/sgd_poly.py"]
arch = "resnet18"  # of --ckpt random
reference_processes = 1  # with 8 images each
model = dict(
    data_preprocessor=dict(size=(112, 112)),
    backbone=dict(depth=18, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
    decode_head=dict(in_channels=512, channels=128, num_classes=11),
    auxiliary_head=dict(in_channels=256, channels=64, num_classes=11),
)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=100))
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=1e-4, begin=0, end=300, by_epoch=False)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=300, val_interval=100)
