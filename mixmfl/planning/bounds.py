"""Bounds that our settings and nnU-Net's part of the plans share."""

from mixmfl.core.json_fields import Range

MOST_STAGES = 14  # as nnU-Net's planner
STAGES = Range(2, MOST_STAGES)  # a U-Net of one has no decoder
CHANNELS = Range(1, 2048)
CONVOLUTIONS = Range(1, 8)  # of a stage
SPACING = Range(0.05, 100)  # mm
