"""Any backbone of timm as a dense encoder, cut off where its receptive field still fits a crop.

What timm builds pads with zeros. Here the output is trimmed by the receptive field, as measured, so
that what padding reached is gone; and strides beyond the pitch of the codes become dilation, so that
fine and coarse features lie on one grid and a decoder needs no upsampling, which would give
neighbouring codes different functions by their phase. A backbone that looks at the whole crop, by
attention or norms over space, cannot be cured so: it runs as its author meant it, and
`geometry.reason` says why its codes may know where they are.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from em_models.geometry import Geometry
from em_models.head import DenseCodes, Head, check_head, read_codes, stretch
from em_models.norm import BatchNorm, share_norms
from em_models.spread import Spread, reach

WHOLE = 32  # px; multiples of it suit every backbone that is run as it was meant


@dataclass(frozen=True, kw_only=True)
class TimmEncoderConfig:
    """What a `TimmEncoder` is made of."""

    backbone: str = "convnext_tiny"
    """Name of a model of timm that works with `features_only`."""
    pretrained: bool = False
    """Start from timm's weights, which are fetched or taken from the cache."""
    max_stride: int = 8
    """Largest stride that is kept; later stages are cut off. ConvNeXt-T sees 76 px with 4, 224
    px with 8."""
    code_pitch_vx: int = 4
    """Pixels between codes: 1, 2, 4 or 8."""
    decoder: Literal["fpn", "unet"] = "fpn"
    """Decoder: fpn (sum of 1 × 1 convolutions of all stages, then 3 × 3) or unet (3 × 3 from
    coarse to fine)."""
    width: int = 64
    """Channels of the decoder."""
    classes: int = 50
    """K, the number of unsupervised classes."""
    embedding: int = 64
    """Channels of the embedding that the classes are read from."""
    padding: Literal["none", "zeros"] = "none"
    """Border: none (codes only where the receptive field lies in the image) or zeros (the
    classic form, strides and padding as timm has them, codes up to the border)."""
    head: Head = "cosine"
    """cosine: logits are cosines with prototypes, × sharpness. linear: a 1 × 1 convolution."""
    sharpness: float = 8.0
    """Factor on the cosine between embedding and prototypes, the inverse temperature of the codes."""

    def __post_init__(self) -> None:
        check_head(self.classes, self.embedding, self.head, self.sharpness)
        if self.code_pitch_vx not in (1, 2, 4, 8):
            raise ValueError(f"code_pitch_vx is {self.code_pitch_vx}; wanted 1, 2, 4 or 8")
        if self.decoder not in ("fpn", "unet"):
            raise ValueError(f"decoder is {self.decoder!r}; wanted fpn or unet")
        if self.padding not in ("none", "zeros"):
            raise ValueError(f"padding is {self.padding!r}; wanted none or zeros")
        if self.width < 1:
            raise ValueError(f"width is {self.width}; wanted at least 1 channel")


class TimmEncoder(nn.Module):
    """Image (B, 1, Y, X) -> logits over K classes and an embedding for every place.

    >>> encoder = TimmEncoder(TimmEncoderConfig(backbone="convnext_atto", max_stride=4))
    >>> encoder.geometry.position_free, encoder.geometry.receptive_field
    (True, 60)
    >>> encoder(torch.zeros(1, 1, encoder.geometry.crop_size(5), 80)).logits.shape
    torch.Size([1, 50, 5, 6])
    """

    Config = TimmEncoderConfig
    offset: Tensor | None

    def __init__(self, config: TimmEncoderConfig) -> None:
        super().__init__()
        # The weights are in the model now: a copy of it needs no network.
        self.config = dataclasses.replace(config, pretrained=False)
        self.backbone, self.pitches, self.channels = _make_backbone(config)
        # As of some transformers; a backbone that does not say has them first.
        self.channels_last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
        make = _FPN if config.decoder == "fpn" else _UNet
        self.decoder = make(self.channels, config.width)
        self.embed = nn.Conv2d(config.width, config.embedding, 1, bias=False)
        linear = config.head == "linear"
        # No affine parameters: a free scale would let one direction take over all prototypes.
        self.embed_norm = nn.Identity() if linear else BatchNorm(config.embedding, affine=False)
        scale = config.embedding**-0.5 if linear else 1  # logits of order 1 to begin with
        self.prototypes = nn.Parameter(scale * torch.randn(config.classes, config.embedding))
        self.bias = nn.Parameter(torch.zeros(config.classes)) if linear else None
        # How frequent classes are, where they were read off the embedding after training.
        self.register_buffer("offset", None if linear else torch.zeros(config.classes))
        self.spread: Spread | None = None
        self.geometry = self._measure()

    def stretch(self, by: Tensor) -> None:
        """Change what counts as alike: the raw embedding is `by` (E, E) times what it was."""
        assert isinstance(self.embed_norm, BatchNorm), "of a cosine head"
        stretch(self.embed, self.embed_norm, by)

    def forward(self, image: Tensor, dense: bool = False) -> DenseCodes:
        """Codes of (B, 1, Y, X), one every `pitch` pixels, or one per pixel with `dense`.

        The code at (i, j) belongs to input pixel (margin + i·step, margin + j·step). Where the
        encoder is not position-free, `dense` interpolates between codes.
        """
        geometry, config = self.geometry, self.config
        geometry.check(image.shape[-2:])
        step = 1 if dense else geometry.pitch
        rows, columns = (geometry.codes(n, step) for n in image.shape[-2:])
        if self.spread is None:
            raw = self.embed_norm(self.embed(self._as_meant(image)))
            if dense:
                raw = F.interpolate(raw, scale_factor=geometry.pitch, mode="bilinear")
            raw = raw[..., :rows, :columns]
        else:
            lead = -self.before % step  # the patch of one code shall begin with the first pixel
            found = self._features(F.pad(image, (lead, 0, lead, 0)), step)
            first = (self.before + lead) // step
            found = found[..., first : first + rows, first : first + columns]
            raw = self.embed_norm(self.embed(found))
        return read_codes(
            raw,
            self.prototypes,
            sharpness=config.sharpness,
            bias=self.bias,
            offset=self.offset,
        )

    def _features(self, image: Tensor, step: int) -> Tensor:
        """One feature vector every `step` pixels, borders included: (B, width, Y', X')."""
        assert self.spread is not None
        self.spread.take(step)
        levels = []
        for level, pitch in zip(self.backbone(image), self.pitches, strict=True):
            skip = step // math.gcd(pitch, step)
            levels.append(level[..., ::skip, ::skip])
        return self.decoder(levels, self._dilations(step))

    def _as_meant(self, image: Tensor) -> Tensor:
        """The same with the backbone's own strides: coarse features are repeated."""
        step = self.config.code_pitch_vx
        whole = max(WHOLE, *self.pitches)
        bottom, right = (-n % whole for n in image.shape[-2:])
        levels: list[Tensor] = []
        padded = F.pad(image, (0, right, 0, bottom))
        for level, pitch in zip(self.backbone(padded), self.pitches, strict=True):
            skip, repeat = max(1, step // pitch), max(1, pitch // step)
            if self.channels_last:
                level = level.movedim(-1, 1)
            level = level[..., ::skip, ::skip]
            levels.append(level.repeat_interleave(repeat, -2).repeat_interleave(repeat, -1))
        return self.decoder(levels, self._dilations(step))

    def _dilations(self, step: int) -> list[int]:
        """Of the decoder's convolutions: each works at the pitch of its level, or of the codes."""
        return [max(pitch, self.config.code_pitch_vx) // step for pitch in self.pitches]

    def _measure(self) -> Geometry:
        """Try to spread the strides, and measure what a code then sees."""
        name, meant = self.config.backbone, self.backbone
        whole = _looks_at_whole(meant)
        if self.config.padding == "zeros":
            also = f"; and {name} {whole}" if whole else ""
            return self._not_free(f"zero padding tells a code how far it is from the border{also}")
        training, reaches = self.training, None
        self.eval()
        if not whole:
            self.backbone = copy.deepcopy(meant)
            try:
                self.spread = Spread(self.backbone, torch.zeros(1, 1, 64, 64))
                if _agrees(meant, self.backbone, self.spread, self.pitches):
                    reaches = [
                        reach(lambda x: self._features(x, 1), axis=axis) for axis in (-2, -1)
                    ]
            except (ValueError, RuntimeError, AssertionError):
                pass  # layers that are not understood; the reason says so
        if not reaches or not reaches[0] or reaches[0] != reaches[1]:
            self.backbone, self.spread = meant, None
            self.train(training)
            whole = whole or (
                "looks at more than a patch, or has layers whose strides cannot become dilation"
            )
            return self._not_free(f"{name} {whole}: its codes may depend on where they are")
        self.train(training)
        self.before, after = reaches[0]
        field = self.before + 1 + after
        return Geometry(
            pitch=self.config.code_pitch_vx,
            receptive_field=field,
            trimmed=field - 1,
            position_free=True,
            reason=f"trimmed by its receptive field: a code is a function of its {field} px patch",
        )

    def _not_free(self, reason: str) -> Geometry:
        """Codes up to the border, of a network that runs as it was meant."""
        return Geometry(
            pitch=self.config.code_pitch_vx,
            receptive_field=None,
            trimmed=0,
            position_free=False,
            reason=reason,
        )


def _make_backbone(config: TimmEncoderConfig) -> tuple[nn.Module, list[int], list[int]]:
    """The backbone up to `max_stride`, and the pitch and channels of each of its outputs."""
    import timm  # takes seconds, and torchvision: only who asks for it pays

    settings: dict[str, Any] = {"features_only": True, "in_chans": 1}
    try:  # transformers take one size of image unless told otherwise; others do not know the word
        plan: Any = timm.create_model(config.backbone, dynamic_img_size=True, **settings)
        settings["dynamic_img_size"] = True
    except TypeError:
        plan = timm.create_model(config.backbone, **settings)
    pitches = plan.feature_info.reduction()
    levels = [i for i, pitch in enumerate(pitches) if pitch <= config.max_stride]
    if not levels:
        raise ValueError(
            f"{config.backbone} has features every {', '.join(map(str, pitches))} px, none "
            f"at {config.max_stride} or less; raise max_stride, or take another backbone"
        )
    backbone = create_backbone(
        config.backbone, pretrained=config.pretrained, out_indices=levels, **settings
    )
    info = backbone.feature_info
    share_norms(backbone)
    return backbone, list(info.reduction()), list(info.channels())


def create_backbone(name: str, *, pretrained: bool, **settings: Any) -> Any:
    """A network of timm; weights that are asked for and cannot be had are an OSError."""
    import timm

    try:
        return timm.create_model(name, pretrained=pretrained, **settings)
    except Exception as error:
        if not pretrained:
            raise
        raise OSError(
            f"no pretrained weights for {name} ({type(error).__name__}: {error}); connect "
            "to the network, put them in timm's cache (HF_HOME), or set pretrained to false"
        ) from error


def _agrees(meant: nn.Module, spread: nn.Module, strides: Spread, pitches: list[int]) -> bool:
    """Whether the spread network gives, among others, the outputs of the one that was meant."""
    random = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, max(pitches), 64 * max(1, max(pitches) // 8), generator=random)
    kept = copy.deepcopy(spread.state_dict())
    meant = copy.deepcopy(meant)
    with torch.no_grad():
        # Scales that begin at 0 would hide whole branches from the comparison.
        for parameter in spread.parameters():
            if parameter.dim() == 1:
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=random))
        meant.load_state_dict(spread.state_dict())
        strides.take(1)
        pairs = list(zip(meant(image), spread(image), pitches, strict=True))
    spread.load_state_dict(kept)
    for wanted, found, pitch in pairs:
        found = found[..., ::pitch, ::pitch]
        if wanted.shape != found.shape:
            return False
        if not (wanted - found).abs().max() <= 1e-3 * wanted.abs().max():
            return False
    return True


def _looks_at_whole(backbone: nn.Module) -> str:
    """What in a network is known to look at more than a patch, in words; "" if nothing is."""
    names = {type(module).__name__ for module in backbone.modules()}
    norms = (nn.GroupNorm, nn.InstanceNorm2d)
    over_space = {type(m).__name__ for m in backbone.modules() if isinstance(m, norms)}
    over_space |= {name for name in names if "GlobalResponse" in name}
    pools = {
        n for n in names if "Squeeze" in n or n.startswith(("SE", "GlobalContext", "AdaptiveAvg"))
    }
    found = [
        ("attends over the crop", {n for n in names if "Att" in n}),
        ("has norms over space", over_space),
        ("pools the whole crop", pools),
        ("pads by the size of the image", {n for n in names if n.endswith("Same")}),
    ]
    return " and ".join(f"{what} ({', '.join(sorted(which))})" for what, which in found if which)


class _FPN(nn.Module):
    """Sum of 1 × 1 convolutions of all levels, then one 3 × 3: Lin et al. 2017, FPN."""

    def __init__(self, channels: list[int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.smooth = _Convolution(width, width)

    def forward(self, levels: list[Tensor], dilations: list[int]) -> Tensor:
        narrow = [layer(level) for layer, level in zip(self.lateral, levels, strict=True)]
        return self.smooth(torch.stack(narrow).sum(0), min(dilations))


class _UNet(nn.Module):
    """From coarse to fine: each level joins what came from below it, then 3 × 3."""

    def __init__(self, channels: list[int], width: int) -> None:
        super().__init__()
        joined = [c + width for c in channels[:-1]] + [channels[-1]]
        self.joins = nn.ModuleList(_Convolution(c, width) for c in joined)

    def forward(self, levels: list[Tensor], dilations: list[int]) -> Tensor:
        x: list[Tensor] = []
        parts = zip(self.joins, levels, dilations, strict=True)
        for join, level, dilation in reversed(list(parts)):
            x = [join(torch.cat([level, *x], 1), dilation)]
        return x[0]


class _Convolution(nn.Module):
    """3 × 3 with dilation, normalised and rectified; padded, as the backbone is."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Conv2d(inputs, outputs, 3).weight.detach())
        self.norm = BatchNorm(outputs)

    def forward(self, x: Tensor, dilation: int) -> Tensor:
        x = F.conv2d(x, self.weight, padding=dilation, dilation=dilation)
        return F.relu(self.norm(x))
