"""MONAI's CheckpointSaver made safe: as it stands, it deletes the old file, then writes the new one in place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
from ignite.handlers import DiskSaver
from monai.handlers import CheckpointSaver

from ..checkpoints import save_atomically


class AtomicDiskSaver(DiskSaver):
    """Write a checkpoint under another name, flush it to the disk and rename it; delete old ones only after that.

    Killed at any moment, the folder holds the previous checkpoint or the new one, whole.

    Args:
        dirname: folder, made if missing.
        filename: always write to this name, instead of the one that Ignite proposes.
    """

    def __init__(self, dirname: str | os.PathLike[str], filename: str | None = None) -> None:
        super().__init__(os.fspath(dirname), require_empty=False)
        self.filename = filename
        self._obsolete: set[str] = set()

    def __call__(self, checkpoint: Mapping, filename: str, metadata: Mapping | None = None) -> None:
        """Save on the rank that saves; a no-op on the others."""
        if idist.get_rank() != self.save_on_rank:
            return
        target = self.dirname / (self.filename or filename)
        save_atomically(checkpoint, target)
        for name in self._obsolete - {target.name}:
            (self.dirname / name).unlink(missing_ok=True)
        self._obsolete.clear()

    def remove(self, filename: str) -> None:
        """Mark a checkpoint for deletion once the next one is whole; Ignite calls this before it saves."""
        self._obsolete.add(self.filename or filename)


class AtomicCheckpointSaver(CheckpointSaver):
    """MONAI's ``CheckpointSaver`` with ``AtomicDiskSaver``; the same arguments and files.

    Args:
        save_dir: folder of the checkpoints.
        save_dict: what to save, such as {"model": network, "optimizer": optimizer}; of a single entry its state dict
            is saved without the name around it, as ``model.pt`` must be.
        options: all other arguments of ``CheckpointSaver``.
    """

    def __init__(self, save_dir: str, save_dict: dict[str, Any], **options: Any) -> None:
        super().__init__(save_dir, save_dict, **options)
        for checkpoint in (self._final_checkpoint, self._key_metric_checkpoint, self._interval_checkpoint):
            if checkpoint is not None:
                checkpoint.save_handler = AtomicDiskSaver(save_dir, checkpoint.save_handler.filename)
