"""A log of a training whose steps take long is not silent between them.

transformers writes a line of progress at the end of a step and at no other time.
"""

from __future__ import annotations

import sys
from typing import Any

from transformers import Trainer

from modpo.base.heartbeat import HEARTBEAT
from modpo.training.callbacks import TrainingProgress


class SignsOfLife(Trainer):
    """A trainer that tells, within a long step, how far it is; where nobody is to be told, or sees it, it does not."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' trainer."""
        if self.args.disable_tqdm or sys.stderr.isatty() or not self.is_local_process_zero():
            return super().train(*args, **kwargs)
        with _BetweenSteps("training") as progress:
            self.add_callback(progress)
            try:
                return super().train(*args, **kwargs)
            finally:
                self.remove_callback(progress)


class _BetweenSteps(TrainingProgress):
    """Progress over optimizer steps, of which transformers tells the end."""

    def on_step_end(self, *about: Any, **kwargs: Any) -> None:
        super().on_step_end(*about, **kwargs)
        HEARTBEAT.heard()
