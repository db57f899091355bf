"""The published training data of Mini-Gemini: files, folders, where to get them, under which terms.

Facts carry their source; what nobody published is None. `[MGM]` is the README of
github.com/dvlab-research/MGM at 769820c, `#n` an issue of that repository, `[HF x]` the card or
file list of huggingface.co/datasets/x, all as of 2024. Nothing here is legal advice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

HF = "https://huggingface.co/datasets/"


@dataclasses.dataclass(frozen=True)
class Folder:
    """Pictures that lie together: the first folder of the picture paths in a recipe's records.

    `pictures`: so many files are published, or used by the records, as `facts` says; None: unknown.
    `note` is what one has to know about getting them.
    """

    name: str
    source: str
    url: str
    licence: str | None  # of the pictures, or None where no statement was found
    pictures: int | None = None
    needed: bool = True  # some record refers to it
    note: str = ""
    facts: str = ""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A JSON file and its picture folders, side by side in one root folder.

    `size` in bytes and `records` are (least, most), since both were published rounded.
    """

    name: str
    json: str
    url: str
    licence: str
    size: tuple[int, int]
    records: tuple[int, int] | None
    folders: tuple[Folder, ...]
    inside: str = ""  # the recipe whose file already holds all records of this one
    notes: tuple[str, ...] = ()


ALLAVA = Folder(
    "ALLaVA-4V",
    "ALLaVA-4V (LAION and Vision-FLAN pictures)",
    HF + "FreedomIntelligence/ALLaVA-4V",
    "Apache-2.0 for the texts; its README claims no right to the pictures",
    note="renamed in April 2024: older copies of the JSON file do not fit today's pictures",
    facts="licence: [HF FreedomIntelligence/ALLaVA-4V]; names: #20, #25",
)
LLAVA = Folder(
    "images",
    "LLaVA-Pretrain 558K (LAION, CC, SBU)",
    HF + "liuhaotian/LLaVA-Pretrain",
    "other: the terms of LAION, CC and SBU, research only",
    facts="licence: [HF liuhaotian/LLaVA-Pretrain], haotian-liu/LLaVA#143; its JSON is called "
    "558k, an exact number of files is not published",
)
SHAREGPT4V_URL = (
    "https://github.com/InternLM/InternLM-XComposer/blob/main/projects/ShareGPT4V/docs/Data.md"
)


def _sharegpt4v(name: str, source: str, pictures: int) -> Folder:
    licence = "CC-BY-NC-4.0 for the texts [HF Lin-Chen/ShareGPT4V]; none stated for the pictures"
    facts = "number of pictures that the instruction records use: #23"
    return Folder(name, source, SHAREGPT4V_URL, licence, pictures, facts=facts)


RECIPES = (
    Recipe(
        name="mgm-pretrain",
        json="mgm_pretrain.json",
        url=HF + "YanweiLi/MGM-Pretrain",
        licence="CC-BY-NC-4.0 (MGM's README)",
        size=(1_675_000_000, 1_685_000_000),  # 1.68 GB [HF YanweiLi/MGM-Pretrain]
        # 1.2 M (arXiv 2403.18814); 558 K and at most 708,140 captions of ALLaVA (its README).
        records=(1_150_000, 1_300_000),
        folders=(LLAVA, ALLAVA),
    ),
    Recipe(
        name="mgm-instruct",
        json="mgm_instruction.json",
        url=HF + "YanweiLi/MGM-Instruction",
        licence="CC-BY-NC-4.0 (MGM's README)",
        size=(1_785_000_000, 1_795_000_000),  # 1.79 GB [HF YanweiLi/MGM-Instruction]
        records=(1_400_000, 1_600_000),  # 1.5 M (arXiv 2403.18814)
        folders=(
            dataclasses.replace(
                LLAVA,
                name="llava",
                note="as llava/LLaVA-Pretrain/images; ShareGPT4V captions some of them (#50)",
            ),
            Folder(
                "coco",
                "COCO train2017",
                "http://images.cocodataset.org/zips/train2017.zip",
                "Flickr's terms of use; annotations CC-BY-4.0 (COCO's terms of use)",
                118_287,
                note="as coco/train2017",
                facts="number of pictures: [HF shijli/coco2017]",
            ),
            Folder(
                "gqa",
                "GQA",
                "https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip",
                None,
            ),
            Folder(
                "ocr_vqa",
                "OCR-VQA (book covers)",
                "https://drive.google.com/drive/folders/1_GYPY5UkUy7HIcR0zq3ZCFgeZN7BAfm_",
                None,
                note="all files are called .jpg (a .png is found, too); somebody missed 355 (#71)",
                facts="names: [MGM]; LLaVA's 665k mix, the largest part of the instruction data, "
                "has 80,000 records of it (haotian-liu/LLaVA#657)",
            ),
            Folder(
                "textvqa",
                "TextVQA",
                "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip",
                "CC-BY-4.0",
                needed=False,
                facts="not included for training [MGM]; licence: [HF facebook/textvqa]",
            ),
            Folder(
                "vg",
                "Visual Genome, both parts",
                "https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip and images2.zip",
                "CC-BY-4.0",
                facts="licence: [HF ranjaykrishna/visual_genome], which counts over 108,000",
            ),
            Folder(
                "gpt4v-dataset",
                "LAION GPT4V",
                HF + "laion/gpt4v-dataset",
                "CC0-1.0 for the texts [HF laion/gpt4v-dataset]; none stated for the pictures",
                note="links only, many of them dead: the authors had about 10,000 pictures (#35), "
                "somebody else missed 1,021 (#71); a skip list of `mgm-jax data check` leaves "
                "such records out",
            ),
            _sharegpt4v("sam", "SA-1B, as ShareGPT4V took it", 19_982),
            _sharegpt4v("share_textvqa", "TextVQA, as ShareGPT4V took it", 500),
            _sharegpt4v("wikiart", "WikiArt, as ShareGPT4V took it", 500),
            _sharegpt4v("web-celebrity", "pictures of the web, as ShareGPT4V took them", 498),
            _sharegpt4v("web-landmark", "pictures of the web, as ShareGPT4V took them", 500),
            ALLAVA,
            Folder("docvqa", "DocVQA", "https://www.docvqa.org/datasets/docvqa", None),
            Folder(
                "chartqa",
                "ChartQA",
                "https://github.com/vis-nlp/ChartQA",
                "GPL-3.0",
                facts="licence: [HF ahmed-masry/ChartQA]",
            ),
            Folder("dvqa", "DVQA", "https://github.com/kushalkafle/DVQA_dataset", None),
            Folder("ai2d", "AI2D", "https://allenai.org/data/diagrams", None),
        ),
        notes=(
            "MGM's README says to put ALLaVA's pictures under MGM-Pretrain/ALLaVA-4V, but its "
            "folder tree and the records want them here, too: a link, or --folder ALLaVA-4V=DIR",
        ),
    ),
    Recipe(
        name="mgm-generation",
        json="mgm_generation_pure_text.json",
        url=HF + "YanweiLi/MGM-Instruction",
        licence="CC-BY-NC-4.0 (MGM's README)",
        size=(39_050_000, 39_150_000),  # 39.1 MB [HF YanweiLi/MGM-Instruction]
        records=None,
        folders=(),
        inside="mgm-instruct",  # "DO NOT merge" [MGM]
        notes=("text only; meant for mixing into other instruction data",),
    ),
)


def get_recipe(name: str) -> Recipe:
    """The recipe of this name; ValueError naming all there are."""
    found = {recipe.name: recipe for recipe in RECIPES}
    if name not in found:
        raise ValueError(f"recipe {name!r}: unknown, expected one of {', '.join(found)}")
    return found[name]


def sources_of(recipe: Recipe, root, roots: Mapping[str, str] | None = None) -> dict:
    """What `config.data.sources` takes for a recipe that lies in the folder `root`.

    `roots` names the folders that lie elsewhere: {"coco": "gs://bucket/coco"} has the pictures of
    coco/train2017 in gs://bucket/coco/train2017. ValueError for one that the recipe does not have.
    """
    root, roots = str(root).rstrip("/"), dict(roots or {})
    if unknown := set(roots) - {folder.name for folder in recipe.folders}:
        names = ", ".join(folder.name for folder in recipe.folders) or "none"
        raise ValueError(
            f"{recipe.name}: no folder {', '.join(sorted(unknown))}, expected some of: {names}"
        )
    images = ({"": root} | roots if roots else root) if recipe.folders else ""
    source = {"path": f"{root}/{recipe.json}", "images": images, "weight": 1.0, "skip": ""}
    return {recipe.name: source}
