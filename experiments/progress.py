"""Progress of a run: a bar on a terminal, a few plain lines anywhere else."""

import sys
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

_PLAIN_LINES = 20


class Progress:
    """Shows where training is; a context manager.

    On a terminal, one bar with the phase, the loss and the rate. Otherwise about twenty lines
    on stdout over a whole run, and one at its end.
    """

    def __init__(self, total_steps: int, *, shown: bool = True) -> None:
        self._total, self._shown = total_steps, shown
        self._step = 0
        self._bar: Any = None

    def start(self, step: int) -> None:
        """Begins at `step`, past 0 where a run goes on from a checkpoint."""
        self._step = step
        if not self._shown:
            return
        if step:
            print(f"resumed at step {step}/{self._total}", flush=True)
        if sys.stderr.isatty():
            self._bar = tqdm(total=self._total, initial=step, unit="step")

    def update(
        self, step: int, phase: str, metrics: dict[str, float], steps_per_second: float
    ) -> None:
        """Tells of a dispatch that ended at `step`."""
        if not self._shown:
            return
        loss = metrics.get("loss", float("nan"))
        skipped = metrics.get("skipped", 0.0)
        before, self._step = self._step, step
        note = f", skipped {skipped:.0%}" if skipped else ""
        if self._bar is not None:
            self._bar.set_description(phase, refresh=False)
            self._bar.set_postfix_str(
                f"loss {loss:.4g}, {steps_per_second:.0f} steps/s{note}", refresh=False
            )
            self._bar.update(step - before)
            return
        line = max(self._total // _PLAIN_LINES, 1)
        if step // line > before // line or step == self._total:
            print(
                f"step {step}/{self._total}  {phase}  loss {loss:.4g}  "
                f"{steps_per_second:.0f} steps/s{note}",
                flush=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
