"""Semantic segmentation with mmsegmentation, used as a library: what transfer/segment.py is made of."""
