#!/usr/bin/env bash
# Runs rcnn-verify on the sample and on every torchvision model with seeded random weights, in process and served.
set -euo pipefail
bin=${VENV:-.venv}/bin
repository=$(mktemp -d) server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; wait; rm -rf "$repository"' EXIT
cp -r model_repository/digits* "$repository"
models=(fasterrcnn_mobilenet_v3_large_320_fpn fasterrcnn_mobilenet_v3_large_fpn fasterrcnn_resnet50_fpn fasterrcnn_resnet50_fpn_v2)
for model in "${models[@]}"; do
  "$bin/rcnn-export" faster_rcnn --model "$model" --weights random --name "$model" --repository "$repository"
done
"$bin/rcnn-serve" "$repository" > "$repository/serve.log" & server=$!
until grep -q "^Serving" "$repository/serve.log"; do
  kill -0 "$server"
  sleep 1
done
for name in digits "${models[@]}"; do
  "$bin/rcnn-verify" --repository "$repository" --name "$name" --server localhost:8001
done
