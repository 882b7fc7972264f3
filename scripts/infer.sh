#!/usr/bin/env bash
# Asks the distilled student of scripts/train.sh about the last image of the test set.
set -euo pipefail

exec "$(dirname -- "${BASH_SOURCE[0]}")/kdtrain" infer \
    --model_type=student_kd \
    --model_save_dir=./output/model_save \
    --image_save_name=./output/images/infer_result.png \
    --picture_index=9999 \
    --temperature=10 \
    "$@"
