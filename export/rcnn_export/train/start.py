"""The detector and the weights that a training run starts from."""

from collections.abc import Callable

from rcnn_client.tools.coco_score import Kind
from torchvision.models.detection import FasterRCNN

from rcnn_export.detector.batch_norm import batch_norm_eps_of, set_batch_norm_eps
from rcnn_export.detector.builders import call_function
from rcnn_export.detector.load import RANDOM_SEED, build_detector, load_detector
from rcnn_export.detector.shapes import num_classes_of, num_keypoints_of
from rcnn_export.detector.weights import RANDOM, DownloadError
from rcnn_export.errors import ExportError
from rcnn_export.train.coco_eval import kind_of
from rcnn_export.train.loop import Settings

PREDICTORS = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.", "roi_heads.keypoint_predictor.")
BUILDERS: dict[str, Kind] = {"maskrcnn_": "segm", "keypointrcnn_": "keypoints"}
HEADS: dict[Kind, str] = {"segm": "roi_heads.mask_", "keypoints": "roi_heads.keypoint_"}


def kind_built_by(model: str) -> Kind:
    """What the detectors of ``model``, a torchvision builder or ``package.module:function``, find in addition to boxes.

    Raises:
        ExportError: the function cannot be called.
    """
    if ":" not in model:
        return next((kind for prefix, kind in BUILDERS.items() if model.startswith(prefix)), "bbox")
    detector = call_function(model, {"num_classes": 2, "num_keypoints": 1}, RANDOM_SEED)
    return kind_of(detector) if isinstance(detector, FasterRCNN) else "bbox"


def initial_detector(settings: Settings, report: Callable[[str], None]) -> FasterRCNN:
    """The detector before the first step, with the weights of ``settings`` and the data's numbers of classes and keypoints.

    Tensors of the predictors that have another shape in the weights keep their initial values, and so does a mask or
    keypoint head that the weights lack. ``report`` is called with a line of text about the weights that are used.

    Raises:
        ExportError: the model or the weights do not exist or do not fit together.
    """
    num_keypoints = len(settings.keypoint_names) if settings.keypoint_names else None
    detector = build_detector(
        settings.model, num_classes=len(settings.class_names) + 1, num_keypoints=num_keypoints
    )
    eps = settings.batch_norm_eps
    if settings.weights == RANDOM:
        built = "the weights it is built with" if ":" in settings.model else "random weights"
        report(f"training {settings.model} from {built}")
    else:
        report(f"training {settings.model} from the weights {settings.weights}")
        try:
            given = load_detector(
                settings.model,
                settings.weights,
                num_keypoints=num_keypoints,
                weights_key=settings.weights_key,
                batch_norm_eps=settings.batch_norm_eps,
                starts_anew=HEADS.get(kind_of(detector)),
                report=report,
            ).model
        except DownloadError as error:
            raise ExportError(f"{error}; or train from scratch with --weights random") from error
        _copy_weights(given, detector, report)
        eps = batch_norm_eps_of(given)
    if eps is not None:
        set_batch_norm_eps(detector, eps)
    return detector


def _copy_weights(given: FasterRCNN, detector: FasterRCNN, report: Callable[[str], None]) -> None:
    state = given.state_dict()
    anew = []
    for name, own in detector.state_dict().items():
        if name.startswith(PREDICTORS) and state[name].shape != own.shape:
            state[name] = own
            anew.append(name)
    detector.load_state_dict(state)
    if anew:
        numbers = (
            (num_classes_of(detector), num_classes_of(given), "classes", " (background included)"),
            (num_keypoints_of(detector), num_keypoints_of(given), "keypoints", ""),
        )
        others = [f"{new} {of} instead of {old}{note}" for new, old, of, note in numbers if new != old]
        report(f"initialising again, for {' and '.join(others)}: {', '.join(anew)}")
