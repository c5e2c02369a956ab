"""Differential privacy of a site's training cases: what it costs, and what may still be spent.

The mechanism is DP-SGD (Abadi et al. 2016, Deep Learning with Differential Privacy), in
``dp_sgd.train_privately``: every case is drawn by itself, with the same probability in every step;
its gradient is clipped block by block, and noise is added to their sum. ``dp_accounting`` says
what that comes to, and is imported here only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixmfl.core.errors import PrivacyError
from mixmfl.core.files import locked, read_json, write_json

FORMAT = 1

_LEDGER_SECONDS = 30.0

# whole numbers, for which the divergence has a closed form; at others its series may not converge
_ORDERS = (*range(2, 65), 80, 96, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Privacy:
    """What a site demands before its training leaves it.

    The guarantee is (epsilon, delta)-differential privacy of all weights that it ever sends, for
    data that differ by one training case there or not.

    Attributes:
        epsilon: At most, over all runs in the ledger.
        delta: Probability that the bound does not hold; well below 1 / training cases.
        noise: Standard deviation of the noise on a sum of gradients, in units of ``clip``.
        clip: Norm that a case's gradient is clipped to.
        ledger: File in which the site keeps what was spent.
    """

    epsilon: float
    delta: float
    noise: float
    clip: float
    ledger: Path


@dataclass(frozen=True)
class Spent:
    """Steps of one kind.

    Attributes:
        rate: Probability that a case is drawn in a step.
        noise: As in ``Privacy``.
        steps: How many.
    """

    rate: float
    noise: float
    steps: int


def epsilon_of(spent: Sequence[Spent], delta: float) -> float:
    """Return the epsilon of all these steps together, by Renyi differential privacy.

    Steps with Poisson sampling of cases and the Gaussian mechanism (Mironov, Talwar, Zhang 2019,
    Renyi Differential Privacy of the Sampled Gaussian Mechanism); a bound, not the least one.

    Raises:
        PrivacyError: The accountant is not installed.
    """
    try:
        import dp_accounting
        from dp_accounting import rdp
    except ImportError:
        raise PrivacyError(
            "differential privacy needs an accountant, which is not installed; "
            "pip install 'mixmfl[privacy]'"
        ) from None
    accountant = rdp.RdpAccountant(orders=_ORDERS)
    for part in spent:
        gaussian = dp_accounting.GaussianDpEvent(part.noise)
        step = (
            gaussian if part.rate >= 1 else dp_accounting.PoissonSampledDpEvent(part.rate, gaussian)
        )
        accountant.compose(step, part.steps)
    return float(accountant.get_epsilon(delta)) if spent else 0.0


def sampling_rate(batch_size: int, cases: int) -> float:
    """Return the probability that a case is drawn, so that batches have their size on average."""
    return min(1.0, batch_size / cases)


def read_ledger(path: Path) -> list[Spent]:
    """Return what a site has spent; nothing where there is no ledger yet.

    Raises:
        PrivacyError: It is damaged. What was spent is then not known, and nothing may be sent.
    """
    if not path.exists():
        return []
    content = read_json(path, PrivacyError)
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        return [_read_spent(part) for part in content["spent"]]
    except (KeyError, TypeError, ValueError) as error:
        raise PrivacyError(
            f"{path}: is damaged ({error}), so what was spent of the privacy budget is not known; "
            "restore it from a copy, or begin a new budget by removing it"
        ) from None


def spend(privacy: Privacy, rate: float, steps: int) -> float:
    """Write steps into the ledger, before they are done.

    So that none is forgotten, whatever happens next.

    Args:
        privacy: Of the site.
        rate: Probability that a case is drawn in a step.
        steps: That are to be done.

    Returns:
        The epsilon of all steps in the ledger.

    Raises:
        PrivacyError: It would be more than the budget, or another process has the ledger; nothing
            was written.
    """
    taken = PrivacyError(
        f"{privacy.ledger}: another process has been writing to it for {_LEDGER_SECONDS:g} s; what "
        "is spent must be counted once, so nothing is sent. Run one job with it at a time"
    )
    with locked(privacy.ledger.with_name(f"{privacy.ledger.name}.lock"), _LEDGER_SECONDS, taken):
        return _spend(privacy, rate, steps)


def _spend(privacy: Privacy, rate: float, steps: int) -> float:
    before = read_ledger(privacy.ledger)
    if before and (before[-1].rate, before[-1].noise) == (rate, privacy.noise):
        steps += before.pop().steps
    after = [*before, Spent(rate, privacy.noise, steps)]
    epsilon = epsilon_of(after, privacy.delta)
    if not epsilon <= privacy.epsilon:
        raise PrivacyError(
            f"the privacy budget is spent: another round would make it epsilon {epsilon:.2f} at "
            f"delta {privacy.delta:g}, and {privacy.epsilon:g} was allowed; the site sends nothing "
            "more"
        )
    write_json(
        privacy.ledger,
        {
            "format": FORMAT,
            "epsilon": epsilon,
            "delta": privacy.delta,
            "spent": [[part.rate, part.noise, part.steps] for part in after],
        },
    )
    return epsilon


def _read_spent(part: Any) -> Spent:
    rate, noise, steps = part
    if not (0 < rate <= 1 and noise > 0 and type(steps) is int and steps > 0):
        raise ValueError(f"steps {part!r}")
    return Spent(float(rate), float(noise), steps)
