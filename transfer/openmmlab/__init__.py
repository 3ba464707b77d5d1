"""What mmsegmentation and mmdet share: mmengine's configs, runner, hooks, resuming. Imports neither of them."""
