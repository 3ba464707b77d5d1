"""detectron2 as a library: tasks, the head of MoCo's protocol, weights with proof, training, evaluation, pictures."""
