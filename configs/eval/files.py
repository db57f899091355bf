"""Where the files of the benchmarks lie under a root: as the original's `data/MGM-Eval`, and what
it has no script for as LLaVA's `eval.zip` and the data sets' own releases have it.
"""

from __future__ import annotations

from mgm_jax.configs.common import benchmark

# name: benchmark, questions, images, annotations (none: "-")
TABLE = """
textvqa    textvqa   textvqa/llava_textvqa_val_v051_ocr.jsonl  textvqa/train_images              textvqa/TextVQA_0.5.1_val.json
mmbench    mmbench   mmbench/mmbench_dev_20230712.tsv          -                                 mmbench/mmbench_dev_20230712.tsv
mme        mme       MME/llava_mme.jsonl                       MME/MME_Benchmark_release_version MME/MME_Benchmark_release_version
mmvet      mmvet     mm-vet/llava-mm-vet.jsonl                 mm-vet/images                     mm-vet/mm-vet.json
mmmu_val   mmmu      MMMU                                      -                                 -
mmmu_test  mmmu      MMMU                                      -                                 -
mathvista  mathvista MathVista/testmini.json                   MathVista                         MathVista/testmini.json
pope       pope      pope/llava_pope_test.jsonl                pope/val2014                      pope/coco
scienceqa  scienceqa scienceqa/llava_test_CQM-A.json           scienceqa/images/test             scienceqa
gqa        gqa       gqa/llava_gqa_testdev_balanced.jsonl      gqa/images                        gqa/testdev_balanced_questions.json
seed       seed      seed_bench/llava-seed-bench.jsonl         seed_bench                        seed_bench/SEED-Bench.json
vizwiz     vizwiz    vizwiz/val.json                           vizwiz/val                        vizwiz/val.json
llavabench llavabench llava-bench-in-the-wild/questions.jsonl  llava-bench-in-the-wild/images    llava-bench-in-the-wild
qbench     qbench    qbench/llvisionqa_dev.json                qbench/images                     qbench/llvisionqa_dev.json
coloninst_seen   coloninst ColonINST/ColonINST-val.json        ColonINST/Positive-images         -
coloninst_unseen coloninst ColonINST/ColonINST-test.json       ColonINST/Positive-images         -
"""  # noqa: E501
MORE = {  # options; test answers of MMMU are hidden
    "mmmu_val": {"split": "validation"},
    "mmmu_test": {"split": "test", "score": False},
    "coloninst_seen": {"split": "val"},
    "coloninst_unseen": {"split": "test"},
}
FILES = {line.split()[0]: line.split()[1:] for line in TABLE.strip().splitlines()}
PAPER = ("textvqa", "mmbench", "mme", "mmvet", "mmmu_val", "mmmu_test", "mathvista")


def under(root: str, names) -> dict[str, dict]:
    """The `benchmarks` of these names, with their files under `root`. ValueError for others."""
    found = {}
    for name in names:
        if name not in FILES:
            raise ValueError(f"unknown benchmark {name!r}, known: {', '.join(FILES)}")
        kind, *files = FILES[name]
        paths = ["" if file == "-" else f"{root}/{file}" for file in files]
        found[name] = benchmark(kind, *paths, **MORE.get(name, {}))
    return found
