"""Differential privacy of a site's training cases: accounting and the site's budget.

The mechanism is DP-SGD (Abadi et al. 2016, Deep Learning with Differential Privacy), in
``dp_sgd.train_privately``: every case is drawn independently, with the same probability in every
step; its gradient is clipped block by block, and noise is added to the sum. ``dp_accounting``
computes the epsilon, and is imported here only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from mixmfl.core.declarations import entries, within
from mixmfl.core.errors import PrivacyError
from mixmfl.core.files import locked, read_json, write_json
from mixmfl.core.records import read_record

FORMAT = 1

_LEDGER_SECONDS = 30.0

_MOST_NOISE, _MOST_STEPS, _MOST_ENTRIES = 1e300, 10**15, 10**6

_MOST_SETTINGS = 1000
"""The pairs of rate and noise that a budget may be spent with; each takes milliseconds to sum."""

# integers, for which the divergence has a closed form; at other orders its series may not converge
_ORDERS = (*range(2, 65), 80, 96, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Privacy:
    """The differential privacy that a site requires of its training.

    The guarantee is (epsilon, delta)-differential privacy of all weights that the site ever sends,
    between data sets that differ by one training case, which is in one and not in the other.

    Attributes:
        epsilon: Largest epsilon over all runs in the ledger.
        delta: Probability that the bound does not hold; well below 1 / training cases.
        noise: Standard deviation of the noise on a sum of gradients, in units of ``clip``.
        clip: Norm to which a case's gradient is clipped.
        ledger: File in which the site records the steps that it has spent.
    """

    epsilon: Annotated[float, within(0, _MOST_NOISE, above=True)]
    delta: Annotated[float, within(0, 1, above=True)]
    noise: Annotated[float, within(0, _MOST_NOISE, above=True)]
    clip: Annotated[float, within(0, _MOST_NOISE, above=True)]
    ledger: Path


@dataclass(frozen=True)
class Spent:
    """Training steps with the same rate and noise.

    Attributes:
        rate: Probability that a case is drawn in a step.
        noise: Standard deviation of the noise on a sum of gradients, in units of the clip.
        steps: Number of steps.
    """

    rate: float
    noise: float
    steps: int


@dataclass(frozen=True)
class _Ledger:
    """The ledger's file.

    Attributes:
        format: Which fields it has.
        spent: Rate, noise and steps; see ``Spent``.
        epsilon: Epsilon of all steps, for people; it is not read.
        delta: The delta that the epsilon holds for; it is not read either.
    """

    format: Literal[1]
    spent: Annotated[
        Sequence[
            tuple[
                Annotated[float, within(0, 1, above=True)],
                Annotated[float, within(0, _MOST_NOISE, above=True)],
                Annotated[int, within(1, _MOST_STEPS)],
            ]
        ],
        entries(0, _MOST_ENTRIES),
    ]
    epsilon: Any = None
    delta: Any = None


def epsilon_of(spent: Sequence[Spent], delta: float) -> float:
    """Return the epsilon of all steps together, by Renyi differential privacy.

    The steps use Poisson sampling of cases and the Gaussian mechanism (Mironov, Talwar, Zhang 2019,
    Renyi Differential Privacy of the Sampled Gaussian Mechanism). The result is an upper bound,
    not the smallest one.

    Raises:
        PrivacyError: The accountant is not installed, or cannot compute it.
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
        try:
            accountant.compose(step, part.steps)
        except (ArithmeticError, ValueError):
            raise PrivacyError(
                f"no epsilon can be computed of {part.steps} steps with noise {part.noise:g} in "
                f"which each case is drawn with probability {part.rate:g}; set another --dp-noise"
            ) from None
    return float(accountant.get_epsilon(delta)) if spent else 0.0


def sampling_rate(batch_size: int, cases: int) -> float:
    """Return the probability that a case is drawn, so that ``batch_size`` is the mean size."""
    return min(1.0, batch_size / cases)


def read_ledger(path: Path) -> list[Spent]:
    """Return the steps that a site has spent; none where there is no ledger yet.

    Raises:
        PrivacyError: The ledger is damaged. The spent budget is then unknown, and nothing may be
            sent.
    """
    if not path.exists():
        return []
    try:
        ledger = read_record(_Ledger, read_json(path, PrivacyError), str(path), PrivacyError)
    except PrivacyError as error:
        raise PrivacyError(
            f"{error}, so the spent privacy budget is not known. Restore the ledger from a copy, "
            "or begin a new budget by removing it"
        ) from None
    spent = [Spent(*part) for part in ledger.spent]
    return [Spent(*pair, steps) for pair, steps in _steps_of(spent).items()]


def _steps_of(spent: Sequence[Spent]) -> dict[tuple[float, float], int]:
    """Return the steps by rate and noise, as their order is nothing to the epsilon.

    Raises:
        PrivacyError: There are too many pairs.
    """
    steps: dict[tuple[float, float], int] = {}
    for part in spent:
        pair = part.rate, part.noise
        steps[pair] = steps.get(pair, 0) + part.steps
    if len(steps) > _MOST_SETTINGS:
        raise PrivacyError(
            f"a budget was spent with {len(steps)} pairs of rate and noise, and {_MOST_SETTINGS} "
            "are counted at most; keep --dp-noise and the cases as they are"
        )
    return steps


def spend(privacy: Privacy, rate: float, steps: int) -> float:
    """Write steps into the ledger before they are done, so that none is ever left out.

    Args:
        privacy: The site's privacy settings.
        rate: Probability that a case is drawn in a step.
        steps: Number of steps to be done.

    Returns:
        The epsilon of all steps in the ledger.

    Raises:
        PrivacyError: The epsilon would exceed the budget, or another process uses the ledger;
            nothing was written.
    """
    taken = PrivacyError(
        f"{privacy.ledger}: another process has been writing to it for {_LEDGER_SECONDS:g} s; "
        "every step must be counted, so nothing is sent. Run one job with it at a time"
    )
    with locked(privacy.ledger.with_name(f"{privacy.ledger.name}.lock"), _LEDGER_SECONDS, taken):
        return _spend(privacy, rate, steps)


def _spend(privacy: Privacy, rate: float, steps: int) -> float:
    together = _steps_of([*read_ledger(privacy.ledger), Spent(rate, privacy.noise, steps)])
    after = [Spent(*pair, count) for pair, count in together.items()]
    epsilon = epsilon_of(after, privacy.delta)
    if not epsilon <= privacy.epsilon:
        raise PrivacyError(
            f"the privacy budget is spent: another round would make it epsilon {epsilon:.2f} at "
            f"delta {privacy.delta:g}, and {privacy.epsilon:g} is allowed; the site sends nothing "
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
