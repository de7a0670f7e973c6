"""Step 1: encoded pictures -> the RPN's input."""

import json
from typing import Any

from rcnn_backend import triton_io
from rcnn_backend.decode import decode_image
from rcnn_backend.errors import InvalidInputError
from rcnn_backend.parameters import PreprocessParameters, read_parameters
from rcnn_backend.preprocess import preprocess, resized_size_hw


class TritonPythonModel:
    """Answers each request by itself: its pictures make one batch, padded to their own size."""

    def initialize(self, args: dict[str, str]) -> None:
        self.parameters = read_parameters(PreprocessParameters, json.loads(args["model_config"]))

    def execute(self, requests: list[Any]) -> list[Any]:
        return triton_io.answer_each(requests, self._preprocess)

    def _preprocess(self, tensors: triton_io.Tensors) -> triton_io.Tensors:
        encoded = tensors["image"].reshape(-1)  # [B]
        images = []
        for index, data in enumerate(encoded):
            try:
                image = decode_image(data, self.parameters.max_image_pixels)
                resized_size_hw(image.shape[:2], self.parameters)  # refuses what cannot be resized
                images.append(image)
            except InvalidInputError as error:
                which = f"image {index} of the {len(encoded)} in this request: " if len(encoded) > 1 else ""
                raise InvalidInputError(f"{which}{error}") from None
        network_input, image_sizes = preprocess(images, self.parameters)
        return {"input": network_input, "image_sizes": image_sizes}
