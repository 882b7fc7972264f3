"""The training loop, which emits events to callbacks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from kdtrain.data.draws import derive_seed
from kdtrain.data.loader import Batch, Loader
from kdtrain.engine.callback import Callback, CallbackList
from kdtrain.engine.events import BatchEnd, EpochEnd, EvalEnd, FitEnd, Status
from kdtrain.engine.losses import clip_gradients
from kdtrain.engine.objective import Objective
from kdtrain.engine.predict import predict_logits
from kdtrain.engine.recorder import Recorder
from kdtrain.engine.resume import FitState
from kdtrain.engine.run import FitProgress, Run
from kdtrain.engine.saved_values import SavedValues
from kdtrain.errors import error_text
from kdtrain.metrics.evaluation import Evaluation
from kdtrain.runtime import flow
from kdtrain.runtime.processor import zero_upper_avx

OptimizerFactory = Callable[[Iterable["flow.Tensor"]], "flow.optim.Optimizer"]
"""Makes the optimizer of the given parameters."""

Backward = Callable[[Mapping[str, "flow.Tensor"], "flow.optim.Optimizer", Batch], Mapping[str, "flow.Tensor"]]
"""Computes the gradients of ``losses["total"]``; returns the losses of the whole batch, without graph."""


def backward(
    losses: Mapping[str, flow.Tensor], optimizer: flow.optim.Optimizer, batch: Batch
) -> Mapping[str, flow.Tensor]:
    """Computes the gradients of a batch that one process has whole.

    Args:
        losses: scalar mean losses over the batch, by name.
        optimizer: the optimizer of the parameters.
        batch: the images.

    Returns:
        The losses without their graph. A term that is the total shares one tensor with it: making a tensor
        here is slow, because the CPU caches are cold between two steps.
    """
    losses["total"].backward()
    zero_upper_avx()
    total = losses["total"].detach()
    return MappingProxyType(
        {name: total if loss is losses["total"] else loss.detach() for name, loss in losses.items()}
    )


class Trainer:
    """Trains a network on an objective, and emits events to callbacks. The loop is the same in every mode.

    Args:
        model: the network, on the device where it is trained.
        optimizer: makes the optimizer, such as ``functools.partial(flow.optim.Adam, lr=1e-3)``. Its
            argument is the parameters of the network and of the terms that callbacks add.
        callbacks: called in this order.
        objective: the objective that the callbacks' ``configure`` starts from; cross-entropy by default.
        seed: determines dropout, and the initial weights of terms that have some.
        clip_grad_norm: the largest norm of all gradients together, above 0; None sets no limit.
        backward: computes the gradients; that of a fit in several processes averages them.
    """

    def __init__(
        self,
        model: flow.nn.Module,
        optimizer: OptimizerFactory,
        callbacks: Sequence[Callback] = (),
        *,
        objective: Objective | None = None,
        seed: int = 0,
        clip_grad_norm: float | None = None,
        backward: Backward = backward,
    ) -> None:
        self.model = model
        self.make_optimizer = optimizer
        self.callbacks = CallbackList(callbacks)
        self.objective = objective or Objective.task()
        self.seed = seed
        self.clip_grad_norm = clip_grad_norm
        self.backward = backward

    def fit(
        self,
        train: Loader,
        validation: Loader,
        *,
        epochs: int,
        directory: Path | str,
        resume: FitState | None = None,
    ) -> FitEnd:
        """Trains for ``epochs`` epochs, or until a callback calls ``run.stop``.

        The loop::

            objective = configure(objective)    # every callback in turn
            on_fit_start
            for each epoch:
                for each batch:
                    make an optimizer step on the objective
                    on_batch
                evaluate the held-out images
                on_eval                         # decide here
                on_epoch_end                    # write files here
            on_fit_end                          # also after an error; the last callback first

        Args:
            train: the training images.
            validation: the held-out images, evaluated after each epoch.
            epochs: passes over the training images.
            directory: the folder for callbacks' files; it is made if it does not exist.
            resume: the state to continue from; None begins a new fit.

        Returns:
            How the fit ended.

        Raises:
            CallbackError: a hook raised. ``on_fit_end`` of every started callback has run.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        flow.manual_seed(derive_seed(self.seed, "weights", "terms"))
        student = Recorder(self.model, "student", _example(train))
        objective = self.callbacks.configure(self.objective.with_student(student))
        modules = (self.model, *(term.to(train.device) for term in objective.modules()))
        optimizer = self.make_optimizer([p for module in modules for p in module.parameters()])
        progress = FitProgress()
        run = Run(
            model=self.model,
            optimizer=optimizer,
            objective=objective,
            train=train,
            validation=validation,
            epochs=epochs,
            directory=directory,
            callback_states=self.callbacks.state_dict,
            resumed=None if resume is None else resume.end,
            _progress=progress,
        )
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

    def _train(self, run: Run, progress: FitProgress) -> None:
        """Runs the epochs."""
        batches = len(run.train)
        saved: SavedValues | None = SavedValues()  # those of the first step are checked
        while progress.epoch < run.epochs and not run.stopping:
            progress.epoch += 1
            flow.manual_seed(derive_seed(self.seed, "dropout", progress.epoch, run.train.part))
            self.model.train()
            seen: list[Mapping[str, flow.Tensor]] = []
            rate, started = run.learning_rate, time.perf_counter()
            for batch in run.train.epoch(progress.epoch):
                rate = run.learning_rate
                losses = self._step(run, batch, progress.step / batches, saved)
                saved = None
                progress.step += 1
                seen.append(losses)
                self.callbacks.emit(
                    "on_batch", run, BatchEnd(progress.epoch, progress.step, batch, losses, rate)
                )
                if run.stopping:
                    break
            sizes = run.train.batch_sizes[: len(seen)]
            losses_of_epoch, trained = _mean_losses(seen, sizes), time.perf_counter()

            logits = predict_logits(run.evaluated, run.validation)
            evaluation = _task_metrics(logits, run.validation)
            held_out = {f"val/{name}": value for name, value in evaluation.items()}
            metrics = MappingProxyType(held_out | losses_of_epoch)
            seconds = time.perf_counter() - trained
            self.callbacks.emit("on_eval", run, EvalEnd(run.epoch, run.step, metrics, seconds, logits))

            end = EpochEnd(run.epoch, run.step, metrics, sum(sizes), trained - started, seconds, rate)
            self.callbacks.emit("on_epoch_end", run, end)

    def _step(
        self, run: Run, batch: Batch, epochs_done: float, saved: SavedValues | None
    ) -> Mapping[str, flow.Tensor]:
        """Makes one optimizer step; returns the losses before it, means over the whole batch."""
        run.optimizer.zero_grad(set_to_none=True)
        with saved or contextlib.nullcontext():
            output = run.objective.student(batch.inputs)
            losses = run.objective(batch, output, epochs_done)
            if saved is not None:
                saved.check(losses["total"], run.optimizer)
            batch_losses = self.backward(losses, run.optimizer, batch)
        if self.clip_grad_norm is not None:
            clip_gradients(run.optimizer, self.clip_grad_norm)
        run.optimizer.step()
        run.objective.constrain()
        return batch_losses

    def evaluate(self, loader: Loader, network: flow.nn.Module | None = None) -> Mapping[str, float]:
        """Evaluates a network on all images of ``loader``.

        The metrics measure the task, whatever the objective is, so that runs can be compared.

        Args:
            loader: the images.
            network: the network; by default the trainer's own, which has the weights of the last step. The
                best ones are in the file that ``Checkpoint`` writes.

        Returns:
            ``accuracy``, ``balanced_accuracy`` and ``macro_f1``, fractions, and ``cross_entropy``, in nats
            per image.
        """
        return _task_metrics(predict_logits(self.model if network is None else network, loader), loader)

    def _end(self, run: Run, status: Status, reason: str | None, started: float) -> FitEnd:
        """Calls ``on_fit_end`` of the callbacks that were started."""
        end = FitEnd(status, reason, run.epoch, run.step, time.perf_counter() - started)
        self.callbacks.on_fit_end(run, end)
        return end


def _task_metrics(logits: npt.NDArray[np.float32], loader: Loader) -> dict[str, float]:
    """Returns the metrics of logits about a loader's images, (N, C) float32."""
    evaluation = Evaluation.from_logits(logits, loader.targets)
    names = ("accuracy", "cross_entropy", "balanced_accuracy", "macro_f1")
    return {name: getattr(evaluation, name) for name in names}


def _example(train: Loader) -> flow.Tensor:
    """Returns the first image as a batch, (1, C, H, W) float32, to find layers' shapes with."""
    return flow.tensor(train.inputs[:1]).to(train.device)


def _mean_losses(batches: Sequence[Mapping[str, flow.Tensor]], sizes: Sequence[int]) -> dict[str, float]:
    """Returns the means of the losses over all images, as ``loss/NAME``.

    The losses stay on the device until the end of the epoch, so that no step waits for its numbers.

    Args:
        batches: each batch's mean losses by name, scalar tensors.
        sizes: the number of images in each batch.
    """
    names = batches[0] if batches else ()
    return {f"loss/{name}": _mean([losses[name] for losses in batches], sizes) for name in names}


def _mean(losses: Sequence[flow.Tensor], sizes: Sequence[int]) -> float:
    """Returns the mean of scalar tensors, weighted by ``sizes``. They are read from the device together."""
    values = flow.stack(list(losses)).numpy().reshape(len(sizes))
    return float(np.average(values.astype(np.float64), weights=sizes))
