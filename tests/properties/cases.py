"""How many cases each property is tested with, and whether they are the same in each run."""

from hypothesis import HealthCheck, settings

BATCH = 4  # cases that a batched operator gets in one call
# Numbers for a CPU. Each picture, or each detection of a picture, is one case.
CASES = {
    "rpn": 200,
    "proposals": 1100,
    "header": 200,
    "detections": 1100,
    "roi_align": 800,
    "keypoints": 600,
    "masks": 500,
    "run_lengths": 400,
    "preprocess": 400,
    "decode": 300,
    "pipeline": 10,  # for each family
}
ON_GPU = ("proposals", "detections", "roi_align", "keypoints", "masks", "preprocess")
GPU_CASES = {name: 12 * CASES[name] for name in ON_GPU}
LONG_TIMES = 20

# Each run uses the same cases, so a failure is reproducible and is caused by a change. `make properties` draws others.
settings.register_profile(
    "same",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("long", settings.get_profile("same"), derandomize=False)
settings.load_profile("same")


def cases(count: int, a_call: int = 1) -> settings:
    """A decorator for a test with ``count`` cases, ``a_call`` of them in each call; more with the profile ``long``."""
    times = LONG_TIMES if settings.get_current_profile_name() == "long" else 1
    return settings(max_examples=times * count // a_call)
