# Every target sets up what it needs; `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TOOLS := $(VENV)/.tools
PIP := $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt
# auto: PyTorch for this machine's GPU, or without CUDA if it has none. Other values: uv pip install --help.
TORCH ?= auto
SAMPLE := export/samples
DEMO_PICTURE := $(SAMPLE)/pictures/digits_held-out_001117.jpg
DEMO_MASK_PICTURE := $(SAMPLE)/pictures/digits_held-out_001027.jpg
SEED ?= $(shell date +%s)
DIGITS := model_repository/digits/config.pbtxt
DIGITS_MASK := model_repository/digits_mask/config.pbtxt
DIGITS_MODEL := --model rcnn_export.digits.detector:digits_detector --weights $(SAMPLE)/digits.safetensors --labels $(SAMPLE)/labels.txt

.PHONY: help install demo demo-coco demo-mask test test-long gpu-test gpu-sanitize bench-kernels bench-convolutions bench bench-gpus bench-precision bench-stream bench-padding bench-balancer images soak soak-gpu soak-long chaos fuzz fuzz-gpu properties overload slow-clients lint check verify-models bench-cpu constraints docs clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

install: $(INSTALLED)  ## install the three packages into .venv: what the demo and the README need

$(INSTALLED): constraints.txt requirements.txt client/pyproject.toml python_backend/pyproject.toml export/pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 12) or sys.exit(f"Python 3.10 to 3.12 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	@echo "Installing into $(VENV): 0.5 GB to download and 1.6 GB on disk; with CUDA 3.0 and 5.4 GB. This takes some minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	@$(PIP) --torch-backend $(TORCH) -r requirements.txt 2>$(VENV)/torch.log || \
		{ echo "PyTorch could not be installed from its own index (see $(VENV)/torch.log): installing PyTorch with CUDA from PyPI." && \
		$(PIP) -r requirements.txt; }
	@touch $@

$(TOOLS): $(INSTALLED) requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	@touch $@

$(VENV)/.gpu: $(TOOLS)
	$(BIN)/uv pip uninstall --quiet --python $(BIN)/python onnxruntime
	$(PIP) -e 'python_backend[server,gpu,cudnn]'
	@touch $@

$(DIGITS): $(INSTALLED) $(SAMPLE)/digits.safetensors $(SAMPLE)/labels.txt $(wildcard model_repository/faster_rcnn*/config.pbtxt model_repository/faster_rcnn*/1/model.py export/rcnn_export/*.py export/rcnn_export/*/*.py)
	$(BIN)/rcnn-export faster_rcnn $(DIGITS_MODEL) --name digits --repository model_repository

$(DIGITS_MASK): $(INSTALLED) $(SAMPLE)/digits_mask.safetensors $(SAMPLE)/labels.txt $(wildcard model_repository/*_rcnn*/config.pbtxt model_repository/*_rcnn*/1/model.py export/rcnn_export/*.py export/rcnn_export/*/*.py)
	$(BIN)/rcnn-export --model rcnn_export.digits.detector:digits_mask_detector --weights $(SAMPLE)/digits_mask.safetensors --labels $(SAMPLE)/labels.txt --name digits_mask --repository model_repository

COCO_WEIGHTS ?= DEFAULT
COCO := model_repository/coco/config.pbtxt
PHOTO = $(shell $(BIN)/python -c 'import skimage; print(skimage.__path__[0])')/data/chelsea.png

$(COCO): $(INSTALLED)
	$(BIN)/rcnn-export faster_rcnn --model fasterrcnn_resnet50_fpn --weights $(COCO_WEIGHTS) --name coco --repository model_repository

demo-coco: $(COCO)  ## like demo, with torchvision's COCO weights, which it downloads, and a photo of a cat: demo-coco.png
	$(BIN)/python client/examples/demo.py --model coco $(PHOTO) --out demo-coco.png

demo: $(DIGITS)  ## export the sample detector, serve it, detect digits in a picture, write demo.png
	$(BIN)/python client/examples/demo.py --model digits $(DEMO_PICTURE) --out demo.png

demo-mask: $(DIGITS_MASK)  ## like demo, with a Mask R-CNN, which also finds the digits' masks: demo-mask.png
	$(BIN)/python client/examples/demo.py --model digits_mask $(DEMO_MASK_PICTURE) --out demo-mask.png

test: $(TOOLS)  ## every test that needs no GPU
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup -m "not long"

test-long: $(TOOLS)  ## tests that take minutes: READMEs in a shell, FP16 plans of every torchvision model, Mask R-CNN served
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup -m long

lint: $(TOOLS)  ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy client/rcnn_client python_backend/rcnn_backend export/rcnn_export
	MYPYPATH=tests/benchmarks $(BIN)/mypy tests/benchmarks
	MYPYPATH=tests/chaos:tests/benchmarks $(BIN)/mypy tests/chaos
	for model in model_repository/*/1/model.py python_backend/backends/*/model.py; do $(BIN)/mypy $$model || exit 1; done

check: lint test test-long  ## what CI runs

gpu-test: $(VENV)/.gpu  ## compare the CUDA kernels and the served ensemble with torchvision, on this machine's GPU
	$(BIN)/pytest tests/gpu -m gpu

gpu-sanitize: $(VENV)/.gpu  ## run the CUDA kernels under compute-sanitizer
	compute-sanitizer --tool memcheck --error-exitcode 1 $(BIN)/python tests/gpu/sanitize.py
	compute-sanitizer --tool racecheck --error-exitcode 1 $(BIN)/python tests/gpu/sanitize.py

bench-kernels: $(VENV)/.gpu  ## compare the speed of each CUDA kernel with torchvision's, on this GPU
	$(BIN)/python tests/benchmarks/kernels.py

bench-convolutions: $(VENV)/.gpu  ## time each fused convolution of an R50-FPN, torch's, and the theoretical minimum, on this GPU
	$(BIN)/python tests/benchmarks/convolutions.py

bench: $(VENV)/.gpu  ## time torchvision, the ensemble and the fused model on this GPU, with and without masks
	$(BIN)/python tests/benchmarks/gpu.py

bench-gpus: $(VENV)/.gpu  ## the fused model on one GPU and on two of this machine, with 32 and 64 clients, and what limits it
	$(BIN)/python tests/benchmarks/gpus.py

bench-precision: $(TOOLS)  ## COCO AP of the sample in torchvision, and exported in FP32 and in FP16
	$(BIN)/python tests/benchmarks/precision.py

bench-stream: $(DIGITS) $(TOOLS)  ## compare 1,000 pictures through the client's stream with plain concurrent requests
	$(BIN)/python tests/benchmarks/stream.py --pictures 1000 --in-flight 16

bench-padding: $(DIGITS) $(TOOLS)  ## how padding to a few sizes changes the answers
	$(BIN)/python tests/benchmarks/padding.py

bench-balancer: $(DIGITS) $(TOOLS)  ## 2,000 requests through nginx to two servers, one of which is killed: none lost
	$(BIN)/python tests/benchmarks/balancer.py --requests 2000

images:  ## build the container images rcnn-triton:<version>-gpu and -cpu (needs Docker)
	GRAFANA_PASSWORD=none docker compose --env-file deploy/docker/versions.env -f deploy/docker/compose.yaml --profile gpu --profile cpu build

overload: $(DIGITS) $(TOOLS)  ## ten times the load that this CPU can answer for two minutes: goodput, refusals, recovery
	$(BIN)/python tests/benchmarks/overload.py --seconds 120

slow-clients: $(DIGITS) $(TOOLS)  ## 4,000 idle and 200 slow connections: others are answered as before
	$(BIN)/python tests/benchmarks/slow_clients.py

soak: $(DIGITS) $(TOOLS)  ## 16 clients for a minute: every answer right, memory flat
	$(BIN)/python tests/benchmarks/soak.py --seconds 60 --clients 16

soak-gpu: $(DIGITS) $(VENV)/.gpu  ## 32 clients for ten minutes: the GPU's memory flat after the first minute
	$(BIN)/python tests/benchmarks/gpu_memory.py --seconds 600

soak-long: $(DIGITS) $(TOOLS)  ## 8 clients for half an hour: every answer right, memory flat after the second minute
	$(BIN)/python tests/benchmarks/soak.py --seconds 1800 --clients 8 --settled-s 120

chaos: $(DIGITS) $(TOOLS)  ## half an hour of faults under load: every answer right or an error, none lost, recovery in 15 s
	$(BIN)/python tests/chaos/chaos.py --seconds 1800 --seed 1

fuzz: $(DIGITS) $(TOOLS)  ## 20,000 hostile pictures: each gets boxes or INVALID_ARGUMENT, memory flat
	$(BIN)/python tests/benchmarks/fuzz.py --inputs 20000 --requests 2000

fuzz-gpu: $(VENV)/.gpu  ## 20,000 JPEGs, valid and hostile, decoded on this GPU: pixels or InvalidInputError, memory flat
	$(BIN)/python tests/benchmarks/fuzz_gpu.py --inputs 20000

properties: $(TOOLS)  ## compare the operators with torchvision in 100,000 random cases; SEED=number repeats a run
	$(BIN)/pytest tests/properties --timeout 3600 --hypothesis-profile long --hypothesis-seed $(SEED)

verify-models: $(DIGITS) $(TOOLS)  ## compare exports of the sample and of every torchvision model with torchvision, stage by stage (long)
	VENV=$(VENV) tests/verify_models.sh

bench-cpu: $(DIGITS) $(TOOLS)  ## latency and throughput on this CPU, compared with torchvision eager, OpenVINO and ONNX Runtime
	$(BIN)/python tests/benchmarks/cpu.py
	$(BIN)/python tests/benchmarks/cpu_peers.py

constraints: $(TOOLS)  ## resolve every pin again
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --no-header --no-annotate requirements-dev.txt | grep -v '^-e' > constraints.txt.new
	mv constraints.txt.new constraints.txt

docs: $(TOOLS)  ## write the reference in client/README.md from the docstrings
	$(BIN)/python client/reference.py

clean:  ## remove the environment, caches and the drawn demos; what you exported stays
	rm -rf $(VENV) demo.png demo-coco.png demo-mask.png .mypy_cache .pytest_cache .ruff_cache build dist
	find client export python_backend model_repository tests -name __pycache__ -prune -exec rm -rf {} +
