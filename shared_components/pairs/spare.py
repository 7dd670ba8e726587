"""A few unusable files among many: told once each, left out, and borne as long as they are few."""

from __future__ import annotations

import logging

from ..errors import find_input_error

SHARE = 0.01  # one bad file in a thousand shall not cost a night's training, a bad folder shall


class Spare:
    """What a training cannot use of its data.

    Args:
        count: of the data.
        share: of them that may be unusable.
    """

    def __init__(self, count: int, share: float = SHARE) -> None:
        self.faults: set[str] = set()
        self._allowed = int(share * count)

    def bear(self, error: Exception) -> None:
        """Tell of a file that cannot be used, once: it is known again by the sentence, which names it.

        Args:
            error: what reading it raised; MONAI's Compose wraps the ``InputError`` of its transforms.

        Raises:
            Exception: ``error``, if there are too many, or if it is no fault of the input.
        """
        found = find_input_error(error)
        if found is None or len(self.faults | {str(found)}) > self._allowed:
            raise error
        if str(found) not in self.faults:
            self.faults.add(str(found))
            logging.getLogger(__name__).warning("left out of the training: %s", found)
