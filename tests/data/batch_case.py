"""Small packed batches of the tiny demo, and what they were made from."""

import dataclasses

from mgm_jax.data.examples import batch_rows
from mgm_jax.data.pipeline import Encoder, Pictures
from mgm_jax.data.records import PictureFile, Record
from mgm_jax.models.config import MgmConfig

HD = {"lr_size": 8, "hr_size": 32, "grid": 2, "use_global": True}
TALKS = (  # (pictures, question, answer)
    (1, "What digit is on the card?", "<script>alert('3')</script> & more"),
    (0, "Say\nhello é\u200b", "Hello  there."),
    (2, "Compare.", "They differ."),
    (1, "Which colour?", "Red\n"),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """Two groups of two rows of 192 positions; the last row is empty. With the methods of
    `data.stream.Stream` that a page needs."""

    cfg: MgmConfig
    tokenizer: object
    records: list  # by row
    examples: list
    arrays: dict

    def batch(self, step):
        return self.arrays

    def members(self, step):
        return [[("cards", int(r.id), r.where) for r in row] for row in self.records]

    def epoch(self, step):
        return 2, 0.25


def make(model: dict, tokenizer, files, image=None) -> Case:
    """`files`: names of picture files; `image`: other values of the image spec than `model`'s."""
    cfg = MgmConfig.from_dict(model | {"image": dict(model["image"]) | (image or {})})
    records, files = [[], [], [], []], iter(files)
    for i, row in enumerate((0, 0, 1, 2, 2)):
        pictures, question, answer = TALKS[i % len(TALKS)]
        turns = ["<image>\n" * pictures + question, answer]
        turns = [{"from": f, "value": v} for f, v in zip(("human", "gpt"), turns, strict=True)]
        images = tuple(PictureFile(str(next(files))) for _ in range(pictures))
        records[row].append(Record(str(i), images, turns, f"<cards>.json record {i} (id {i})"))
    encoder = Encoder("v1", tokenizer, cfg.visual_tokens, 192)
    examples = [[encoder(record) for record in row] for row in records]
    options = dict(length=192, groups=2, slots=4, visual_tokens=cfg.visual_tokens)
    arrays, pictures = batch_rows(examples, **options)
    return Case(cfg, tokenizer, records, examples, arrays | Pictures(cfg.image)(pictures))
