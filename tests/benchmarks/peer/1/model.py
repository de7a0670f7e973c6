"""torchvision, with mixed precision and nvJPEG on a GPU. All requests of an execution form one batch."""

import json
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from rcnn_export.detector.load import load_detector
from torchvision.io import ImageReadMode, decode_jpeg
from unpasted import unpasted

TORCHVISION_NAMES = {"keypoint_scores": "keypoints_scores"}  # where they differ from ours


class TritonPythonModel:
    """The detector named by the config's parameters ``model`` and ``weights``, as for rcnn-export.

    Masks are returned in the frames of their boxes.
    """

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        model, weights = (config["parameters"][name]["string_value"] for name in ("model", "weights"))
        self.outputs = {output["name"]: output for output in config["output"]}
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_detector(model, weights).model.eval().to(self.device)
        self.most = self.model.roi_heads.detections_per_img

    def execute(self, requests: list[Any]) -> list[Any]:
        encoded = [pb_utils.get_input_tensor_by_name(request, "image").as_numpy() for request in requests]
        data = [
            torch.frombuffer(bytearray(image), dtype=torch.uint8)
            for batch in encoded
            for image in batch.ravel()
        ]
        parameters = json.loads(requests[0].parameters() or "{}")  # the same in each request
        self.model.roi_heads.detections_per_img = int(parameters.get("detections_per_img", self.most))
        pixels = decode_jpeg(data, mode=ImageReadMode.RGB, device=self.device)
        amp = torch.autocast(self.device.type, enabled=self.device.type == "cuda")
        with torch.inference_mode(), amp, unpasted(self.model):
            found = self.model([image / 255 for image in pixels])
        responses, first = [], 0
        for batch in encoded:
            responses.append(self._response(found[first : first + len(batch)]))
            first += len(batch)
        return responses

    def _response(self, found: list[dict[str, torch.Tensor]]) -> Any:
        tensors = []
        for name, output in self.outputs.items():
            dtype = pb_utils.triton_string_to_numpy(output["data_type"])
            array = np.zeros((len(found), *output["dims"]), dtype)
            for index, image in enumerate(found):
                count = len(image["scores"])
                if name == "num_detections":
                    array[index] = count
                else:
                    array[index, :count] = image[TORCHVISION_NAMES.get(name, name)].cpu().numpy()
            tensors.append(pb_utils.Tensor(name, array))
        return pb_utils.InferenceResponse(tensors)
