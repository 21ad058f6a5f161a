"""RoiAlign and NonMaxSuppression."""

from __future__ import annotations

import numpy as np

from tests.ops.version_cases import Case

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(2, 3, 9, 8)).astype(np.float32)
ROIS = np.array(
    [[0, 0, 7, 8], [1.5, 2.5, 6.25, 4.75], [3, 3, 3.2, 3.1], [-4, -5, 20, 30], [5, 6, 2, 1]], np.float32
)
BATCHES = np.array([0, 1, 1, 0, 1], np.int64)

BOXES = RNG.uniform(0, 1, size=(2, 20, 4)).astype(np.float32)
SCORES = RNG.uniform(0, 1, size=(2, 3, 20)).astype(np.float32)

CASES: list[Case] = [
    *(
        Case(
            "RoiAlign",
            opset,
            (IMAGES, ROIS, BATCHES),
            {
                "mode": mode,
                "output_height": 3,
                "output_width": 2,
                "sampling_ratio": ratio,
                "spatial_scale": 0.9,
            },
        )
        for opset in (10, 16)
        for mode in ("avg", "max")
        for ratio in (0, 2)
    ),
    Case("RoiAlign", 16, (IMAGES, ROIS, BATCHES), {"coordinate_transformation_mode": "output_half_pixel"}),
    *(
        Case(
            "NonMaxSuppression",
            opset,
            (BOXES, SCORES, np.array([limit]), np.array([0.3], np.float32), low),
            {"center_point_box": center},
        )
        for opset in (10, 11)
        for limit in (0, 4, 100)
        for low in (None, np.array([0.5], np.float32))
        for center in (0, 1)
    ),
]
