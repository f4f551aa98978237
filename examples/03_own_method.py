"""A method in one file of your own: PromptFL whose server averages the prompts of the rounds.

    python examples/03_own_method.py

To find the method from the command line and in other projects, put it into a package with an entry point:

    [project.entry-points."hushprompt.methods"]
    averaged = "my_package.averaged:Averaged"
"""

from dataclasses import dataclass
from typing import ClassVar

from rich import print
from torch import Tensor

import hushprompt as hp
from hushprompt.methods.base import Batch, NoState, StepInfo, Upload
from hushprompt.methods.context import ContextConfig, mean_loss
from hushprompt.privacy.config import Channel


@dataclass(frozen=True)
class AveragedState:
    """What the server holds; every client receives `context`."""

    context: Tensor  # [t, e]
    average: Tensor
    num_steps: Tensor


@hp.register.method("averaged")
@dataclass(frozen=True, kw_only=True)
class Averaged(ContextConfig):
    """Federated averaging with an average over steps (Polyak and Juditsky 1992)."""

    title: ClassVar[str] = "PromptFL, averaged"
    channels: ClassVar[frozenset[Channel]] = frozenset({Channel.GLOBAL})  # one noisy sum a step
    payload: ClassVar[tuple[str, ...]] = ("context",)  # all of the shared state that is sent

    learning_rate: float = 0.8
    """Step of the shared context."""

    def init(self, model, rng):
        """Return the start of the shared state, and nothing for the clients."""
        context = self.first_context(model, rng)
        return AveragedState(context, context, context.new_zeros(())), NoState()

    def client_step(self, model, shared, personal, batch: Batch, mechanism, rng):
        """Upload the sum of clipped gradients: the one way in which data enters."""
        grads, losses = self.gradients(model, shared.context, batch)
        return Upload(mechanism.clip(Channel.GLOBAL, grads)), personal, StepInfo(mean_loss(losses))

    def server_step(self, shared, released):
        """Step with the noisy mean gradient; what is made of it costs no more privacy."""
        context, num_steps = shared.context - self.learning_rate * released, shared.num_steps + 1
        return AveragedState(context, shared.average + (context - shared.average) / num_steps, num_steps)

    def shared_context(self, shared):
        """Return the context that is published."""
        return shared.average

    def context(self, shared, personal):
        """Return the context that a client uses."""
        return shared.average


def main(**sections) -> hp.Run:
    """Compare the method with PromptFL under the preset's budget."""
    references = [{"method": {"name": "promptfl", "optimizer": {"learning_rate": 0.8}}}]
    run = hp.run(method=Averaged(), **{"references": references, **sections})
    print(run.table())
    return run


if __name__ == "__main__":
    main()
