"""What a site keeps of a run: the optimizer states of its last rounds, and the models."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mixmfl.core.errors import MixmflError, PrivacyError
from mixmfl.core.tensor_store import Tensors
from mixmfl.federated.exchange_log import note
from mixmfl.federated.tensor_files import load_tensors, save_tensors
from mixmfl.networks.prototypes import State

_KEPT = 3
"""Optimizer states that are kept: the server may go back a round, or two."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run at a site.

    Attributes:
        path: The folder, named as the run.
        problem_log: The site's log of failures.
    """

    path: Path
    problem_log: Path

    @property
    def joined(self) -> Path:
        """What the coordinator said of the run when the site joined it."""
        return self.path / "joined.json"

    @property
    def model(self) -> Path:
        """The finished global model."""
        return self.path / "model.safetensors"

    @property
    def personal(self) -> Path:
        """The weights by which the personalised model differs from the global one."""
        return self.path / "own.safetensors"

    @property
    def own_model(self) -> Path:
        """The personalised model, as a whole."""
        return self.path / "own_model.safetensors"

    def keep_optimizer(self, number: int, state: State) -> None:
        """Store the optimizer state after a round; states that no round can need are removed.

        Personalised weights go, too, because they were made from fewer rounds.
        """
        save_tensors(self._optimizer_file(number), state)
        self.personal.unlink(missing_ok=True)
        stored = self._stored_rounds()
        repeated = [other for other in stored if other > number]  # these rounds are done again
        for other in repeated + [other for other in stored if other <= number][:-_KEPT]:
            self._optimizer_file(other).unlink()

    def optimizer_before(
        self, number: int, check: Callable[[Tensors], None], *, masked: bool
    ) -> State:
        """Return the optimizer state at the start of a round, or an empty one.

        It is the state after the last earlier round that was trained here. A round that the server
        asks for again, because it lost the reply, therefore starts from the same state.

        Args:
            number: The round.
            check: What a state must be, as for ``load_tensors``.
            masked: Whether the run is masked.

        Raises:
            PrivacyError: The run is masked and the state is damaged: masks only cancel between
                sites that know the same rounds.
        """
        for earlier in reversed([n for n in self._stored_rounds() if n < number]):
            try:
                return load_tensors(self._optimizer_file(earlier), check)
            except MixmflError as error:
                if masked:
                    raise PrivacyError(
                        f"{error}, and without it this site's masks do not cancel. Restore the "
                        "file from a copy, or have the coordinator start a new run"
                    ) from None
                problem = f"the optimizer state of round {earlier + 1} is left out: {error}"
                note(self.problem_log, problem)
        if number:
            problem = f"round {number + 1} starts without the optimizer state of an earlier one"
            note(self.problem_log, problem)
        return {}

    def _optimizer_file(self, number: int) -> Path:
        return self.path / "optimizer" / f"{number:05d}.safetensors"

    def _stored_rounds(self) -> list[int]:
        """Return the rounds after which an optimizer state is stored, in order."""
        files = (self.path / "optimizer").glob("*.safetensors")
        return sorted(int(file.stem) for file in files if file.stem.isdecimal())
