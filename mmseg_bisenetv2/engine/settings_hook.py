"""Settings of a config file that ``--cfg-options`` cannot change any more."""
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmseg_bisenetv2.registry import HOOKS


@HOOKS.register_module()
class SettingsHook(Hook):
    """Refuses a run whose command line changes a variable that the config used while it was read.

    ``--cfg-options max_iters=5`` replaces the variable after the schedule was made from it, so the
    run would go on for 40,000 iterations. ``--cfg-options train_cfg.max_iters=5`` ends the run, but
    leaves the schedule's end, so that its warm-up would never end. It is refused before a training
    if ``max_iters`` is one of the settings.

    Args:
        settings: The variables and their values, ``dict(max_iters=max_iters, ...)``.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def before_run(self, runner: Runner) -> None:
        """Compares the settings with the config's variables of the same names.

        Raises:
            ValueError: If one of them differs.
        """
        for name, value in self.settings.items():
            found = runner.cfg.get(name, value)
            if found != value:
                raise ValueError(
                    f'{name}={found}, from --cfg-options or an inheriting config, has no effect: '
                    f'the config file has used {name}={value} already. Change it in that file')

    def before_train(self, runner: Runner) -> None:
        """Compares the end of the training with that of the schedule.

        Raises:
            ValueError: If they differ.
        """
        value = self.settings.get('max_iters')
        found = (runner.cfg.get('train_cfg') or {}).get('max_iters', value)
        if value is not None and found != value:
            raise ValueError(
                f'train_cfg.max_iters={found}, but the learning-rate schedule was made for '
                f'max_iters={value}. Change max_iters in the config file, which sets both')
