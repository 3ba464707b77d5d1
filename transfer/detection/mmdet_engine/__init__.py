"""Detection with mmdet, used as a library."""

from common.openmmlab import prepare_mmdet

OPERATIONS = prepare_mmdet()  # before any module of this package imports mmdet; whose mmcv.ops has
