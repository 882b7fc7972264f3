#!/usr/bin/env bash
# The published recipe of OneFlow's KnowledgeDistillation sample, with the sample's spelling of its paths.
# kdtrain's own defaults do better: scripts/kdtrain fit --mode compare
set -euo pipefail

exec "$(dirname -- "${BASH_SOURCE[0]}")/kdtrain" fit \
    --recipe=sample \
    --model_type=compare \
    --model_save_dir=./output/model_save \
    --image_save_name=./output/images/compare_result.png \
    "$@"
