"""A masked autoencoder for volumes: it sees a quarter of the patches and fills in the others.

The encoder is given the visible patches alone, which is why it may be large; a small decoder, thrown
away after training, predicts the voxels of the hidden ones. He et al. 2022, Masked Autoencoders Are
Scalable Vision Learners.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from em_models.masks import Mask, Masks, draw_masks
from em_models.patches import Int3, grid_of
from em_models.positions import token_places
from em_models.vit3d import (
    Vit3d,
    Vit3dConfig,
    Voxels,
    check_blocks,
    initialise,
    make_blocks,
    positions_of,
    vit3d_size,
)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """What predicts the hidden patches."""

    width: int = 256
    """Channels of a token."""
    depth: int = 4
    """Number of blocks."""
    heads: int = 8
    """Heads of each attention."""

    def __post_init__(self) -> None:
        check_blocks(self.width, self.depth, self.heads)


@dataclass(frozen=True, kw_only=True)
class MaeConfig:
    """An encoder, its decoder and what is hidden."""

    encoder: Vit3dConfig = field(default_factory=Vit3dConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    mask: Mask = "random"
    """Hidden patches: random (single ones), tube (all above each other along z) or block (boxes
    of patches)."""
    hidden_share: float = 0.75
    """Share of the patches that are hidden."""
    block_tokens: Int3 = (2, 2, 2)
    """Patches of a hidden box along (z, y, x), with mask=block."""

    def __post_init__(self) -> None:
        if self.mask not in ("random", "tube", "block"):
            raise ValueError(f"mask is {self.mask!r}; wanted random, tube or block")
        if not 0 < self.hidden_share < 1 or min(self.block_tokens) < 1:
            raise ValueError(
                f"hidden_share is {self.hidden_share:g}, block_tokens {self.block_tokens}; wanted a "
                "share between 0 and 1, and at least one patch along each axis"
            )
        if self.encoder.positions == "rotary" and self.decoder.width // self.decoder.heads % 2:
            raise ValueError(
                f"heads of the decoder have {self.decoder.width // self.decoder.heads} channels; "
                "rotary positions turn pairs, so choose width and heads so that it is even"
            )


DECODERS = {  # width, depth, heads
    "tiny": (128, 2, 4),
    "small": (256, 4, 8),
    "base": (512, 8, 16),
    "large": (512, 8, 16),
}


def mae_size(name: str, **changes: Any) -> MaeConfig:
    """A configuration by the name of its encoder; `changes` are those of the encoder.

    >>> mae_size("base").decoder.width
    512
    """
    encoder = vit3d_size(name, **changes)
    width, depth, heads = DECODERS[name]
    decoder = DecoderConfig(width=width, depth=depth, heads=heads)
    return dataclasses.replace(MaeConfig(), encoder=encoder, decoder=decoder)


class Mae(nn.Module):
    """Volume and masks -> what the hidden patches hold: (B, H, pz·py·px).

    >>> model = Mae(MaeConfig(encoder=Vit3dConfig(width=48, depth=1, heads=4)))
    >>> volume = torch.zeros(2, 1, 16, 16, 16, dtype=torch.uint8)
    >>> masks = model.draw(volume, [(0, 0), (0, 1)], seed=3)
    >>> model(volume, masks).shape
    torch.Size([2, 6, 512])
    """

    Config = MaeConfig

    def __init__(self, config: MaeConfig) -> None:
        super().__init__()
        self.config = config
        encoder, decoder = config.encoder, config.decoder
        self.encoder = Vit3d(encoder)
        self.narrow = nn.Linear(encoder.width, decoder.width)
        self.blocks = make_blocks(decoder.width, decoder.depth, decoder.heads, 4.0)
        self.norm = nn.LayerNorm(decoder.width, eps=1e-6)
        self.read = nn.Linear(decoder.width, math.prod(encoder.patch_vx))
        for part in (self.narrow, self.blocks, self.read):
            part.apply(initialise)
        self.hidden = nn.Parameter(0.02 * torch.randn(decoder.width))
        self.tables = None
        if encoder.positions == "learned":
            tables = 0.02 * torch.randn(3, encoder.learned_tokens, decoder.width)
            self.tables = nn.Parameter(tables)

    def forward(self, volume: Tensor | Voxels, masks: Masks) -> Tensor:
        """The hidden patches, in the units that the loss compares them in."""
        voxels = volume if isinstance(volume, Voxels) else Voxels(volume)
        seen = self.narrow(self.encoder(voxels, masks.visible))  # (B, V, W)
        kind = self.narrow.weight.dtype
        unknown = self.hidden.to(kind).expand(*masks.hidden.shape, -1)
        x = torch.cat([seen.to(kind), unknown], 1)  # attention does not mind the order
        added, turn = self._positions(voxels, torch.cat([masks.visible, masks.hidden], 1))
        x = x if added is None else x + added.to(kind)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, turn)
        x = last(x, turn, since=masks.visible.shape[1])  # nobody reads what the visible ones become
        return self.read(self.norm(x))

    def draw(self, volume: Tensor | Voxels, keys: Sequence[tuple[int, int]], *, seed: int) -> Masks:
        """Masks for samples with these (epoch, number), where the volume is."""
        stored = volume.stored if isinstance(volume, Voxels) else volume
        config = self.config
        masks = draw_masks(
            grid_of(tuple(stored.shape[2:]), config.encoder.patch_vx),
            keys,
            share=config.hidden_share,
            kind=config.mask,
            block_tokens=config.block_tokens,
            seed=seed,
        )
        return masks.to(stored.device)

    def _positions(self, voxels: Voxels, tokens: Tensor) -> tuple[Tensor | None, Tensor | None]:
        encoder, decoder = self.config.encoder, self.config.decoder
        places = token_places(
            grid_of(tuple(voxels.stored.shape[2:]), encoder.patch_vx),
            encoder.patch_vx,
            voxel_size_nm=voxels.voxel_size_nm,
            token_nm=encoder.token_nm,
            device=voxels.stored.device,
        )
        return positions_of(
            places,
            tokens,
            encoder.positions,
            width=decoder.width,
            heads=decoder.heads,
            tables=self.tables,
        )
