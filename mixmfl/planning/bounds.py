"""Bounds that our settings share with nnU-Net's part of the plans, and with what sites are sent."""

from mixmfl.core.json_fields import Range

MOST_STAGES = 14  # as nnU-Net's planner
STAGES = Range(2, MOST_STAGES)  # a U-Net of one has no decoder
CHANNELS = Range(1, 2048)
CONVOLUTIONS = Range(1, 8)  # of a stage
SPACING = Range(0.05, 100)  # mm

MOST_ROUNDS = 100_000
"""Most rounds of a run: a week of rounds that take six seconds."""

MOST_LOCAL_STEPS = 100_000
"""Most gradient steps of a site in a round: a day of steps that take a second."""

MOST_LEARNING_RATE = 10.0
