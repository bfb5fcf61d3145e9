"""What `test_hosts` runs in processes of their own, each of which sees one device or two.

python tests/hosts_child.py run ARGUMENTS    star-jax run, with few shapes; the process of number $DIES ends in
                                             round $DIES_IN as its machine would, without a word
python tests/hosts_child.py load FLAGS MODEL    prints what each process has read of a checkpoint in parts, and
                                             whether it is what one process reads
"""

import json
import os
import signal
import sys
from pathlib import Path

from star_jax.acquisition import pools
from star_jax.cli.hosts import hosts_of, run_as_one_of
from star_jax.cli.main import main
from star_jax.data import step_shapes
from star_jax.experiment import rounds
from star_jax.parallel import hosts

TYPES = ("none", "int8", "nf4")


def run(arguments):
    for name in ("PROMPT_SHAPES", "SEQUENCE_SHAPES", "CANDIDATE_SHAPES"):
        setattr(pools, name, 1)
    step_shapes.USUAL_SHAPES = 0
    learn = rounds.learn

    def learn_or_die(config, problem, state, *others):
        cluster = hosts.several()
        if cluster is not None and (str(cluster.index), str(state.round)) == (os.getenv("DIES"), os.getenv("DIES_IN")):
            os.kill(os.getppid(), signal.SIGKILL)
            signal.pause()
        return learn(config, problem, state, *others)

    rounds.learn = learn_or_die
    return main(["run", *arguments])


def load(model):
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding

    from star_jax.checkpoints.huggingface import load_folder
    from star_jax.parallel.placement import spec_of, specs_of

    mesh = Mesh(np.asarray(jax.devices()).reshape(1, -1), ("data", "fsdp"))
    found = {}
    load_folder(model)  # what is imported on the way has been read then
    for kind in TYPES:
        before = _bytes_read()
        split = load_folder(
            model,
            quantization=kind,
            placement=lambda name, shape: NamedSharding(mesh, spec_of(name.split("."), shape, mesh.size)),
        )
        read, whole = _bytes_read() - before, load_folder(model, quantization=kind)
        wanted = jax.tree.leaves(specs_of(whole.params, mesh.size))
        pairs = zip(*map(jax.tree.leaves, (whole.params, split.params)), wanted, strict=True)
        found[kind] = [
            read,
            all(
                np.array_equal(one, hosts.readable(other))
                and other.sharding.is_equivalent_to(NamedSharding(mesh, spec), other.ndim)
                for one, other, spec in pairs
            ),
        ]
    print(json.dumps(found))
    return 0


def _bytes_read():
    return int(Path("/proc/self/io").read_text().split()[1])


if __name__ == "__main__":
    if sys.argv[1] == "run":
        sys.exit(run(sys.argv[2:]))
    *flags, model = sys.argv[2:]
    sys.exit(run_as_one_of(hosts_of(flags, "load"), lambda: load(Path(model)), "interrupted", "terminated"))
