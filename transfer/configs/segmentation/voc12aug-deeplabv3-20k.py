"""DeepLabv3 on PASCAL VOC 2012 with SBD's masks, 20k iterations, crop 512 (mmseg's recipe, torchvision stem).

python transfer/segment.py --ckpt X --task voc12aug-deeplabv3-20k --data-root DATA

Cost: 320,000 crops of 512 x 512; 6.1 GB on each of 4 GPUs (mmseg's model zoo, V1c stem).
Published, single scale, ResNet-50:
    supervised with the V1c stem: mIoU 76.17 (mmseg's model zoo); with the plain stem none found
"""

_base_ = ["bases/runtime.py", "bases/fcn_d8.py", "bases/voc12aug.py", "bases/sgd_poly.py"]
reference_processes = 4  # with 4 images each: batch of 16
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    decode_head=dict(
        _delete_=True,
        type="ASPPHead",
        in_channels=2048,
        in_index=3,
        channels=512,
        dilations=(1, 12, 24, 36),
        dropout_ratio=0.1,
        num_classes=21,
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(num_classes=21),
)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=1e-4, begin=0, end=20000, by_epoch=False)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=20000, val_interval=2000)
