"""Where tests of 8-bit convolutions can run."""

import pytest

from mixmfl.core.devices import multiplies_bytes

needs_byte_products = pytest.mark.skipif(
    not multiplies_bytes(), reason="this CPU does not multiply 8-bit integers natively"
)
