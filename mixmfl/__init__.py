"""Mix-modal federated MRI segmentation on top of nnU-Net.

Hospitals that cannot share images and do not have the same sequences train one model; a clinic
segments folders in which every case may lack other sequences. Start reading at ``training.py`` (a
round of the federation) or ``mdmnet.py`` (what happens when a case has no T2).
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("mixmfl")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"
