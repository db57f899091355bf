"""`data.length_groups` against the sampler of MGM_SPEC 6.5 on torch's own random numbers."""

import numpy as np
import pytest

from mgm_jax.data.length_groups import TorchRandom, modality_order

torch = pytest.importorskip("torch", reason="the original's random numbers are torch's")


@pytest.mark.parametrize("seed", [0, 42, 2**32 + 5])
def test_permutations_are_those_of_torch(seed):
    torch.manual_seed(seed)
    random = TorchRandom(seed)
    for n in (0, 1, 2, 5, 1000, 70_000):
        assert random.permutation(n) == torch.randperm(n).tolist()


def reference(lengths, batch, world):
    """MGM_SPEC 6.5, word for word, on Python lists."""

    def group(sizes):
        order = torch.randperm(len(sizes)).tolist()
        out = []
        for at in range(0, len(order), batch * world):
            mega = sorted(order[at : at + batch * world], key=lambda i: -sizes[i])
            if len(mega) % world:
                chunks = [mega[i::world] for i in range(world)]
            else:
                chunks, totals = [[] for _ in range(world)], [0.0] * world
                for i in mega:
                    smallest = min(range(world), key=lambda c: (totals[c], c))
                    chunks[smallest].append(i)
                    totals[smallest] += sizes[i]
                    if len(chunks[smallest]) == len(mega) // world:
                        totals[smallest] = float("inf")
            out += [i for chunk in chunks for i in chunk]
        return out

    signs = [[i for i, n in enumerate(lengths) if n * sign > 0] for sign in (1, -1)]
    if not all(signs):
        return group([abs(n) for n in lengths])
    megas = []
    for members in signs:
        order = [members[i] for i in group([abs(lengths[i]) for i in members])]
        megas.append([order[i : i + batch * world] for i in range(0, len(order), batch * world)])
    whole = megas[0][:-1] + megas[1][:-1]
    shuffled = [whole[i] for i in torch.randperm(len(whole)).tolist()]
    return [i for mega in shuffled for i in mega] + sorted(megas[0][-1] + megas[1][-1])


@pytest.mark.parametrize("batch,world", [(4, 3), (8, 1), (1, 16), (2, 8)])
@pytest.mark.parametrize("n,text", [(1000, 0.3), (97, 0.5), (200, 0.0), (50, 1.0), (5, 0.5)])
def test_order(batch, world, n, text):
    rng = np.random.default_rng(n)
    lengths = rng.integers(1, 300, n) * np.where(rng.random(n) < text, -1, 1)
    found = modality_order(lengths, batch, world, seed=42)
    torch.manual_seed(42)
    assert found.tolist() == reference(lengths.tolist(), batch, world)


def test_a_record_without_words_is_named():
    with pytest.raises(ValueError, match="record 2 has no words"):
        modality_order([3, -1, 0], 1, 1, 0)
