"""Detection and instance segmentation: what every engine shares. Each engine has a folder of its own."""
