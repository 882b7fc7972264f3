"""The training loop, and the events that it emits."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from kdtrain.data.loader import Batch, Loader
from kdtrain.engine.callback import Callback, CallbackList
from kdtrain.engine.events import BatchEnd, EpochEnd, EvalEnd, FitEnd, Status
from kdtrain.engine.objective import Objective
from kdtrain.engine.predict import predict_logits
from kdtrain.engine.recorder import Recorder
from kdtrain.engine.resume import FitState
from kdtrain.engine.run import Progress, Run
from kdtrain.errors import error_text
from kdtrain.metrics.evaluation import Evaluation
from kdtrain.runtime import flow
from kdtrain.runtime.processor import zero_upper_avx
from kdtrain.runtime.seeds import derive_seed

OptimizerFactory = Callable[[Iterable["flow.Tensor"]], "flow.optim.Optimizer"]


class Trainer:
    """Trains a network on an objective and tells callbacks about it; knows nothing of any mode.

    Args:
        model: the network, on the device where it is to be trained.
        optimizer: makes the optimizer from the parameters to train, which are the network's and
            those of terms that callbacks add: ``functools.partial(flow.optim.Adam, lr=1e-3)``.
        callbacks: called in this order.
        objective: what to minimise before callbacks have had their say; cross-entropy by default.
        seed: what dropout follows, and the first weights of terms that have some.
    """

    def __init__(
        self,
        model: flow.nn.Module,
        optimizer: OptimizerFactory,
        callbacks: Sequence[Callback] = (),
        *,
        objective: Objective | None = None,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.make_optimizer = optimizer
        self.callbacks = CallbackList(callbacks)
        self.objective = objective or Objective.task()
        self.seed = seed
        self._student = Recorder(model, "student")
        self._eval_model: flow.nn.Module | None = None

    def fit(
        self,
        train: Loader,
        validation: Loader,
        *,
        epochs: int,
        directory: Path | str,
        resume: FitState | None = None,
    ) -> FitEnd:
        """Trains for ``epochs`` epochs, or until a callback asks for a stop.

        Args:
            train: the images to train on.
            validation: the held-out images, evaluated after each epoch.
            epochs: how often each training image is seen.
            directory: where callbacks put their files; made if it is not there.
            resume: goes on from there instead of from the beginning.

        Returns:
            How the fit ended.

        Raises:
            CallbackError: a hook raised. Every callback that was started has been told the end.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        flow.manual_seed(derive_seed(self.seed, "weights", "terms"))
        self._student = Recorder(self.model, "student", _example(train))
        objective = self.callbacks.configure(self.objective.with_student(self._student))
        objective = objective.with_student(self._student)  # also where one made an objective of its own
        modules = (self.model, *(term.to(train.device) for term in objective.modules()))
        optimizer = self.make_optimizer([p for module in modules for p in module.parameters()])
        progress, states = Progress(), self.callbacks.state_dict
        resumed = resume.end if resume is not None else None
        run = Run(
            self.model, optimizer, objective, train, validation, epochs, directory, states, resumed, progress
        )
        self._eval_model = objective.eval_model
        if resume is not None:
            resume.restore(run.modules, optimizer)
            self.callbacks.load_state_dict(resume.callbacks)
            progress.epoch, progress.step = resume.end.epoch, resume.end.step
        started = time.perf_counter()
        try:
            self.callbacks.on_fit_start(run)
            self._train(run, progress)
        except BaseException as error:
            status = Status.INTERRUPTED if isinstance(error, KeyboardInterrupt) else Status.FAILED
            reason = error_text(error)
            with contextlib.suppress(Exception):  # the first error is the one to report
                self._end(run, status, reason, started)
            raise
        return self._end(
            run, Status.STOPPED if run.stop_reason else Status.COMPLETED, run.stop_reason, started
        )

    def _train(self, run: Run, progress: Progress) -> None:
        """The loop."""
        batches = len(run.train)
        while progress.epoch < run.epochs and not _stopping(run):
            progress.epoch += 1
            flow.manual_seed(derive_seed(self.seed, "dropout", progress.epoch, run.train.ranks.rank))
            self.model.train()
            seen: list[Mapping[str, flow.Tensor]] = []
            rate, started = run.learning_rate, time.perf_counter()
            for batch in run.train.epoch(progress.epoch):
                rate = run.learning_rate
                losses = self._step(run, batch, progress.step / batches)
                progress.step += 1
                seen.append(losses)
                self.callbacks.emit(
                    "on_batch", run, BatchEnd(progress.epoch, progress.step, batch, losses, rate)
                )
                if _stopping(run):
                    break
            sizes = run.train.batch_sizes[: len(seen)]
            losses_of_epoch, trained = _mean_losses(seen, sizes), time.perf_counter()
            run.train.ranks.average_buffers(self.model)

            metrics = MappingProxyType({**self.evaluate(run.validation), **losses_of_epoch})
            seconds = time.perf_counter() - trained
            self.callbacks.emit("on_eval", run, EvalEnd(run.epoch, run.step, metrics, seconds))

            end = EpochEnd(run.epoch, run.step, metrics, sum(sizes), trained - started, seconds, rate)
            self.callbacks.emit("on_epoch_end", run, end)

    def _step(self, run: Run, batch: Batch, epochs_done: float) -> Mapping[str, flow.Tensor]:
        """Makes one optimizer step; returns the losses before it."""
        run.optimizer.zero_grad(set_to_none=True)
        output = self._student(batch.inputs)
        zero_upper_avx()
        losses = run.objective(batch, output, epochs_done)
        losses["total"].backward()
        zero_upper_avx()
        of_batch = run.train.ranks.average_gradients(run.optimizer, _detached(losses), batch)
        run.optimizer.step()
        run.objective.constrain()
        return of_batch

    def evaluate(self, loader: Loader) -> dict[str, float]:
        """Returns ``eval/accuracy`` and ``eval/cross_entropy`` over all of ``loader``'s images.

        They measure the task, whatever the objective is, so that runs can be compared; of the network
        that stands in for the model, where the last fit had one.
        """
        model = self.model if self._eval_model is None else self._eval_model
        evaluation = Evaluation.from_logits(predict_logits(model, loader), loader.targets)
        return {"eval/accuracy": evaluation.accuracy, "eval/cross_entropy": evaluation.cross_entropy}

    def _end(self, run: Run, status: Status, reason: str | None, started: float) -> FitEnd:
        """Tells the callbacks that were started how the fit ended."""
        end = FitEnd(status, reason, run.epoch, run.step, time.perf_counter() - started)
        self.callbacks.on_fit_end(run, end)
        return end


def _example(train: Loader) -> flow.Tensor:
    """Returns the first image as a batch, for layers' shapes to be found out with."""
    return flow.tensor(train.inputs[:1]).to(train.device)


def _detached(losses: Mapping[str, flow.Tensor]) -> Mapping[str, flow.Tensor]:
    """Returns the losses as numbers only; where a lone term is the total, one tensor stands for both.

    Between two steps the processor has forgotten how to make a tensor, and each takes its time.
    """
    total = losses["total"].detach()
    return MappingProxyType(
        {name: total if loss is losses["total"] else loss.detach() for name, loss in losses.items()}
    )


def _stopping(run: Run) -> bool:
    """Returns whether the fit is to stop. All ranks agree, also where only one of them was asked."""
    asked, ranks = run.stopping, run.train.ranks
    if ranks.size == 1:
        return asked
    stopping = ranks.any_rank(asked)
    if stopping and not asked:
        run.stop("a callback of another process asked for it")
    return stopping


def _mean_losses(batches: Sequence[Mapping[str, flow.Tensor]], sizes: Sequence[int]) -> dict[str, float]:
    """Returns the mean over all images, as ``loss/NAME``.

    No step waits for its numbers: they stay on the device until the epoch is over.

    Args:
        batches: each batch's mean losses, by name.
        sizes: how many images each batch has.
    """
    names = batches[0] if batches else ()
    return {f"loss/{name}": _mean([losses[name] for losses in batches], sizes) for name in names}


def _mean(losses: Sequence[flow.Tensor], sizes: Sequence[int]) -> float:
    """Returns the mean, weighted by ``sizes``. The losses are read together, not one by one."""
    values = flow.stack(list(losses)).numpy().reshape(len(sizes))
    return float(np.average(values.astype(np.float64), weights=sizes))
