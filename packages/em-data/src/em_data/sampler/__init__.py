"""Where crops lie: pure functions of seed, epoch and number."""

from em_data.sampler.block_plan import BlockPlan, plan_blocks
from em_data.sampler.block_shuffle import BlockSampler, choose_sampler
from em_data.sampler.crop import CropConfig, CubeConfig, Sample, StackConfig
from em_data.sampler.describe import describe
from em_data.sampler.place_sampler import PlaceSampler
from em_data.sampler.places import Region
from em_data.sampler.randomness import Key, Stream, random_at
from em_data.sampler.split import Split, SplitConfig, hold_out

__all__ = [
    "BlockPlan",
    "BlockSampler",
    "CropConfig",
    "CubeConfig",
    "Key",
    "PlaceSampler",
    "Region",
    "Sample",
    "Split",
    "SplitConfig",
    "StackConfig",
    "Stream",
    "choose_sampler",
    "describe",
    "hold_out",
    "plan_blocks",
    "random_at",
]
