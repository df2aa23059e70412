"""Write a synthetic volume with its truth as one OME-Zarr store, block by block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from em_data import new_store, tiles
from em_data.geometry import float3, int3
from em_data.synthetic import CLASSES, SyntheticConfig, render

from em_train.engine.progress import meter, say

__all__ = ["SyntheticConfig", "write_synthetic"]


def write_synthetic(config: SyntheticConfig, out: Path, *, overwrite: bool = False) -> None:
    """Render `config` into an OME-Zarr store at `out`, raw and labels."""
    shape, size_nm = int3(config.shape_vx), float3(config.voxel_size_nm)
    with new_store(out, overwrite=overwrite) as store:
        raw = store.add_image(shape, np.uint8, size_nm)
        classes = store.add_image(
            shape, np.uint8, size_nm, label="classes", classes=CLASSES, pool="mode"
        )
        instances = store.add_image(shape, np.uint32, size_nm, label="instances")
        boxes = list(tiles(shape, int3([min(n, 256) for n in shape])))
        with meter("synth", len(boxes)) as bar:
            for done, box in enumerate(boxes, 1):
                block = render(config, box.origin_vx, box.size_vx)
                raw.write(box, block.raw)
                classes.write(box, block.classes)
                instances.write(box, block.instances)
                bar.update(done, f"{' × '.join(map(str, shape))} voxels")
    say(f"wrote {out}; look at it with: emtrain info {out}")
