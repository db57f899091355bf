"""Numbers of the published checkpoints, to compare ours with.

Source: table "Performance" of the README of github.com/JIA-Lab-research/MGM (MGM_SPEC 9.1).
"""

from __future__ import annotations

README = """
model        textvqa mmbench mme_p mme_c mmvet mmmu_val mmmu_test mathvista
MGM-2B       56.2    59.8    1341  312   31.1  31.7     29.1      29.4
MGM-7B       65.2    69.3    1523  316   40.8  36.1     32.8      31.4
MGM-13B      65.9    68.5    1565  322   46.0  38.1     33.5      37.0
MGM-8B       67.6    72.7    1606  341   47.3  38.2     36.3      -
MGM-8x7B     69.2    75.6    1639  379   45.8  41.8     37.1      41.8
MGM-34B      70.1    79.6    1666  439   53.0  48.7     43.6      38.9
MGM-7B-HD    68.4    65.8    1546  319   41.3  36.8     32.9      32.2
MGM-13B-HD   70.2    68.6    1597  320   50.5  37.3     35.1      37.0
MGM-8B-HD    71.6    -       1532  357   -     37.0     -         -
MGM-8x7B-HD  71.9    74.7    1633  356   53.5  40.0     37.0      43.1
MGM-34B-HD   74.1    80.6    1659  482   59.3  48.0     44.9      43.3
"""


def published(**columns: str) -> dict[str, dict[str, float]]:
    """{model: {metric: number}} of metric=column, for the models that have one of them."""
    head, *rows = (line.split() for line in README.split("\n") if line)
    table = {}
    for model, *cells in rows:
        numbers = dict(zip(head[1:], cells, strict=True))
        found = {m: float(numbers[c]) for m, c in columns.items() if numbers[c] != "-"}
        if found:
            table[model] = found
    return table
