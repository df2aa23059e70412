"""Which patch of the image a code sees, and whether a code can know where it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How the codes of an encoder lie in its input.

    >>> patches = Geometry(pitch=4, receptive_field=41, trimmed=40, position_free=True, reason="")
    >>> patches.margin, patches.crop_size(19), patches.codes(113)
    (20, 113, 19)
    """

    pitch: int
    """Pixels between neighbouring codes when run with strides."""
    receptive_field: int | None
    """Side of the patch that a code depends on, in pixels; None if it has no known end."""
    trimmed: int
    """Pixels of an axis that get no code, both borders together."""
    position_free: bool
    """Whether a code is the same function of its patch wherever the patch lies in the crop."""
    reason: str
    """Why it is, or is not, in words."""

    @property
    def margin(self) -> int:
        """Pixels before the first code; the code at (i, j) belongs to (margin + i·step, …)."""
        return self.trimmed // 2

    def crop_size(self, codes: int) -> int:
        """Pixels that give `codes` codes along one axis."""
        return self.trimmed + 1 + (codes - 1) * self.pitch

    def codes(self, size: int, step: int | None = None) -> int:
        """Codes along an axis of `size` pixels, one every `step` pixels, by default the pitch."""
        return (size - self.trimmed - 1) // (step or self.pitch) + 1

    def check(self, size: tuple[int, ...]) -> None:
        """Refuse an image that is too small for one code."""
        if min(size) <= self.trimmed:
            raise ValueError(
                f"image of {tuple(size)} px is smaller than the receptive field of "
                f"{self.trimmed + 1} px; give a larger crop"
            )
