"""FCN-D8 on PASCAL VOC 2012 with SBD's masks, 20k iterations, crop 512 (DenseCL's protocol).

python transfer/segment.py --ckpt X --task voc12aug-fcn-20k --data-root DATA

Cost: 320,000 crops of 512 x 512; 5.7 GB on each of 4 GPUs (mmseg's model zoo, V1c stem).
Published, single scale, ResNet-50:
    supervised mIoU 67.7 (WXinlong/DenseCL@5d1c456, README); with the V1c stem 67.08 (mmseg's model zoo)
    MoCo v2, 200 epochs: 67.5 (WXinlong/DenseCL@b64bbb6, README), 67.55 (open-mmlab/mmselfsup@db861f3)
    DenseCL, 200 epochs: 69.4 (WXinlong/DenseCL@b64bbb6, README), 69.47 (open-mmlab/mmselfsup@db861f3)
"""

_base_ = ["bases/runtime.py", "bases/fcn_d8.py", "bases/voc12aug.py", "bases/sgd_poly.py"]
reference_processes = 4  # with 4 images each: batch of 16
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    decode_head=dict(num_classes=21),
    auxiliary_head=dict(num_classes=21),
)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=1e-4, begin=0, end=20000, by_epoch=False)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=20000, val_interval=2000)
