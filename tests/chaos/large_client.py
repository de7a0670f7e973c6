"""Sends a picture of 20 million pixels to the server and model given, after a line that says so."""

import io
import sys

import numpy as np
from PIL import Image
from rcnn_client import Detector

pixels = np.random.default_rng(0).integers(0, 256, (4000, 5000, 3), np.uint8)  # noise: 60 MB also as a PNG
buffer = io.BytesIO()
Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
url, model = sys.argv[1:]
with Detector(url, model) as detector:
    detector.is_ready()  # connected
    print("sending", flush=True)
    detector.detect(buffer.getvalue())
