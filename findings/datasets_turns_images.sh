#!/usr/bin/env bash
# datasets 3.6.0 (the reader below LeRobot v2.1): an image comes back turned, in another shape than the one stored.
#
# Guess: a column of images gives the pixels that were stored, as cv2 with IMREAD_IGNORE_ORIENTATION, PyAV and Pillow's
#   Image.open do. A table with shape (4, 6, 3) in its description holds arrays of that shape.
# Seen: a JPEG whose EXIF note says that the camera was held sideways is turned by 90 degrees while it is decoded. A
#   4x6 image comes back as 6x4, so it contradicts the shape that LeRobot's info.json states for the camera, and a
#   policy trained on it sees the world turned, while the robot's camera gives it upright images.
# Source: datasets.features.Image, https://huggingface.co/docs/datasets/image_load . Remedy: clear the note when you
#   write the table. The pixels need no change.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check datasets==3.6.0 pillow==12.3.0 numpy==2.4.6

venv/bin/python - > seen.txt <<'PYTHON'
import importlib.metadata
import io

import datasets
import numpy as np
from PIL import Image

print("datasets", importlib.metadata.version("datasets"))
for orientation in (1, 6):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(file, format="JPEG", exif=exif)
    rows = datasets.Dataset.from_dict(
        {"camera": [{"bytes": file.getvalue(), "path": None}]},
        features=datasets.Features({"camera": datasets.Image()}),
    )
    opened = np.asarray(Image.open(io.BytesIO(file.getvalue()))).shape
    print(f"orientation {orientation}: Pillow opens {opened}, datasets gives {np.asarray(rows[0]['camera']).shape}")
PYTHON
cat seen.txt

diff seen.txt - <<'EXPECTED'
datasets 3.6.0
orientation 1: Pillow opens (4, 6, 3), datasets gives (4, 6, 3)
orientation 6: Pillow opens (4, 6, 3), datasets gives (6, 4, 3)
EXPECTED
echo "as recorded"
