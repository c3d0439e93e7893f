"""Learner: the only training class. It owns the update, the checkpoints and the stop; systems own their loop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fathom.core import disk, machine
from fathom.core.errors import FathomError, Stopped
from fathom.core.run import Run
from fathom.model.transformer import Transformer
from fathom.train import checkpoint
from fathom.train.batch import Batch, Example
from fathom.train.objective import Loss
from fathom.train.optim import Optimiser, balance_experts
from fathom.train.parallel import Team, combined
from fathom.train.schedule import AdamW, Checkpoints


class Stateful(Protocol):
    """Something whose position belongs in the checkpoint, as JSON."""

    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


class Beside(NamedTuple):
    """A model that is trained beside a Learner's own, in the same steps and by its own optimiser: a critic."""

    model: nn.Module
    optim: AdamW


class Learner:
    """Trains one model: `for step in learner.steps(n)`, `learner.backward(loss)` per micro-batch, `learner.step()`.

    On entering `steps` it restores the newest checkpoint of the run, if there is one, and cuts the metrics back to it;
    after a step it saves where due and where a stop was asked for, at multiples of `stride` only. `tracked`
    are things that the checkpoint holds too. In a `team` each process gives its share of the step to `backward`.
    Models `beside` it are updated and kept with it.
    """

    def __init__(
        self, model: Transformer, optim: AdamW, run: Run, checkpoints: Checkpoints | None = None, stride: int = 1,
        team: Team | None = None, beside: Mapping[str, Beside] | None = None, **tracked: Stateful,
    ):
        self.model, self.settings, self.run, self.team = model, optim, run, team or Team()
        self.checkpoints, self.tracked = checkpoints or Checkpoints(), tracked
        self.optimiser, self.stride = Optimiser(model, optim), stride
        self.beside = {name: (one, Optimiser(one.model, one.optim)) for name, one in (beside or {}).items()}
        self.done = 0  # finished steps
        self.total = 0  # steps of the whole run, for the schedule
        self.tokens = 0  # input tokens learnt from, ever
        self.best: dict[str, float] | None = None  # held-out loss and its step
        self.parts: dict[str, Tensor] = {}
        self.counts: dict[int, Tensor] = {}
        self._learnt: list[Batch] = []  # the step's batches, kept on disk should its gradient not be finite

    @property
    def folder(self) -> Path:
        """Where the checkpoints lie."""
        return self.run.dir / "checkpoints"

    def steps(self, until: int) -> Iterator[int]:
        """Step numbers from the first unfinished one to `until`; raises Stopped, state saved, when that was asked."""
        self.total = until
        self.resume()
        saved = self.done
        while self.done < until:
            step = self.done + 1
            started = time.monotonic()
            self.parts, self.counts, self._learnt = {}, {}, []
            yield step
            self.done = step
            self.run.timing(step, seconds=time.monotonic() - started, total=until)
            if step % self.stride:
                continue
            reason = self.team.tell(lambda: self.run.stop_requested)
            if step % self.checkpoints.every == 0 or step == until or reason or self._is_best(step):
                self.save()
                saved = step
            if reason and step < until:
                raise Stopped(f"stopped after step {saved} of {until} ({reason}); the same command continues")
        self.run.log.info("%d steps done; most memory held: %s", until, self._memory())

    def _memory(self) -> str:
        here = f"{machine.peak_memory() / 1e9:.2f} GB"
        device = next(self.model.parameters()).device
        if device.type != "cuda":
            return here
        return f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB on {device}, {here} beside it"

    def backward(self, loss: Loss, batch: Batch | None = None) -> None:
        """Adds a micro-batch's gradient; a loss that is not finite stops the run before any update, the batch kept."""
        if not torch.isfinite(loss.total):
            raise FathomError(self._keep([batch] if batch else [], f"loss={float(loss.total.detach())}"))
        if batch is not None:
            self._learnt.append(batch)
        torch.autograd.backward(loss.total)
        for name, value in loss.parts.items():
            self.parts[name] = combined(name, self.parts.get(name), value.double().cpu())
        for layer, count in loss.routing.counts.items():
            self.counts[layer] = self.counts[layer] + count if layer in self.counts else count

    def step(self) -> dict[str, float]:
        """Updates weights and selection biases; the step's loss terms, gradient norm and learning rate."""
        optimisers = [self.optimiser, *(optimiser for _, optimiser in self.beside.values())]
        for optimiser in optimisers:
            self.team.add_gradients(optimiser.named)
        self.parts = self.team.add(self.parts)
        counts = self.team.add({str(layer): count for layer, count in self.counts.items()})
        self.counts = {int(layer): count for layer, count in counts.items()}
        norm, *others = norms = [optimiser.gradient_norm() for optimiser in optimisers]
        if not all(one < float("inf") for one in norms):
            raise FathomError(self._keep(self._learnt, f"gradient norm={max(norms)}"))
        lr = self.settings.at(self.done + 1, self.total)
        self.optimiser.step(lr, norm)
        told = {}
        for (name, (one, optimiser)), other in zip(self.beside.items(), others, strict=True):
            optimiser.step(one.optim.at(self.done + 1, self.total), other)
            told[f"{name}_grad_norm"] = other
        if self.settings.bias_speed:
            balance_experts(self.model, self.counts, self.settings.bias_speed)
        return {**{name: float(v) for name, v in self.parts.items()}, "grad_norm": norm, "lr": lr, **told}

    def count_tokens(self, examples: Sequence[Example]) -> int:
        """Adds this step's input tokens; the tokens learnt from so far."""
        self.tokens += sum(len(example.tokens) - 1 for example in examples)
        return self.tokens

    def expert_load(self) -> list[list[int]]:
        """Tokens that each expert got in this step, by routing layer."""
        return [self.counts[layer].tolist() for layer in sorted(self.counts)]

    def held_out(self, loss: float) -> None:
        """Notes a held-out loss measured after the running step, for keeping the best checkpoint."""
        if self.best is None or loss < self.best["loss"]:
            self.best = {"loss": loss, "step": self.done + 1}

    def _is_best(self, step: int) -> bool:
        return self.checkpoints.best and self.best is not None and self.best["step"] == step

    def save(self) -> Path:
        """Writes the checkpoint of the last finished step and removes what the rule does not keep."""
        folder = self.folder / f"{self.done:06d}"
        if not self.team.leads:
            return folder
        state = {
            "mark": self.run.mark(), "best": self.best, "tokens": self.tokens, "threads": torch.get_num_threads(),
            "tracked": {name: thing.state() for name, thing in self.tracked.items()},
        }
        if not disk.is_complete(folder):
            weights, moments = self.trained(), self.optimiser.state()
            for name, (one, optimiser) in self.beside.items():
                weights |= {f"{name}/{key}": tensor for key, tensor in one.model.state_dict().items()}
                moments |= {f"{name}/{key}": tensor for key, tensor in optimiser.state().items()}
            checkpoint.save(self.folder, self.done, weights, moments, state)
            # its hash names the whole state, so two runs can be compared without keeping their checkpoints
            self.run.timing(self.done, checkpoint=disk.digest(folder))
        self._prune()
        return folder

    def trained(self) -> dict[str, Tensor]:
        """The model's tensors that training may change: all but frozen weights, which are those it began with."""
        frozen = {n for n, p in self.model.named_parameters(remove_duplicate=False) if not p.requires_grad}
        return {name: tensor for name, tensor in self.model.state_dict().items() if name not in frozen}

    def _prune(self) -> None:
        best = int(self.best["step"]) if self.best and self.checkpoints.best else None
        checkpoint.prune(self.folder, self.checkpoints.keep, best)

    def resume(self) -> None:
        """Restores the newest complete checkpoint; without one the metrics begin anew."""
        with self.team.in_turn():
            self._restore()

    def _restore(self) -> None:
        if self.team.leads:
            disk.sweep(self.folder)
        known = checkpoint.steps(self.folder)
        for path in checkpoint.incomplete(self.folder):
            self.run.log.warning("%s: has no %s, so it is not whole; left out", path, disk.COMPLETE)
        if not known:
            self.run.rewind(None)
            return
        folder = self.folder / f"{known[-1]:06d}"
        weights, optimiser, state = checkpoint.load(folder)
        checkpoint.check_state(folder, state, self.tracked)
        if state["threads"] != torch.get_num_threads():
            self.run.log.warning(
                "the checkpoint was made with %d threads, now %d: the continuation may differ in the last bits",
                state["threads"], torch.get_num_threads(),
            )
        for name, (one, its) in self.beside.items():
            tensors, moments = _taken(weights, name), _taken(optimiser, name)
            checkpoint.check_fit(folder, tensors, one.model.state_dict())
            its.check_fit(folder, moments)
            one.model.load_state_dict(tensors)
            its.restore(moments)
        checkpoint.check_fit(folder, weights, self.trained())
        self.optimiser.check_fit(folder, optimiser)
        self.model.load_state_dict(weights, strict=False)  # every tensor that it may hold is there: checked above
        self.optimiser.restore(optimiser)
        for name, thing in self.tracked.items():
            thing.restore(state["tracked"][name])
        self.best, self.done, self.tokens = state["best"], state["step"], state["tokens"]
        self.run.rewind(state["mark"])
        if self.team.leads:
            self._prune()  # a kill may have come between the save and this
        self.run.log.info("continuing after step %d", self.done)

    def _keep(self, batches: Sequence[Batch], what: str) -> str:
        kept = ""
        if batches:
            path = self.run.dir / f"nonfinite-{self.done + 1:06d}.safetensors"
            names = ("tokens", "targets", "weight", "advantage", "sampled_logp", "reference_logp")
            save_file({
                f"{number}/{name}": tensor for number, batch in enumerate(batches)
                for name in names if (tensor := getattr(batch, name)) is not None
            }, path)
            kept = f" What was learnt from is kept in {path}."
        return (f"step {self.done + 1}: {what} is not finite; nothing was updated.{kept} Lower optim.lr or optim.clip, "
                "then continue from the last checkpoint")


def _taken(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Those named below `name`, without it; they are taken out."""
    names = [key for key in tensors if key.startswith(f"{name}/")]
    return {key.removeprefix(f"{name}/"): tensors.pop(key) for key in names}


@torch.no_grad()
def mean_loss(model: Transformer, batches: Sequence[Batch]) -> float:
    """Cross-entropy per trained token over batches that were packed as one step with `token_mean`, in nats."""
    from fathom.train.objective import next_token

    was_training = model.training
    model.eval()
    total = sum(float(next_token(model, batch).parts["loss_next"].double()) for batch in batches)
    model.train(was_training)
    return total
