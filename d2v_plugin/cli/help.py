"""Help of the verbs: what each does in a line, and what ``--help`` says beyond fairseq2's own flags."""

from __future__ import annotations

EXTENSION = """
  --extension FILE.py   file that registers more in `setup_fairseq2_extension(container)`; may be repeated
"""

DEFAULTS = """
Settings default to those of the run that wrote the checkpoint; override only what differs.
"""

SUMMARIES = {
    "train": "train a model: `--config-file RECIPE.yaml OUTPUT_DIR`",
    "evaluate": "score a fine-tuned model, or probe any model: `OUTPUT_DIR --config checkpoint.path=RUN`",
    "predict": "transcribe, classify or tag files: `OUTPUT_DIR --config checkpoint.path=RUN inputs=FILES`",
    "extract": "write features of a manifest to disk: `OUTPUT_DIR --config checkpoint.path=RUN`",
    "inspect": "draw pictures of a model: `OUTPUT_DIR --config checkpoint.path=RUN`",
    "export": "write a model as others read it: `OUTPUT_DIR --config checkpoint.path=RUN format=huggingface`",
    "list": "print the recipes, and what they may name",
}

HELP = {
    "train": f"""{EXTENSION}\
  --resume SOURCE       `auto` (default): go on from the last complete checkpoint in OUTPUT_DIR, if there is one; `none`: start
                        anew; a number: that update's checkpoint; DIR/step_N: that checkpoint, also of another run
  --extend-schedule     when resuming, follow the learning-rate schedule of the recipe as it is now
  --accept-changed-data when resuming, go on although the rows of the training data are other ones, or in another order

examples:
  fairseq2 recipe train --config-file recipes/demo/digits.yaml out/digits
  fairseq2 recipe train --config-file recipes/demo/digits.yaml out/short --config regime.num_steps=100 common.seed=3
  fairseq2 recipe train --config-file recipes/demo/digits.yaml --dump-config
  torchrun --nproc-per-node 2 -m d2v_plugin recipe train --config-file recipes/demo/digits.yaml out/digits2

Running a command again continues its run from the last checkpoint in OUTPUT_DIR.
""",
    "evaluate": f"""{EXTENSION}{DEFAULTS}
examples:
  fairseq2 recipe evaluate out/scores --config checkpoint.path=out/finetuned
  fairseq2 recipe evaluate out/scores --config checkpoint.path=out/finetuned checkpoint.best=true splits='[test]'
  fairseq2 recipe evaluate out/scores --config checkpoint.path=out/pretrained probing.probes='[{{name: knn}}, {{name: linear}}]'
""",
    "predict": f"""{EXTENSION}{DEFAULTS}\
`inputs` is a file, a folder, a manifest, or a list of these. Running a command again writes the parts that are missing.

examples:
  fairseq2 recipe predict out/transcripts --config checkpoint.path=out/transcriber inputs=RECORDINGS
  fairseq2 recipe predict out/classes --config checkpoint.path=out/finetuned inputs=manifests/digits/valid.tsv prediction.top_k=3
  fairseq2 recipe predict out/answers --config checkpoint.path=out/finetuned inputs='[a.txt, b.jsonl]'
""",
    "extract": f"""{EXTENSION}{DEFAULTS}\
Running a command again writes the shards that are missing.

examples:
  fairseq2 recipe extract out/features --config checkpoint.path=out/pretrained split=train
  fairseq2 recipe extract out/features --config checkpoint.path=out/pretrained features.layers=all features.pooling=none
  fairseq2 recipe extract out/features --config checkpoint.path=out/converted dataset.config_overrides.path=manifests/words
""",
    "inspect": f"""{EXTENSION}{DEFAULTS}
examples:
  fairseq2 recipe inspect out/pictures --config checkpoint.path=out/pretrained
  fairseq2 recipe inspect out/pictures --config checkpoint.path=out/pretrained split=valid num_samples=8 num_embedded=0
""",
    "export": f"""{EXTENSION}\
  --force               replace OUTPUT_DIR if an earlier export wrote it

The output directory is what others get: no logs, and nothing at all unless it computes what our own model computes.

examples:
  fairseq2 recipe export out/shared --config checkpoint.path=out/finetuned format=huggingface
  fairseq2 recipe export out/shared --config checkpoint.path=out/pretrained format=huggingface checkpoint.weights=teacher
  fairseq2 recipe export out/encoder --config checkpoint.path=out/finetuned format=d2v_plugin head=false
""",
    "list": """\
usage: fairseq2 recipe list [-h] [--extension FILE.py]

print what a recipe may name: tasks, datasets, models, criteria, mask samplers, probes, and the recipes at hand

  --extension FILE.py   also list what this file registers; may be repeated

examples:
  fairseq2 recipe list
  fairseq2 recipe list --extension my_criterion.py
""",
}

PROGRAM_HELP = "\n".join(
    [
        "usage: fairseq2 recipe <verb> [-h] …\n\ndata2vec on fairseq2\n\nverbs:",
        *(f"  recipe {name:<9} {summary}" for name, summary in SUMMARIES.items()),
        "\nexamples:\n  fairseq2 recipe list\n  fairseq2 recipe train --config-file recipes/demo/digits.yaml out/digits\n",
    ]
)
