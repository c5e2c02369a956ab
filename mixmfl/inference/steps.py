"""The distance of neighbouring patches of a volume, as a share of the patch; nnU-Net's is 0.5.

docs/performance.md, "The distance of patches", has what each costs on patients.
"""

STEP = 0.55
FAST_STEP = 0.67
"""With ``mixmfl_predict --fast``."""
