"""What a third head adds to the project: text at the end of four modules, and two files for its own step."""

CHAIN = """
ANGLE_VECTORS = Tensor("angle_vectors", FP32, ("head_detections", "axes"))
ANGLES = Tensor("angles", FP32, ("detections",))
CHAINS["angle_rcnn"] = with_head(
    "angle_rcnn", "angle", (), ANGLE_VECTORS, "angle_vectors", ChainStep("angles", (ANGLE_VECTORS, NUM_DETECTED), (ANGLES,))
)
"""

HEADS = '''
def answer_angles(vectors: HeadOutput) -> dict[str, Array]:
    """Sine and cosine [n, 2] -> ``angles`` [B, D] in radians."""
    return {"angles": vectors.padded(np.arctan2(vectors.rows[:, 0], vectors.rows[:, 1]))}


ANSWERS["angles"] = answer_angles
'''

SPLIT = """
class AngleHeaderModule(Cut):
    NETWORKS = ("angle_head", "angle_predictor")

    def __init__(self, model):
        super().__init__()
        self.angle_head = model.roi_heads.angle_head
        self.angle_predictor = model.roi_heads.angle_predictor

    def forward(self, angle_features):
        batch, rois = angle_features.shape[:2]
        vectors = self.angle_predictor(self.angle_head(angle_features.flatten(0, 1))).float()
        vectors = vectors.reshape(batch, rois, 2)
        return vectors, take_samples(angle_features, vectors)


MODULES["angle_header"] = AngleHeaderModule
"""

FAMILIES = """
from angle_rcnn import AngleRCNN

KINDS = {"angle_rcnn": AngleRCNN, **KINDS}
"""

ADAPTER = '''"""The last step of the made-up family."""

from rcnn_backend.contract.chain import CHAINS
from rcnn_backend.operators.heads import HeadOutput, answer_angles, real_rows
from rcnn_backend.steps.step import Step


class TritonPythonModel:
    def initialize(self, args):
        self.step = Step(args, CHAINS["angle_rcnn"], "angles")
        (angles,) = self.step.config["output"]
        self.detections_per_img = int(angles["dims"][0])

    def execute(self, requests):
        return self.step.answer_together(requests, self._find)

    def _find(self, tensors, options):
        vectors, counts = self.step.device.download([tensors["angle_vectors"], tensors["num_detected"]])
        boxes, sizes = vectors[:, :1].repeat(self.detections_per_img, axis=1), None
        return answer_angles(HeadOutput(real_rows(vectors, counts), boxes, sizes, counts))
'''

CONFIG = """name: "angle_rcnn_angles"
backend: "python"
max_batch_size: 8
input { name: "angle_vectors" data_type: TYPE_FP32 dims: [ -1, 2 ] }
output { name: "angles" data_type: TYPE_FP32 dims: [ 100 ] }
dynamic_batching { }
"""

FILES = {  # path -> text, and whether it is added at the end of an existing module
    "python_backend/rcnn_backend/contract/chain.py": (CHAIN, True),
    "python_backend/rcnn_backend/operators/heads.py": (HEADS, True),
    "export/rcnn_export/detector/split.py": (SPLIT, True),
    "export/rcnn_export/detector/families.py": (FAMILIES, True),
    "model_repository/angle_rcnn_angles/1/model.py": (ADAPTER, False),
    "model_repository/angle_rcnn_angles/config.pbtxt": (CONFIG, False),
}
