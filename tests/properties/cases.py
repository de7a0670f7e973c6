"""How many cases each property is tried on, and whether they are the same in each run."""

from hypothesis import HealthCheck, settings

BATCH = 4  # cases that a batched operator gets in one call
# On a CPU. Each picture of a batch is a case of its own.
CASES = {
    "rpn": 200,
    "proposals": 1200,
    "header": 200,
    "detections": 1200,
    "roi_align": 1000,
    "keypoints": 500,
    "masks": 500,
    "run_lengths": 400,
    "preprocess": 400,
    "decode": 300,
    "pipeline": 60,
}
GPU_TIMES, LONG_TIMES = 12, 20

# The same cases each time: a failure is there again, and a change is what broke it. `make properties` draws others.
settings.register_profile(
    "same",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("long", settings.get_profile("same"), derandomize=False, print_blob=True)
settings.load_profile("same")


def cases(name: str, a_call: int = 1, times: int = 1) -> settings:
    """A decorator: so many cases of CASES, of which one call tries ``a_call``."""
    if settings.get_current_profile_name() == "long":
        times *= LONG_TIMES
    return settings(max_examples=times * CASES[name] // a_call)
