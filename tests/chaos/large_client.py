"""Sends a picture of 20 million pixels to the given server and model, and prints a line before it does so."""

import io
import sys

from PIL import Image
from rcnn_client import Detector

buffer = io.BytesIO()
Image.new("RGB", (5000, 4000)).save(buffer, "PNG", compress_level=0)  # 60 MB
url, model = sys.argv[1:]
with Detector(url, model) as detector:
    detector.is_ready()  # connects
    print("sending", flush=True)
    detector.detect(buffer.getvalue())
