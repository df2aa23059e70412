"""A vision transformer for volumes: any shape of patch, any number of tokens.

Voxels go in as they are stored; the patches that a masked autoencoder hides are never cut, cast or
embedded. The patch embedding is a matrix product over cut patches, which is what a strided
convolution would compute, several times faster.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from em_models.patches import Int3, grid_of, patchify
from em_models.positions import Float3, interpolated, rotary, sincos, token_places, turned

Positions = Literal["sincos", "learned", "rotary"]
# cuDNN's attention gave gradients that are not numbers in long runs.
BACK_ENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
GREY_MEAN, GREY_STD = 0.5, 0.25  # of voxels in [0, 1], about


@dataclass(frozen=True, kw_only=True)
class Vit3dConfig:
    """Shape of a `Vit3d`; `vit3d_size` names the usual ones."""

    patch_vx: Int3 = (8, 8, 8)
    """Voxels of a patch along (z, y, x): thin in z where voxels are tall."""
    width: int = 384
    """Channels of a token."""
    depth: int = 12
    """Number of blocks."""
    heads: int = 6
    """Attention heads of each block."""
    mlp_ratio: float = 4.0
    """Hidden channels of a block's perceptron, over the width."""
    positions: Positions = "rotary"
    """Positions: rotary (queries and keys are turned, so that attention knows distances; masked
    autoencoders learn several times faster with it), sincos or learned (added to the
    tokens)."""
    learned_tokens: int = 32
    """Number of positions along each axis, with positions=learned."""
    token_nm: float | None = None
    """Unit of positions, in nm. Without it, positions are counted in tokens."""
    registers: int = 0
    """Register tokens, without a place, where a block can keep what concerns the whole (Darcet
    et al. 2023)."""
    drop_path: float = 0.0
    """Share of samples that skip the last block in training; of blocks before, proportionally less."""

    def __post_init__(self) -> None:
        check_blocks(self.width, self.depth, self.heads)
        if len(self.patch_vx) != 3 or min(self.patch_vx) < 1:
            raise ValueError(f"patch_vx is {self.patch_vx}; wanted three numbers of at least 1")
        if self.positions == "rotary" and self.width // self.heads % 2:
            raise ValueError(
                f"heads have {self.width // self.heads} channels; rotary positions turn pairs, so "
                "choose width and heads so that it is even"
            )
        if self.registers < 0 or self.learned_tokens < 1 or not 0 <= self.drop_path < 1:
            raise ValueError(
                f"registers {self.registers}, learned_tokens {self.learned_tokens}, drop_path "
                f"{self.drop_path:g}; wanted ≥ 0, ≥ 1 and 0 ≤ share < 1"
            )
        if self.token_nm is not None and not self.token_nm > 0:
            raise ValueError(f"token_nm is {self.token_nm:g}; wanted a length above 0")


SIZES = {  # width, depth, heads
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}


def vit3d_size(name: str, **changes: Any) -> Vit3dConfig:
    """A configuration by name: tiny, small, base or large.

    >>> vit3d_size("base", patch_vx=(4, 16, 16)).width
    768
    """
    if name not in SIZES:
        raise ValueError(f"no size {name!r}; there are {', '.join(SIZES)}")
    width, depth, heads = SIZES[name]
    return dataclasses.replace(Vit3dConfig(width=width, depth=depth, heads=heads), **changes)


def check_blocks(width: int, depth: int, heads: int) -> None:
    """Refuse sizes that no transformer has."""
    if min(width, depth, heads) < 1 or width % heads:
        raise ValueError(
            f"width {width}, depth {depth}, heads {heads}; wanted at least 1 each, and a width that "
            "the heads divide evenly"
        )


class Voxels(NamedTuple):
    """Volumes as they are stored, and what makes sense of them."""

    stored: Tensor  # (B, 1, Z, Y, X)
    scale: Tensor | None = None  # (B,): stored · scale + shift is in [0, 1]
    shift: Tensor | None = None  # (B,)
    voxel_size_nm: Float3 | None = None


class Attention(nn.Module):
    """Softmax attention of all tokens to all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, turn: Tensor | None = None, *, since: int = 0) -> Tensor:
        """(B, N, width) -> what tokens from `since` on see of all; `turn` are positions of `rotary`."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, N, 3, H, C)
        q, k, v = qkv.permute(2, 0, 3, 1, 4) if turn is None else turned(qkv, turn)
        q = q[:, :, since:] if since else q
        if x.is_cuda:
            with sdpa_kernel(BACK_ENDS):
                mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a perceptron, each on normalised tokens and added to what came in."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, drop_path: float) -> None:
        # Takes seconds: only who builds a block pays.
        from timm.layers.drop import DropPath
        from timm.layers.mlp import Mlp

        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attention = Attention(width, heads)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, turn: Tensor | None = None, *, since: int = 0) -> Tensor:
        """(B, N, width) -> the tokens from `since` on, all of which have seen all."""
        mixed = self.attention(self.norm1(x), turn, since=since)
        x = (x[:, since:] if since else x) + self.drop(mixed)
        return x + self.drop(self.mlp(self.norm2(x)))


def make_blocks(
    width: int, depth: int, heads: int, mlp_ratio: float, drop_path: float = 0.0
) -> nn.ModuleList:
    """Blocks with stochastic depth that rises to `drop_path`."""
    return nn.ModuleList(
        Block(width, heads, mlp_ratio, drop_path * i / max(1, depth - 1)) for i in range(depth)
    )


def initialise(module: nn.Module) -> None:
    """Weights as He et al. 2022 begin with, for `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


class Vit3d(nn.Module):
    """Volume (B, 1, Z, Y, X) -> a vector for every patch.

    >>> model = Vit3d(Vit3dConfig(width=48, depth=2, heads=4))
    >>> model.features(torch.zeros(1, 1, 16, 24, 32, dtype=torch.uint8)).shape
    torch.Size([1, 48, 2, 3, 4])
    """

    Config = Vit3dConfig

    def __init__(self, config: Vit3dConfig) -> None:
        super().__init__()
        self.config = config
        pz, py, px = config.patch_vx
        self.embed = nn.Linear(pz * py * px, config.width)
        self.blocks = make_blocks(
            config.width, config.depth, config.heads, config.mlp_ratio, config.drop_path
        )
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.apply(initialise)
        self.registers, self.tables = None, None
        if config.registers:
            self.registers = nn.Parameter(0.02 * torch.randn(1, config.registers, config.width))
        if config.positions == "learned":
            tables = 0.02 * torch.randn(3, config.learned_tokens, config.width)
            self.tables = nn.Parameter(tables)

    def forward(self, volume: Tensor | Voxels, tokens: Tensor | None = None) -> Tensor:
        """Normalised tokens of the last block: (B, V, width), of all patches or of some (B, V)."""
        x, turn = self.begin(volume, tokens)
        for block in self.blocks:
            x = block(x, turn)
        return self.norm(self.without_registers(x))

    def get_intermediate_features(
        self,
        volume: Tensor | Voxels,
        layers: Sequence[int] | None = None,
        *,
        tokens: Tensor | None = None,
    ) -> dict[int, Tensor]:
        """What runs between blocks, not normalised: {layer: (B, V, width)}.

        Layer 0 is what goes into the first block and layer i what comes out of block i; without
        `layers` all of them, and negative ones count from the end. Registers are left out. Blocks
        after the last layer that is asked for are not computed.
        """
        layers = range(self.config.depth + 1) if layers is None else layers
        wanted = {layer: self.layer(layer) for layer in layers}
        x, turn = self.begin(volume, tokens)
        found = {0: x}
        for number in range(1, max(wanted.values(), default=0) + 1):
            x = self.blocks[number - 1](x, turn)
            if number in wanted.values():
                found[number] = x
        return {name: self.without_registers(found[at]) for name, at in wanted.items()}

    def features(self, volume: Tensor | Voxels, layer: int | None = None) -> Tensor:
        """A map of the vectors of all patches: (B, width, Z/pz, Y/py, X/px).

        Without `layer` the normalised output, else as `get_intermediate_features`.
        """
        voxels = volume if isinstance(volume, Voxels) else Voxels(volume)
        grid = grid_of(tuple(voxels.stored.shape[2:]), self.config.patch_vx)
        if layer is None:
            x = self(voxels)
        else:
            x = self.get_intermediate_features(voxels, [layer])[layer]
        return x.transpose(1, 2).unflatten(2, grid)

    def without_registers(self, x: Tensor) -> Tensor:
        """The tokens that have a place; a slice of all of them would cost a copy on the way back."""
        return x[:, self.config.registers :] if self.config.registers else x

    def layer(self, number: int) -> int:
        """The number of a layer from the beginning; those that there are not are refused."""
        found = number + self.config.depth + 1 if number < 0 else number
        if not 0 <= found <= self.config.depth:
            raise ValueError(
                f"layer {number}; there are 0 (before the first block) to {self.config.depth}"
            )
        return found

    def begin(
        self, volume: Tensor | Voxels, tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Registers and embedded patches (B, R + V, width), and the turn of rotary positions."""
        config, voxels = self.config, volume if isinstance(volume, Voxels) else Voxels(volume)
        grid = grid_of(tuple(voxels.stored.shape[2:]), config.patch_vx)
        patches = centred(patchify(voxels.stored, config.patch_vx, tokens=tokens), voxels)
        places = token_places(
            grid,
            config.patch_vx,
            voxel_size_nm=voxels.voxel_size_nm,
            token_nm=config.token_nm,
            device=voxels.stored.device,
        )
        kind = self.embed.weight.dtype  # what is added up over blocks keeps it under autocast
        x = self.embed(patches.to(kind)).to(kind)
        added, turn = positions_of(
            places,
            tokens,
            config.positions,
            width=config.width,
            heads=config.heads,
            registers=config.registers,
            tables=self.tables,
        )
        x = x if added is None else x + added.to(x.dtype)
        if self.registers is not None:
            x = torch.cat([self.registers.to(x.dtype).expand(len(x), -1, -1), x], 1)
        return x, turn


def centred(patches: Tensor, voxels: Voxels) -> Tensor:
    """Stored values of patches (B, V, D) as numbers around 0, of order 1."""
    scale: float | Tensor
    shift: float | Tensor
    if voxels.scale is None or voxels.shift is None:
        kind = voxels.stored.dtype
        scale, shift = (1.0 if kind.is_floating_point else 1 / torch.iinfo(kind).max), 0.0
    else:
        scale, shift = voxels.scale[:, None, None], voxels.shift[:, None, None]
    return patches * (scale / GREY_STD) + (shift - GREY_MEAN) / GREY_STD


def positions_of(
    places: Tensor,
    tokens: Tensor | None,
    kind: Positions,
    *,
    width: int,
    heads: int,
    registers: int = 0,
    tables: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """What is added to the chosen tokens, and what their queries and keys are turned by.

    Args:
        places: (N, 3) of all tokens.
        tokens: (B, V) of those that are there; None: all.
    """
    if kind == "rotary":
        turn = rotary(places, width // heads, registers=registers)
        if tokens is not None:  # (B, R + V, C/2): of each sample
            own = torch.arange(registers, device=tokens.device).expand(len(tokens), -1)
            index = torch.cat([own, tokens + registers], 1)
            turn = turn[index]
        return None, turn
    added = sincos(places, width) if tables is None else interpolated(places, tables)
    return (added if tokens is None else added[tokens]), None
