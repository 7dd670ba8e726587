"""The pieces that train and evaluate share: batches for MONAI's engines, inferers, start-up, weights."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from monai.engines import Trainer
from monai.inferers import SimpleInferer
from torch import Tensor, nn

from .checkpoints import read_tensors
from .errors import InputError, find_input_error
from .pairs.datasets import Item
from .release import check_bundle_code, check_release
from .warp import invert, warp_labels


class PrepareTraining:
    """Batch -> (image, targets, (), {"return_stages": True}) for MONAI's SupervisedTrainer.

    Where pairs have a "noise_seed" (``pairs.DrawSeed``), the network is given that of the first one too.

    Args:
        symmetric: register both orders of each pair: the batch doubles, the second half has fixed and moving swapped.
    """

    def __init__(self, symmetric: bool = False) -> None:
        self.symmetric = symmetric

    def __call__(
        self, batch: Item, device: torch.device | None = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor], tuple, dict[str, Any]]:
        """Return inputs, targets, args and kwargs of the network call."""
        image = batch["image"].to(device, non_blocking=non_blocking)
        if self.symmetric:
            image = torch.cat([image, image.flip(1)])
        targets = {"fixed": image[:, :1]}
        if "ddf" in batch:
            if self.symmetric:
                raise InputError("pairs with a target field have one order only; train on them with --symmetric False")
            targets["ddf"] = batch["ddf"].to(device, non_blocking=non_blocking)
        seed = {"noise_seed": int(batch["noise_seed"][0])} if "noise_seed" in batch else {}
        return image, targets, (), {"return_stages": True, **seed}


class PrepareInference:
    """Batch -> (image, {labels, masks, points, "spacing_mm" on the network grid}) for MONAI's SupervisedEvaluator."""

    def __call__(
        self, batch: Item, device: torch.device | None = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return inputs and targets."""
        labels = {
            key: value.to(device, non_blocking=non_blocking)
            for key, value in batch.items()
            if key.endswith(("_label", "_mask", "_points_vox", "spacing_mm")) and isinstance(value, Tensor)
        }
        return batch["image"].to(device, non_blocking=non_blocking), labels


class AutocastInferer(SimpleInferer):
    """SimpleInferer under autocast on any device (MONAI's ``amp`` is for CUDA): half-precision features, fp32 warps.

    Args:
        dtype: "bfloat16", "float16" or "float32" (no autocast).

    Attributes:
        network: the one that was run last. MONAI Label brings its own, which postprocessing does not get to see.
    """

    def __init__(self, dtype: str = "float32") -> None:
        super().__init__()
        self.dtype = getattr(torch, dtype)
        self.network: Callable[..., Any] | None = None

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the network."""
        self.network = network
        with torch.autocast(inputs.device.type, dtype=self.dtype, enabled=self.dtype is not torch.float32):
            return network(inputs, *args, **kwargs)


class StageInferer(AutocastInferer):
    """What a cascade has reached after one of its stages.

    Args:
        stage: "final" (the network as it is), "identity" (no field at all), or the number of a stage, 0 for the first.
        dtype: as for ``AutocastInferer``.
        both_orders: register (fixed, moving) and (moving, fixed) in one batch and return the mean of the first field
            and the inverse of the second: errors that the two do not share halve. Costs a second pass and an inversion.
    """

    def __init__(self, stage: str | int = "final", dtype: str = "float32", both_orders: bool = False) -> None:
        super().__init__(dtype)
        if stage not in ("final", "identity") and not isinstance(stage, int):
            raise InputError(f"stage must be 'final', 'identity' or a stage's number from 0 on, not '{stage}'")
        self.stage, self.both_orders = stage, both_orders

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Return the ddf after that stage."""
        if self.stage == "identity":
            return inputs.new_zeros(inputs.shape[0], inputs.ndim - 2, *inputs.shape[2:])
        if not self.both_orders:
            return self._one(inputs, network, *args, **kwargs)
        forward, backward = self._one(torch.cat([inputs, inputs.flip(1)]), network, *args, **kwargs).float().chunk(2)
        return 0.5 * (forward + invert(backward, iterations=15, tolerance=0.01)[0])

    def _one(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        if self.stage == "final":
            return super().__call__(inputs, network, *args, **kwargs)
        return super().__call__(inputs, network, *args, return_stages=True, **kwargs)["ddf"][self.stage]


class WarpLabel:
    """Post transform: add "moved_label", the moving label through "pred", on the network grid (nearest neighbour)."""

    def __call__(self, data: Item) -> Item:
        """Return the data, with "moved_label" where a moving label came along."""
        moving = (data.get("label") or {}).get("moving_label")
        if moving is None:
            return data
        return {**data, "moved_label": warp_labels(moving[None], data["pred"][None])[0]}


class RegisterBack:
    """Post transform: add "pred_back", the field of the pair in the other order, made in the same way as "pred".

    Args:
        network: what registers.
        inferer: how it is called; None: as it is.
        then: a post transform of "pred", such as ``RefineField``, for this field too.
    """

    def __init__(
        self,
        network: nn.Module,
        inferer: Callable[..., Tensor] | None = None,
        then: Callable[[Item], Item] | None = None,
    ) -> None:
        self.network, self.inferer, self.then = network, inferer or SimpleInferer(), then

    @torch.no_grad()
    def __call__(self, data: Item) -> Item:
        """Return the data, of one pair, with "pred_back"; the network is in evaluation mode as the engine left it."""
        image = data["image"].flip(0)
        back = {"image": image, "pred": self.inferer(image[None], self.network)[0]}
        return {**data, "pred_back": (back if self.then is None else self.then(back))["pred"]}


def load_weights(network: nn.Module, path: str | Path | None, required: bool = True) -> bool:
    """Load a plain state dict into the network, with ``weights_only=True`` and strictly.

    Args:
        network: receives the weights.
        path: of the file; None: the network has nothing to learn.
        required: raise if it is missing; otherwise leave the network as it is.

    Returns:
        whether weights were loaded.

    Raises:
        InputError: missing file, not a state dict, not the one that was released, or of another network.
    """
    if path is None:
        return False
    path = Path(path)
    if not path.is_file():
        if not required:
            return False
        raise InputError(f"weights {path} are missing; download the bundle's model.pt or train with configs/train.json")
    state = read_tensors(path)
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError):
        raise InputError(
            f"weights {path} belong to another network than the configuration builds; "
            "use matching network_def settings or the bundle's own model.pt"
        ) from None
    return True


def resolve_device(name: str) -> torch.device:
    """Return the device for "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1".

    Raises:
        InputError: for a CUDA device that is not there, or an unknown word.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device '{name}' is not known; use auto, cpu or cuda:0") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device '{name}' is not present on this machine; use --device auto or cpu")
    return device


def start(seed: int = 0) -> None:
    """Second item of every ``initialize``: faults of the input become sentences, seeds are set, cuDNN is repeatable.

    Raises:
        InputError: the process already runs the code of another bundle, or another release of this library.
    """
    sys.excepthook = _sentence_hook
    check_release()
    check_bundle_code()
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


def train(trainer: Trainer) -> None:
    """Run a trainer; the ``run`` of every train.json.

    Raises:
        InputError: it has no pairs, which MONAI passes over with a warning and nothing trained.
    """
    if len(trainer.data_loader) == 0:
        raise InputError(
            "there is nothing to train on: no training images were found; check dataset_dir and image_pattern, or "
            "the 'training' list of the datalist"
        )
    trainer.run()


def _sentence_hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the sentence of an InputError instead of its traceback; leave every other exception as it is."""
    found = find_input_error(error)
    if found is None:
        sys.__excepthook__(kind, error, trace)
    else:
        logging.shutdown()
        print(f"error: {found}", file=sys.stderr)


def warmup_cosine(
    optimizer: torch.optim.Optimizer, epochs: int, warmup_epochs: int = 1, final: float = 0.0
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a schedule by epoch: linear rise over ``warmup_epochs``, then a half cosine to ``final`` x the rate."""

    def factor(epoch: int) -> float:
        if epoch < warmup_epochs:
            return (epoch + 1) / (warmup_epochs + 1)
        progress = min(1.0, (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def lower_is_better(value: float, best: float) -> bool:
    """Compare errors for MONAI's evaluator (``metric_cmp_fn``), whose best metric begins at -1."""
    return best < 0 or value < best
