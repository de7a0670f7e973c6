#!/bin/sh
# Runs rcnn-serve on the mounted repository, reachable for other containers and hosts (--host 0.0.0.0). All arguments
# are passed to rcnn-serve, for example --host :: for IPv6, or flags of tritonserver after --.
#   MODEL_REPOSITORY  folder of the models (default /models)
#   READY_TIMEOUT_S   give up when the models have not loaded by then (default 900)
# TensorRT plans run only on the kind of GPU and with the TensorRT that built them. If the repository has any, --rebuild
# builds those that cannot run here from the ONNX files in the same folders. This needs a writable repository.
set -eu

repository=${MODEL_REPOSITORY:-/models}
if [ -z "$(find "$repository" -mindepth 2 -maxdepth 2 -name config.pbtxt -print -quit)" ]; then
    echo "No model in $repository: mount the folder that rcnn-export wrote there, or set MODEL_REPOSITORY" >&2
    exit 1
fi
if [ -n "$(find "$repository" -mindepth 3 -maxdepth 3 -name model.plan -print -quit)" ]; then
    set -- --rebuild "$@"
fi
case " $* " in
    *" -- "*) ;;
    *) set -- "$@" -- ;;
esac
exec rcnn-serve "$repository" --host 0.0.0.0 --ready-timeout-s "${READY_TIMEOUT_S:-900}" \
    "$@" --metrics-config=summary_latencies=true
