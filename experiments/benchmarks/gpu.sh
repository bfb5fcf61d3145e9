#!/bin/sh
# star_jax beside Transformers + PEFT on one GPU, at most 8 minutes, nothing downloaded:
#
#   OUT=results experiments/benchmarks/gpu.sh
#
# Training, scoring and generation of a Llama of 8 billion random bfloat16 weights, each with a time limit of its own, so
# that what is done is kept: OUT/TASK.json has every timing, and OUT/table.txt rates, FLOP/s over those of a large matrix
# product measured in the same process, and the most memory that was in use. It needs jax with a GPU, flax, optax,
# torch, transformers and peft; datasets, tyro and dacite are not read.
#
# No figures of a GPU exist yet. It has been tried on a CPU only:
#
#   OUT=results DEVICE=cpu SHAPE="--width 64 --layers 2 --heads 4 --kv-heads 2 --mlp 128 --vocab 512" \
#     SIZES="--examples 8 --prompts 8 --pool 8 --picks 4 --test 4 --new-tokens 8 --peak-size 128" \
#     experiments/benchmarks/gpu.sh

set -u
folder=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-runs/benchmarks/gpu}
python=${PYTHON:-python3}
shape=${SHAPE:---width 4096 --layers 32 --heads 32 --kv-heads 8 --mlp 14336 --vocab 128256}
sizes=${SIZES:---examples 128 --prompts 64 --new-tokens 128}
export PYTHONPATH="$folder/../..${PYTHONPATH:+:$PYTHONPATH}"

mkdir -p "$out" || exit 2
: > "$out/table.txt"
status=0

# task, seconds
run() {
	echo "== $1" | tee -a "$out/table.txt"
	# The flags are words.
	# shellcheck disable=SC2086
	timeout "$2" "$python" "$folder/bench.py" --device "${DEVICE:-gpu}" --dtypes bfloat16 --in-memory-weights \
		--tasks "$1" --peers tuned --alternations 3 $shape $sizes --out "$out/$1.json" >> "$out/table.txt" 2> "$out/$1.log"
	code=$?
	if [ $code -ne 0 ]; then
		status=1
		[ $code -eq 124 ] && echo "over its $2 seconds; what was timed is in $out/$1.json, where there is one" >> "$out/table.txt"
		tail -n 5 "$out/$1.log" >> "$out/table.txt"
	fi
}

run train 150
run score-k1 120
run generate 210
cat "$out/table.txt"
exit $status
