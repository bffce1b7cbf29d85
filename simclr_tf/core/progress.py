"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from simclr_tf.core.text import duration

_SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Reports steps done, images per second, loss, the share of time spent waiting for data, and the time left."""

    def __init__(self, title: str, *, total_steps: int, first_step: int, images_per_step: int, silent: bool = False):
        """Starts reporting.

        Args:
          title: The name of the work.
          total_steps: The number of steps, including those done before.
          first_step: The number of steps done before.
          images_per_step: The number of images in a step, to report images per second.
          silent: Whether to report nothing, as all but one of several processes should.
        """
        self._title, self._total, self._images_per_step = title, total_steps, images_per_step
        self._step = first_step
        self._last_line = -float("inf")
        self._silent = silent
        self._terminal = sys.stderr.isatty() and not silent
        self._rate: float | None = None
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            desc=title,
            unit="step",
            disable=not self._terminal,
            dynamic_ncols=True,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps{postfix}",
        )

    def update(self, steps: int, *, seconds: float, waiting_seconds: float = 0.0, loss: float | None = None) -> None:
        """Adds steps and reports them.

        Args:
          steps: The number of steps done.
          seconds: The time that they took.
          waiting_seconds: The part of this time spent waiting for data.
          loss: The last loss.
        """
        if self._silent:
            return
        self._step += steps
        rate = steps / max(seconds, 1e-9)
        # The first call includes tracing, so the average starts anew at the first rate that is three times higher.
        self._rate = rate if self._rate is None or rate > 3 * self._rate else 0.8 * self._rate + 0.2 * rate
        parts = [f"{self._rate * self._images_per_step:,.0f} images/s"]
        if loss is not None:
            parts.append(f"loss {loss:.4f}")
        parts.append(f"waiting for data {100 * waiting_seconds / max(seconds, 1e-9):.0f}%")
        parts.append(f"{duration((self._total - self._step) / self._rate)} left")
        text = ", ".join(parts)
        if self._terminal:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(steps)
            return
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES or self._step >= self._total:
            self._last_line = now
            print(f"{self._title}: {self._step}/{self._total} steps, {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the bar and its line on the terminal."""
        self._bar.close()
