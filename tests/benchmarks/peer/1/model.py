"""torchvision, with mixed precision and nvJPEG on a GPU, all requests of an execution as one batch."""

import json
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from rcnn_export.detector.load import load_detector
from torchvision.io import ImageReadMode, decode_jpeg

MOST = 100  # detections an image


class TritonPythonModel:
    """The detector that the config's parameters ``model`` and ``weights`` name, as rcnn-export takes them."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        model, weights = (parameters[name]["string_value"] for name in ("model", "weights"))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_detector(model, weights).model.eval().to(self.device)

    def execute(self, requests: list[Any]) -> list[Any]:
        encoded = [pb_utils.get_input_tensor_by_name(request, "image").as_numpy() for request in requests]
        data = [
            torch.frombuffer(bytearray(image), dtype=torch.uint8)
            for batch in encoded
            for image in batch.ravel()
        ]
        pixels = decode_jpeg(data, mode=ImageReadMode.RGB, device=self.device)
        amp = torch.autocast(self.device.type, enabled=self.device.type == "cuda")
        with torch.inference_mode(), amp:
            found = self.model([image / 255 for image in pixels])
        responses, first = [], 0
        for batch in encoded:
            responses.append(self._response(found[first : first + len(batch)]))
            first += len(batch)
        return responses

    def _response(self, found: list[dict[str, torch.Tensor]]) -> Any:
        boxes = np.zeros((len(found), MOST, 4), np.float32)
        scores, labels = np.zeros((len(found), MOST), np.float32), np.zeros((len(found), MOST), np.int64)
        counts = np.zeros((len(found), 1), np.int32)
        for index, image in enumerate(found):
            counts[index] = count = len(image["scores"])
            boxes[index, :count] = image["boxes"].float().cpu()
            scores[index, :count] = image["scores"].float().cpu()
            labels[index, :count] = image["labels"].cpu()
        outputs = {"boxes": boxes, "scores": scores, "labels": labels, "num_detections": counts}
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])
