"""A site in a run: handles every kind of task, in a simulation and on a network alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mixmfl.core.errors import AggregationError, PrivacyError
from mixmfl.core.nan import or_none
from mixmfl.core.tensor_store import Tensors
from mixmfl.core.text import quoted
from mixmfl.federated.client.comparison import compare_at_site
from mixmfl.federated.client.outbound import outgoing
from mixmfl.federated.client.personalization import personalize_at_site
from mixmfl.federated.client.secure_aggregation import (
    RoundKey,
    Signer,
    send_key,
    train_masked,
)
from mixmfl.federated.client.subset_validation import measure_at_site
from mixmfl.federated.client.training import train_at_site, validate_at_site
from mixmfl.federated.messages import Message
from mixmfl.federated.state import COMPARE, MEASURE, RunSettings, Site
from mixmfl.networks.prototypes import State
from mixmfl.planning.plans import Plans
from mixmfl.training.trainer import BatchLoss


@dataclass(frozen=True)
class Handled:
    """The result of a task. Only the reply leaves the site.

    Attributes:
        reply: The message for the server.
        optimizer: The optimizer state after training, which the site's next round starts from;
            empty after other tasks.
        personal: The blocks of the personalised model, where that is better than the global one;
            else empty.
    """

    reply: Message
    optimizer: State = field(default_factory=dict)
    personal: State = field(default_factory=dict)


class Client:
    """One site in one run. Between tasks it keeps only the key of a masked round."""

    def __init__(
        self,
        site: Site,
        plans: Plans,
        settings: RunSettings,
        signer: Signer | None = None,
        step: Callable[[], None] = lambda: None,
        loss: BatchLoss | None = None,
    ) -> None:
        """Take the site with its cases, plans and settings of the run, and its part in masked runs.

        ``step`` is called after every case that is measured, and every round of a personalised
        model; ``loss`` is that of a batch in research.

        Raises:
            PrivacyError: The run is masked, and the site has nothing to sign its keys with.
        """
        if settings.masked and signer is None:
            raise PrivacyError(
                "the run is masked, and this site has no key of a kit to sign its part with"
            )
        self._step, self._loss = step, loss
        self.site, self.plans, self.settings = site, plans, settings
        self._signer = signer
        self._key: RoundKey | None = None

    def handle(self, task: Message, optimizer: Tensors) -> Handled:
        """Do a task of the run.

        Args:
            task: The server's message.
            optimizer: Optimizer state after the site's last training; empty before the first, and
                for tasks that do not train.

        Raises:
            AggregationError: The kind of the task is unknown.
            PrivacyError: The site's privacy budget is spent, or the task asks for what would
                reveal the numbers of a masked run.
            MixmflError: The loss became NaN or infinite, or the device's memory ran out.
        """
        if task.kind not in _HANDLERS:
            raise AggregationError(
                f"the server sent a task {quoted(task.kind)}; this site knows {', '.join(KINDS)}"
            )
        return _HANDLERS[task.kind](self, task, optimizer)

    def _train(self, task: Message, optimizer: Tensors) -> Handled:
        if self.settings.masked:
            raise PrivacyError(
                "the server asked for a plain reply in a run that was agreed to be masked"
            )
        of_run = self.site, self.plans, self.settings
        return Handled(*train_at_site(task, *of_run, optimizer, self._loss))

    def _send_key(self, task: Message, optimizer: Tensors) -> Handled:
        reply, self._key = send_key(task, self._masking())
        return Handled(reply)

    def _train_masked(self, task: Message, optimizer: Tensors) -> Handled:
        key, self._key = self._key, None
        of_run = self.site, self.plans, self.settings
        return Handled(*train_masked(task, *of_run, optimizer, key, self._masking()))

    def _masking(self) -> Signer:
        if not self.settings.masked or self._signer is None:
            raise PrivacyError(
                "the server asked for a masked reply in a run that was agreed to be plain"
            )
        return self._signer

    def _validate(self, task: Message, optimizer: Tensors) -> Handled:
        return Handled(validate_at_site(task, self.site, self.plans, self.settings))

    def _measure(self, task: Message, optimizer: Tensors) -> Handled:
        return Handled(measure_at_site(task, self.site, self.plans, self.settings, self._step))

    def _compare(self, task: Message, optimizer: Tensors) -> Handled:
        return Handled(compare_at_site(task, self.site, self.plans, self.settings, self._step))

    def _personalize(self, task: Message, optimizer: Tensors) -> Handled:
        if not self.site.validation:  # without them the two models cannot be compared
            return Handled(outgoing(task.kind, {"dice": None, "dice_before": None}))
        made = personalize_at_site(task, self.site, self.plans, self.settings, self._step)
        both = {"dice": made.sent.dice, "dice_before": made.sent.dice_before}
        record = {name: or_none(dice) for name, dice in both.items()}
        return Handled(
            outgoing(task.kind, record), personal=made.blocks if made.result.kept else {}
        )


_HANDLERS: Mapping[str, Callable[[Client, Message, Tensors], Handled]] = {
    "train": Client._train,
    "keys": Client._send_key,
    "masked": Client._train_masked,
    "validate": Client._validate,
    MEASURE: Client._measure,
    COMPARE: Client._compare,
    "personalize": Client._personalize,
}
KINDS = tuple(_HANDLERS)
"""Kinds of the tasks of a run."""
