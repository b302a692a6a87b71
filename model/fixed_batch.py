"""What every engine shares: one fixed batch size, short batches padded to it, rows checked before they are computed.

Array suffixes: B the fixed batch, n rows given (n <= B), X the rest as the graph has it.
"""

import abc

import numpy as np


class FixedBatchEngine(abc.ABC):
    """A frozen graph, ready to run.

    Args:
      batch_size: B; every call computes exactly B rows, so nothing is traced or planned a second time.
      source: name of the input, for messages.
      dtype: of the input.
      row_shape: of the input without its first axis; None: any.
      description: engine, precision and device, as a user reads them.
    Raises:
      ValueError: a batch size below 1.
    """

    def __init__(self, batch_size: int, source: str, dtype, row_shape: tuple[int | None, ...], description: str):
        if batch_size < 1:
            raise ValueError(f"expected a batch size of at least 1, got {batch_size}")
        self.batch_size, self._description = batch_size, description
        self._source, self._dtype, self._row_shape = source, np.dtype(dtype), row_shape

    def describe(self) -> str:
        """Engine, precision and device, as a user reads them. A method, because other processes ask through a proxy."""
        return self._description

    def run(self, rows_nX: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
        """Compute the outputs for up to B rows. Threads may call it at the same time.

        Args:
          rows_nX: such as uint8[n, S, S, 3] pixels or float32[n, D] bottlenecks.
        Returns:
          float32[n, ...]; with several outputs a tuple in their order.
        Raises:
          ValueError: another dtype or shape, or more than B rows.
        """
        num_rows = self._check(rows_nX)
        if num_rows < self.batch_size:
            padded = np.zeros((self.batch_size, *rows_nX.shape[1:]), self._dtype)
            padded[:num_rows] = rows_nX
            rows_nX = padded
        results = tuple(result[:num_rows] for result in self._compute(rows_nX))
        return results[0] if len(results) == 1 else results

    @abc.abstractmethod
    def _compute(self, rows_BX: np.ndarray) -> tuple[np.ndarray, ...]:
        """The outputs for exactly B rows, in arrays that no later call writes to."""

    @abc.abstractmethod
    def close(self) -> None:
        """Free the graph's memory."""

    def _check(self, rows_nX: np.ndarray) -> int:
        fits = rows_nX.dtype == self._dtype and rows_nX.ndim == 1 + len(self._row_shape)
        fits = fits and all(want in (None, got) for want, got in zip(self._row_shape, rows_nX.shape[1:], strict=True))
        if not fits or len(rows_nX) > self.batch_size:
            want = ", ".join("?" if side is None else str(side) for side in self._row_shape)
            raise ValueError(
                f"expected {self._dtype.name}[n <= {self.batch_size}, {want}], "
                f"got {rows_nX.dtype.name}{list(rows_nX.shape)}: {self._source}"
            )
        return len(rows_nX)
