"""Settings of a config file that ``--cfg-options`` cannot change any more."""
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmseg_bisenetv2.registry import HOOKS


@HOOKS.register_module()
class SettingsHook(Hook):
    """Refuses a run whose command line changes a variable that the config used while it was read.

    ``--cfg-options max_iters=5`` replaces the variable after the schedule was made from it, so the
    run would go on for 40,000 iterations.

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
                    f'the config file has used {name}={value} already. Change it in a copy of '
                    'that file')
