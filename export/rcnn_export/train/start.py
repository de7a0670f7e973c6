"""What a training run starts from."""

from collections.abc import Callable

from torchvision.models.detection import FasterRCNN

from rcnn_export.detector.batch_norm import batch_norm_eps_of, set_batch_norm_eps
from rcnn_export.detector.builders import call_function
from rcnn_export.detector.load import RANDOM_SEED, build_detector, load_detector
from rcnn_export.detector.shapes import num_classes_of
from rcnn_export.detector.weights import RANDOM, DownloadError
from rcnn_export.errors import ExportError
from rcnn_export.train.loop import Settings

PREDICTORS = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.")
MASK_HEAD = "roi_heads.mask_"


def finds_masks(model: str) -> bool:
    """Whether ``model``, a torchvision builder or ``package.module:function``, gives a detector with a mask head.

    Raises:
        ExportError: the function cannot be called.
    """
    if ":" not in model:
        return model.startswith("maskrcnn_")
    detector = call_function(model, 2, RANDOM_SEED)
    return isinstance(detector, FasterRCNN) and detector.roi_heads.has_mask()


def initial_detector(settings: Settings, report: Callable[[str], None]) -> FasterRCNN:
    """The detector before the first step: with the weights of ``settings``, and as many classes as the data has.

    Tensors of the predictors that have another shape in the weights start anew, and so does a mask head that the
    weights lack. ``report`` is called with a line of text about what was taken.

    Raises:
        ExportError: the model or the weights do not exist or do not fit together.
    """
    detector = build_detector(settings.model, num_classes=len(settings.class_names) + 1)
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
                weights_key=settings.weights_key,
                batch_norm_eps=settings.batch_norm_eps,
                starts_anew=MASK_HEAD,
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
        report(
            f"starting anew, for {num_classes_of(detector)} classes instead of {num_classes_of(given)} (background "
            f"included): {', '.join(anew)}"
        )
