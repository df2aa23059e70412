from typing import Any

from numpy.typing import NDArray

def gather(block: NDArray[Any], origins: NDArray[Any], out: NDArray[Any], threads: int) -> None: ...
