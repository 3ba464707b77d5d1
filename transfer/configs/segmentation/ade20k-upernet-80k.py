"""UPerNet on ADE20K, 80k iterations, crop 512 (mmseg's recipe, torchvision stem).

python transfer/segment.py --ckpt X --task ade20k-upernet-80k --data-root DATA

Cost: 1,280,000 crops of 512 x 512; 8.1 GB on each of 4 GPUs (mmseg's model zoo, V1c stem).
Published, single scale, ResNet-50:
    supervised with the V1c stem: mIoU 40.7 (mmseg's model zoo); with the plain stem none found
"""

_base_ = ["bases/runtime.py", "bases/fcn_d8.py", "bases/ade20k.py", "bases/sgd_poly.py"]
reference_processes = 4  # with 4 images each: batch of 16
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1)),
    decode_head=dict(
        _delete_=True,
        type="UPerHead",
        in_channels=[256, 512, 1024, 2048],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(num_classes=150),
)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=1e-4, begin=0, end=80000, by_epoch=False)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=80000, val_interval=8000)
