"""FCN-D8 on Cityscapes, 40k iterations, crop 769 (DenseCL's protocol).

python transfer/segment.py --ckpt X --task cityscapes-fcn-40k --data-root DATA

Cost: 320,000 crops of 769 x 769; 6.5 GB on each of 4 GPUs (mmseg's model zoo, V1c stem).
Published, single scale, ResNet-50:
    supervised with the V1c stem: mIoU 71.47 (mmseg's model zoo); with the plain stem none found
"""

_base_ = ["bases/runtime.py", "bases/fcn_d8.py", "bases/cityscapes.py", "bases/sgd_poly.py"]
reference_processes = 4  # with 2 images each: batch of 8
model = dict(
    data_preprocessor=dict(size=(769, 769)),
    decode_head=dict(num_classes=19, align_corners=True),
    auxiliary_head=dict(num_classes=19, align_corners=True),
    test_cfg=dict(mode="slide", crop_size=(769, 769), stride=(513, 513)),
)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=1e-4, begin=0, end=40000, by_epoch=False)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=40000, val_interval=4000)
