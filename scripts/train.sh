#!/usr/bin/env bash
# The published recipe of OneFlow's KnowledgeDistillation sample, in its own spelling.
# kdtrain's own defaults do better: scripts/kdtrain fit --mode compare
set -euo pipefail

exec "$(dirname -- "${BASH_SOURCE[0]}")/kdtrain" fit \
    --model_type=compare \
    --model_save_dir=./output/model_save \
    --image_save_name=./output/images/compare_result.png \
    --epochs=10 \
    --batch_size=128 \
    --optimizer=adadelta --lr=1.0 --schedule=constant \
    --val_size=0 \
    --teacher_augment=none \
    --temperature=5.0 \
    --alpha=0.7 \
    "$@"
