"""Takes all free memory of the first GPU, again and again, until stdin is closed. Prints a line when it is first full."""

import select
import sys

from cupy.cuda import runtime

LARGEST, SMALLEST = 1 << 30, 1 << 20
LOOK_EVERY_S = 0.05

is_full = False
while not select.select([sys.stdin], [], [], LOOK_EVERY_S if is_full else 0)[0]:
    size = LARGEST
    while size >= SMALLEST:
        try:
            runtime.malloc(size)  # freed when this process ends
        except runtime.CUDARuntimeError:
            size //= 2
    if not is_full:
        is_full = True
        print("full", flush=True)
