"""Semantic segmentation with mmsegmentation, used as a library."""
