"""rcnn-ui: a page that tries the detectors of a Triton server, and HTTP for programs without gRPC; needs aiohttp."""
