"""What the benchmarks of mmseg and mmdet do with a runner of mmengine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Iteration = Callable[[], Any]


def started(runner: Any) -> Iteration:
    """Bring a runner to its first iteration; return what its loop does for each."""
    loop, runner.optim_wrapper = runner.train_loop, runner.build_optim_wrapper(runner.optim_wrapper)
    runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    runner.call_hook("before_run")
    runner._init_model_weights()
    runner.optim_wrapper.initialize_count_status(runner.model, 0, loop.max_iters)
    runner.call_hook("before_train")
    runner.call_hook("before_train_epoch")

    def iteration() -> None:
        runner.model.train()
        loop.run_iter(next(loop.dataloader_iterator))

    return iteration
