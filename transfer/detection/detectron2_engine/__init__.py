"""Detection with detectron2. `run.plan_run` and `run.measure_run` are all that transfer/detect.py calls."""
