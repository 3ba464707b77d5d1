"""FCN-D8 on ADE20K, 80k iterations, crop 512 (mmseg's recipe, torchvision stem).

python transfer/segment.py --ckpt X --task ade20k-fcn-80k --data-root DATA

Cost: 1,280,000 crops of 512 x 512; 8.5 GB on each of 4 GPUs (mmseg's model zoo, V1c stem).
Published, single scale, ResNet-50:
    supervised with the V1c stem: mIoU 35.94 (mmseg's model zoo); with the plain stem none found
"""

_base_ = ["bases/runtime.py", "bases/fcn_d8.py", "bases/ade20k.py", "bases/sgd_poly.py"]
reference_processes = 4  # with 4 images each: batch of 16
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=1e-4, begin=0, end=80000, by_epoch=False)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=80000, val_interval=8000)
