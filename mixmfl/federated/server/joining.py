"""Modalities of the sites that join or leave: what the encoder of a new one starts from."""

from collections import Counter
from collections.abc import Mapping

from mixmfl.federated.server.changes import Change
from mixmfl.federated.server.run import Run
from mixmfl.federated.state import Registration
from mixmfl.networks.initial_weights import origin_of, source_of, take_weights
from mixmfl.networks.parameters import block_of
from mixmfl.networks.prototypes import State


def changes_of_modalities(run: Run, before: Mapping[str, Registration]) -> list[Change]:
    """Return the modalities that the next round trains for the first time, or again, or not.

    Args:
        run: The run, with the sites of its next round.
        before: Registrations of the sites of its last round.
    """
    if not run.history:  # in a new run all encoders start alike
        return []
    trained, had, has = _trained(run), _cases(before), _cases(run.registrations)
    done, changes = len(run.history), []
    for name in run.plans.modalities:
        if name in has and name not in trained:
            origin = origin_of(name, trained)
            changes.append(Change(done, f"modality {name}", 0, has[name], origin))
        elif (name in had) != (name in has):
            again = name in has.keys() & run.trained_modalities
            of_name = Change(done, f"modality {name}", had[name], has[name], again=again)
            changes.append(of_name)
    return changes


def _cases(registrations: Mapping[str, Registration]) -> Counter[str]:
    """Return how many training cases of the sites have each modality that any has."""
    cases = Counter[str]()
    for each in registrations.values():
        cases.update({name: count for name, count in each.modality_cases.items() if count})
    return cases


def start_new_modalities(run: Run, weights: State) -> State:
    """Return the weights with encoders for the modalities that join with the next round.

    Such an encoder, and its slot in the fusion, start from the nearest modality that was trained,
    or from the shared encoder, rather than at random.

    Args:
        run: The run; ``changes_of_modalities`` are among its changes.
        weights: Weights after its last round; left as they are.
    """
    joined = {
        change.what.removeprefix("modality ")
        for change in run.changes
        if change.origin and change.after == len(run.history)
    }
    if not joined:
        return weights
    plans = run.plans
    trained = tuple(sorted(_trained(run)))
    source = source_of(plans, run.settings.configuration, trained, weights)
    started, _ = take_weights(weights, plans.modalities, source.heads, source)
    changed = {"fusion", "encoder", *(f"tailored.{name}" for name in joined)}
    return {n: started[n] if block_of(n) in changed else tensor for n, tensor in weights.items()}


def _trained(run: Run) -> set[str]:
    """Return the modalities that rounds have trained, or the network that the run began with."""
    parts = run.start.parts if run.start is not None else ()
    return run.trained_modalities | {
        part.origin for part in parts if part.name == f"tailored.{part.origin}" and part.taken
    }
