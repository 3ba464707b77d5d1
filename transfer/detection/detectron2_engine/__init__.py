"""Detection with detectron2. `run.start` is all that transfer/detect.py calls."""
