"""Guards of a training run, fired by MONAI's SupervisedTrainer between backward pass and optimizer step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from monai.engines import IterationEvents
from monai.utils.enums import CommonKeys
from torch import Tensor

from ..checkpoints import save_atomically


def loss_terms(engine: Engine) -> dict[str, Tensor]:
    """Return the named terms of the last loss, ``engine.loss_function.terms``, detached; {} if it keeps none."""
    terms = getattr(getattr(engine, "loss_function", None), "terms", None) or {}
    return {str(name): torch.as_tensor(value).detach() for name, value in terms.items()}


def loss_of(output: Any) -> Tensor | None:
    """Return the loss in ``engine.state.output``, before or after decollation, or None."""
    if isinstance(output, (list, tuple)) and output:
        output = output[0]
    loss = output.get(CommonKeys.LOSS) if isinstance(output, Mapping) else None
    return loss.detach() if isinstance(loss, Tensor) else loss


def _scaler(engine: Engine) -> torch.amp.GradScaler | None:
    scaler = getattr(engine, "scaler", None) if getattr(engine, "amp", False) else None
    return scaler if scaler is not None and scaler.is_enabled() else None


def _steps_now(engine: Engine) -> bool:
    """Tell whether the trainer's optimizer steps in this iteration, as MONAI decides it under gradient accumulation."""
    every, length, done = getattr(engine, "accumulation_steps", 1), engine.state.epoch_length, engine.state.iteration
    if length is None:
        return done % every == 0
    within = (done - 1) % length + 1
    return within % every == 0 or within == length


class GradientClip:
    """Scale the gradients down so that their norm is at most ``max_norm``, just before each optimizer step.

    Under loss scaling they are unscaled first; under gradient accumulation the accumulated ones are clipped. The norm
    before clipping is left in ``engine.state.gradient_norm``.

    Args:
        max_norm: largest norm of all gradients together.
        norm_type: 2.0 or another p of the p-norm.
    """

    def __init__(self, max_norm: float, norm_type: float = 2.0) -> None:
        if not max_norm > 0:
            raise ValueError(f"max_norm must be positive, got {max_norm}")
        self.max_norm, self.norm_type = max_norm, norm_type

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Clip."""
        if not _steps_now(engine):
            return
        scaler = _scaler(engine)
        if scaler is not None:
            scaler.unscale_(engine.optimizer)
        parameters = [p for group in engine.optimizer.param_groups for p in group["params"]]
        engine.state.gradient_norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_norm, self.norm_type)


class StopOnNaN:
    """Stop with a sentence when the loss or a gradient is not finite, before the optimizer spoils the weights.

    Each iteration waits for the loss, which costs a GPU a moment. Gradients are not looked at under float16 loss
    scaling, where infinite ones are part of the method and their step is skipped.

    Args:
        name_key: where ``engine.state.batch`` has the names of the pairs.
        gradients: look at the gradients too.
        output_dir: the batch at fault is kept there as ``stopped_batch.pt``: its tensors as they went in, names, epoch
            and iteration, for ``torch.load(..., weights_only=True)``; None keeps none.
    """

    def __init__(self, name_key: str = "name", gradients: bool = True, output_dir: str | None = None) -> None:
        self.name_key, self.gradients, self.output_dir = name_key, gradients, output_dir

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.check_loss)
        if self.gradients:
            engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self.check_gradients)

    def check_loss(self, engine: Engine) -> None:
        """Look at the loss.

        Raises:
            FloatingPointError: naming epoch, iteration, pairs and the terms at fault.
        """
        loss = loss_of(engine.state.output)
        if loss is None or math.isfinite(value := float(loss)):
            return
        broken = [name for name, term in loss_terms(engine).items() if not bool(torch.isfinite(term).all())]
        self._stop(engine, f"the loss is {value}" + (f" ({', '.join(broken)})" if broken else ""))

    def check_gradients(self, engine: Any) -> None:
        """Look at the gradients.

        Raises:
            FloatingPointError: naming epoch, iteration and pairs.
        """
        if _scaler(engine) is not None:
            return
        groups = engine.optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        if gradients and not bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients))):
            self._stop(engine, "a gradient is not finite")

    def _stop(self, engine: Engine, what: str) -> None:
        names = engine.state.batch.get(self.name_key) if isinstance(engine.state.batch, Mapping) else None
        names = [names] if isinstance(names, str) else names
        pairs = ", ".join(map(str, names)) if names else "unknown"
        kept = f" (the batch is kept in {self._keep(engine, pairs)})" if self.output_dir else ""
        raise FloatingPointError(
            f"training stopped in epoch {engine.state.epoch}, iteration {engine.state.iteration}, before the optimizer "
            f"step: {what}; pairs: {pairs}{kept}; look at these images, or lower the learning rate"
        )

    def _keep(self, engine: Engine, pairs: str) -> Path:
        """Write the batch; of several processes each one its own."""
        rank = idist.get_rank()
        path = Path(str(self.output_dir)) / (f"stopped_batch_{rank}.pt" if rank else "stopped_batch.pt")
        batch = engine.state.batch if isinstance(engine.state.batch, Mapping) else {}
        tensors = {str(key): torch.as_tensor(x).detach().cpu() for key, x in batch.items() if isinstance(x, Tensor)}
        where = {"epoch": int(engine.state.epoch), "iteration": int(engine.state.iteration), "pairs": pairs}
        save_atomically({**where, "batch": {key: x.as_subclass(Tensor) for key, x in tensors.items()}}, path)
        return path
