"""Semantic segmentation with mmsegmentation, used as a library."""

from common.openmmlab import prepare_mmseg

prepare_mmseg()  # before any module of this package imports mmseg
