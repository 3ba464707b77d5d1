"""FCN-D8 with a ResNet-18 on Fashion Scenes: all of segmentation within minutes, on two CPU cores.

python transfer/segment.py --ckpt runs/fashion/last.pth --task fashion-fcn

Cost: about five minutes on two CPU cores; measured costs are in results/tables/cost.md
Published: none; the data set is this project's own. Settings were chosen on scenes of another seed.
"""

_base_ = ["bases/runtime.py", "bases/fcn_d8.py", "bases/fashion.py"]
arch = "resnet18"  # for --ckpt random
reference_processes = 1  # with 4 images each
# Most pixels are background: with equal weights, 300 iterations are too few to predict any garment.
class_weight = [0.2] + [1.0] * 10
model = dict(
    data_preprocessor=dict(size=(96, 96)),
    backbone=dict(depth=18),
    decode_head=dict(in_channels=512, channels=128, num_classes=11, loss_decode=dict(class_weight=class_weight)),
    auxiliary_head=dict(in_channels=256, channels=64, num_classes=11, loss_decode=dict(class_weight=class_weight)),
)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=50))
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.01), clip_grad=None)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=1e-5, begin=0, end=300, by_epoch=False)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=300, val_interval=150)
