"""One process's share of the work: the network loaded once, the next pair read while this one is registered."""

from __future__ import annotations

import logging
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from register import _path, bundle_code

from shared_components.cli import quiet
from shared_components.cuda_memory import fallen_back, free, is_cuda_out_of_memory, rungs
from shared_components.memory import forget_peak

from .batches import Known, predict_together
from .faults import StopError, is_of_place, sentence
from .inputs import Facts, input_facts
from .job import Job, Loaded
from .ledger import Ledger
from .lists import Task
from .notes import Notes
from .recipe import Recipe
from .summary import Row, failed_row, ok_row
from .thumbnails import make_thumbnails

_SILENT = ("ShowStages", "PrintSummary")  # handlers that talk about one pair at a time


class Worker:
    """Registers pairs by the bundle's own evaluator, one at a time, inside ``with``.

    Args:
        job: what to do.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.ledger = job, Ledger(job.output_dir)
        self._stack, self._notes = ExitStack(), Notes()
        self.device = str(job.chosen.get("device#name", "auto"))
        self._changes: dict[str, Any] = {}  # ids of the configuration, where the GPU has too little memory
        self._fallback = ""  # why the device is another one than was asked for
        self._parser: Any = None

    def __enter__(self) -> Worker:
        """Load the network.

        Raises:
            InputError: bundle, weights, device or output folder are at fault.
        """
        with warnings.catch_warnings():
            if not self.job.verbose:
                warnings.simplefilter("ignore")
            import torch
            from monai.bundle import create_workflow  # noqa: F401  before its loggers can be silenced

            from shared_components.results.records import asked_with
        self._threads = self.job.threads or max(1, torch.get_num_threads() // max(1, self.job.workers))
        torch.set_num_threads(self._threads)
        try:
            self._stack.enter_context(bundle_code(Path(self.job.root)))
            self._stack.enter_context(asked_with(self.job.asked))
            self._stack.enter_context(quiet(not self.job.verbose))
            self._stack.enter_context(self._notes.listening())
            self.place = self._stack.enter_context(self.ledger.workplace())
            self._pool = self._stack.enter_context(ThreadPoolExecutor(1, initializer=self._start_thread))
            try:
                self._build(self.device)
            except Exception as error:
                if not is_cuda_out_of_memory(error):
                    raise
                self._build("cpu")
                self._fallback = "the GPU has no memory left for the network: registered on the CPU"
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing behind."""
        self._pool.shutdown(cancel_futures=True)
        self._stack.close()

    def _start_thread(self) -> None:
        import torch

        torch.set_num_threads(self._threads)

    def _build(self, device: str) -> None:
        from monai.bundle import create_workflow

        changed = {
            **self.job.chosen,
            **self._changes,
            "device#name": device,
            "output_dir": _path(str(self.place / "results")),
        }
        changed |= {"bundle_root": _path(self.job.root), "datalist": None, "pairs": [], "handlers": self._handlers()}
        files = list(self.job.config_files)
        workflow = create_workflow(config_file=files, logging_file=False, **changed)
        self._parser = workflow.parser
        self._evaluator = self._parser.get_parsed_content("evaluator")
        self._evaluator.state.epoch_length = 1
        self._inferer = self._evaluator.inferer
        self.preprocessing = self._parser.get_parsed_content("preprocessing")
        self.collate = self._parser.get_parsed_content("collate")
        self.device = str(self._evaluator.state.device)

    def _handlers(self) -> list[Any]:
        handlers = self._configuration().get("handlers", [])
        return [handler for handler in handlers if str(handler["_target_"]).split(".")[-1] not in _SILENT]

    def load(self, task: Task) -> Future[Loaded | None]:
        """Begin to read a pair, in the thread that does so; with a budget of memory it is read in its turn."""
        if self.job.chosen.get("max_memory_gb") is not None:
            return self._pool.submit(lambda: None)
        return self._pool.submit(self._load, task)

    def _load(self, task: Task) -> Loaded:
        begin, inputs = time.perf_counter(), input_facts(task.item)
        self._notes.take()
        batch = self.collate([self.preprocessing(dict(task.item))])
        return Loaded(batch, time.perf_counter() - begin, inputs, self._notes.take())

    def finish_all(self, group: Sequence[tuple[Task, Future[Loaded]]]) -> Iterator[Row]:
        """Register pairs that were begun to be read, the network's part of all of them at once.

        Raises:
            StopError: as ``finish``.
        """
        if len(group) > 1:
            read = (future.result() for _, future in group if future.exception() is None)
            self._predict([pair for pair in read if pair is not None])  # none is read yet where memory is scarce
        for task, future in group:
            yield self.finish(task, future)

    def _predict(self, pairs: list[Loaded]) -> None:
        """What fails together, for want of memory above all, is tried one by one, and told of there."""
        try:
            if self._parser is None:
                self._build(self.device)
            self._seed()
            predict_together(self._evaluator, pairs)
        except Exception as error:
            logging.getLogger(__name__).debug("not in one batch: %s", error)
            self._parser = None
            for pair in pairs:
                pair.pred = None

    def finish(self, task: Task, loading: Future[Loaded | None]) -> Row:
        """Register a pair that was begun to be read, and put results and marker in their place.

        Returns:
            its row, also of a pair that failed.

        Raises:
            StopError: the results cannot be written, nor could others.
        """
        inputs: Facts | None = None
        try:
            try:
                loaded = loading.result() or self._load(task)
                inputs = loaded.inputs
            except Exception as error:
                return self._failed(task, error, inputs)
            try:
                return self._finish(task, loaded)
            except Exception as error:
                self._parser = None  # the evaluator stopped halfway: a new one for the next pair
                if is_of_place(error):
                    raise
                return self._failed(task, error, inputs)
        except Exception as error:
            raise StopError(sentence(error)) from error

    def _finish(self, task: Task, loaded: Loaded) -> Row:
        notes = [note for note in (self._fallback, *loaded.notes) if note]
        self._notes.take()
        if self._parser is None:
            self._build(self.device)
        device = self.device
        output = self._tried(loaded)
        if output is None:
            output, device, words = self._with_less(loaded)
            notes.append(words)
        row = ok_row(task, output["metrics"], output["run"], device, "; ".join([*notes, *self._notes.take()]))
        results = Path(output["folder"])
        pictures = _pictures(loaded, results)
        record = {"row": row, "recipe": self.job.recipe, "inputs": loaded.inputs, "thumbnails": pictures}
        self.ledger.publish(task.name, results, record)
        return row

    def _tried(self, loaded: Loaded) -> dict[str, Any] | None:
        """Return what came of a pair, or None where the GPU has too little memory for it."""
        try:
            return self._evaluate(loaded)
        except Exception as error:
            if self.device == "cpu" or not is_cuda_out_of_memory(error):
                raise
        return None

    def _with_less(self, loaded: Loaded) -> tuple[dict[str, Any], str, str]:
        """Return what came of a pair with less memory of the GPU, or none, on which device, and what was done."""
        device, ladder = self.device, rungs(self._configuration())
        try:
            for self._changes, words in ladder:
                self._evaluator = self._parser = None
                free()
                self._build(self._changes.get("device#name", device))
                told = f"CUDA out of memory: {words}"
                with fallen_back(told):
                    if (output := self._tried(loaded)) is not None:
                        return output, self.device, told
        finally:  # the next pair begins as it was asked for
            self._changes, self._parser, self.device = {}, None, device
        raise AssertionError("the CPU does it or fails")

    def _configuration(self) -> dict[str, Any]:
        from monai.bundle import ConfigParser

        return {**ConfigParser.load_config_files(list(self.job.config_files)), **self.job.chosen}

    def _evaluate(self, loaded: Loaded) -> dict[str, Any]:
        """Run the evaluator on one pair, from the state in which register.py would."""
        forget_peak()
        self._seed()
        loaded.batch["pair"].started = time.perf_counter() - loaded.seconds  # without what it waited for its turn
        engine = self._evaluator
        engine.inferer = self._inferer if loaded.pred is None else Known(loaded.pred, self._inferer)
        engine.data_loader = [loaded.batch]
        engine.run()
        output = {key: engine.state.output[key] for key in ("metrics", "run", "folder")}
        engine.data_loader, engine.state.output, engine.state.batch, engine.state.dataloader = [], None, None, None
        return output

    def _seed(self) -> None:
        import torch

        torch.manual_seed(int(self._parser.get_parsed_content("seed")) if "seed" in self._parser else 0)

    def _failed(self, task: Task, error: Exception, inputs: Facts | None) -> Row:
        if self.job.verbose:
            traceback.print_exception(error)
        return record_failure(self.ledger, task, sentence(error), self.job.recipe, inputs)


def record_failure(ledger: Ledger, task: Task, fault: str, recipe: Recipe, inputs: Facts | None = None) -> Row:
    """Write the marker of a pair that failed and return its row."""
    row = failed_row(task, fault)
    ledger.fail(task.name, {"row": row, "recipe": recipe, "inputs": inputs or input_facts(task.item), "files": {}})
    return row


def _pictures(loaded: Loaded, results: Path) -> dict[str, str]:
    """Return the thumbnails; a pair is not worse for having none."""
    try:
        fixed = loaded.batch["pair"].fixed
        return make_thumbnails(fixed.array[0].numpy(), results / "moved.nii.gz", fixed.frame)
    except Exception as error:
        logging.getLogger(__name__).debug("no thumbnails: %s", error)
        return {}
