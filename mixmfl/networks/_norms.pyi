_Part = tuple[int, int, int, int, int]  # cases, voxels, channels, first and last voxel

def sums(maps: int, sums: int, part: _Part, half: bool) -> None: ...
def sums_and_ranges(maps: int, sums: int, ranges: int, part: _Part, half: bool) -> None: ...
def result_range(
    sums: int, ranges: int, tables: int, part: _Part, slope: float
) -> tuple[float, float]: ...
def apply_bytes(
    maps: int,
    result: int,
    numbers: int,
    tables: int,
    part: _Part,
    slope: float,
    inverse_step: float,
    zero: float,
    half: bool,
) -> None: ...
def finish(
    maps: int, sums: int, weight: int, bias: int, tables: int, part: _Part, eps: float, half: bool
) -> None: ...
def apply(maps: int, result: int, tables: int, part: _Part, slope: float, half: bool) -> None: ...
def gradient_sums(
    maps: int, above: int, tables: int, sums: int, part: _Part, slope: float, half: bool
) -> None: ...
def finish_gradient(
    maps: int, sums: int, tables: int, of_affine: int, part: _Part, half: bool
) -> None: ...
def gradient(
    maps: int, above: int, result: int, tables: int, part: _Part, slope: float, half: bool
) -> None: ...
