"""Help of the verbs: what each does in a line, and what ``--help`` says beyond fairseq2's own flags."""

from __future__ import annotations

EXTENSION = """
  --extension FILE.py   file that registers more in `setup_fairseq2_extension(container)`; may be repeated
  --device DEVICE       `cpu`, `cuda` or `cuda:N`; without it a GPU if there is one
  --verbose             show all of the log; without it the screen has warnings and results, and OUTPUT_DIR/logs has the rest
"""

DEFAULTS = """
Settings default to those of the run that wrote the checkpoint; override only what differs.
"""

SUMMARIES = {
    "train": "train a model: `--config-file RECIPE.yaml OUTPUT_DIR`",
    "pretrain": "learn from a folder of pictures, recordings or texts: `OUTPUT_DIR --config data=FOLDER`",
    "finetune": "fine-tune a run on labelled data: `OUTPUT_DIR --config init.path=RUN data=FOLDER`",
    "evaluate": "score a fine-tuned model, or probe any model: `OUTPUT_DIR --config checkpoint.path=RUN`",
    "predict": "transcribe, classify or tag files: `OUTPUT_DIR --config checkpoint.path=RUN inputs=FILES`",
    "extract": "write features of a manifest to disk: `OUTPUT_DIR --config checkpoint.path=RUN`",
    "inspect": "draw pictures of a model: `OUTPUT_DIR --config checkpoint.path=RUN`",
    "export": "write a model as others read it: `OUTPUT_DIR --config checkpoint.path=RUN format=huggingface`",
    "manifest": "make the manifests that training reads of folders: `image|audio|text FOLDER OUT`",
    "convert": "turn checkpoints of fairseq and Hugging Face into ours, and ours into theirs: `FORMAT IN OUT`",
    "list": "print the recipes, and what they may name",
    "describe": "print every setting of what a recipe may name: `data2vec2`, `image_pretraining`, `regime`, …",
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
    "pretrain": f"""{EXTENSION}\
  --resume, --extend-schedule, --accept-changed-data: as for `train`

after --config, besides all settings of the training recipe:
  data=FOLDER           pictures, recordings or texts, or a dataset with manifests; a file of text
  budget=30m            time to train: 90s, 30m, 2h, 1d (default: 5 minutes on CPUs, an hour on GPUs)
  modality=audio        audio, image or text, where files are of several kinds

It writes manifests to OUTPUT_DIR/data and what it chose to OUTPUT_DIR/plan.yaml, and trains. The same command again resumes.

examples:
  fairseq2 recipe pretrain out/photos --config data=photos
  fairseq2 recipe pretrain out/photos --config data=photos budget=30m criterion.config.num_views=4
  fairseq2 recipe pretrain out/more --config data=recordings init.path=out/speech
""",
    "finetune": f"""{EXTENSION}\
  --resume, --extend-schedule, --accept-changed-data: as for `train`

after --config, besides all settings of the training recipe:
  init.path=RUN         the run of `pretrain` or `train` to start from
  data=FOLDER           labelled data: a folder for each class, JSON lines with labels, or a dataset with manifests (default:
                        what RUN learned from); audio with transcripts in its manifest is learned as speech recognition
  budget=5m             time to train (default: 20 passes over the data)

examples:
  fairseq2 recipe finetune out/photos_tuned --config init.path=out/photos
  fairseq2 recipe finetune out/photos_tuned --config init.path=out/photos data=labelled budget=5m
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
    "describe": """\
usage: fairseq2 recipe describe [-h] [--extension FILE.py] [NAME …]

print every setting of tasks, criteria, mask samplers, probes, datasets, models, archs and sections of recipes: key, type,
default, unit, and what it means; without a name, what there is

  --extension FILE.py   also describe what this file registers; may be repeated
  --page                print all of it as the page recipes/reference.md

examples:
  fairseq2 recipe describe
  fairseq2 recipe describe data2vec2 inverse_block
  fairseq2 recipe describe image_pretraining regime
  fairseq2 recipe describe --extension my_criterion.py my_criterion
""",
}

DOCTOR_HELP = """\
usage: fairseq2 doctor [-h]

say which versions and devices there are, try whether every package works that is needed or optional, and whether checkpoints
can be written where one stands; the exit status is 1 if something needed is broken
"""

PROGRAM_HELP = "\n".join(
    [
        "usage: fairseq2 recipe <verb> [-h] … | fairseq2 doctor\n\ndata2vec on fairseq2\n\nverbs:",
        *(f"  recipe {name:<9} {summary}" for name, summary in SUMMARIES.items()),
        "\n  doctor           say what is installed and whether it works",
        "\nexamples:\n  fairseq2 recipe list\n  fairseq2 recipe train --config-file recipes/demo/digits.yaml out/digits\n",
    ]
)
