"""`data.scan`: what is read does not depend on where the blocks of a file are cut."""

import hashlib
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgm_jax.data import scan

TREE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def cut(data, size):
    return (data[at : at + size] for at in range(0, len(data), size))


def outcome(scanner, data, size):
    """Everything that is yielded and raised, and the records again from their places."""
    found = []
    try:
        for value, start, stop in scanner("f", cut(data, size)):
            found.append(str(value) if isinstance(value, ValueError) else value)
            if not isinstance(value, ValueError):
                assert json.loads(data[start:stop]) == value
    except ValueError as error:
        found.append(str(error))
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(TREE, min_size=1, max_size=5), st.integers(1, 40), st.booleans(), st.booleans())
def test_blocks_of_any_size(records, size, ascii_only, spread):
    text = json.dumps(records, ensure_ascii=ascii_only, indent=2 if spread else None)
    data = text.encode(errors="surrogatepass") if ascii_only else text.encode()
    assert outcome(scan.scan_list, data, size) == records
    rows = "\n".join(json.dumps(record, ensure_ascii=ascii_only) for record in records).encode()
    assert outcome(scan.scan_lines, rows, size) == records


@pytest.mark.parametrize("scanner", [scan.scan_list, scan.scan_lines])
@pytest.mark.parametrize(
    "text",
    [
        '[1, "é😀", {"a": [}]',
        '[{"a": 1}, {"a" 1}, {"b": "' + "x" * 100 + '"}]',
        '[\n{"a": "no end}, \n{"é": 2}]\n',
        '["bad \\u12', '["\\q"]', "[1, 2] 3", "[1 2]", "[tru]", "[1,\n\n ]", "[", "", " \n",
        "[-Infinity, -Infinitx]",
    ],
)  # fmt: skip
def test_errors_name_the_same_place_in_blocks_of_any_size(scanner, text):
    data = text.encode()
    whole = outcome(scanner, data, 1000)
    assert any(isinstance(x, str) and x.startswith("f") for x in whole)
    assert all(outcome(scanner, data, size) == whole for size in range(1, 40))


def test_bytes_that_are_not_utf8():
    data = '["é", "'.encode() + b"\xff" + b'"]' * 50
    for size in (1, 7, 1000):
        assert outcome(scan.scan_list, data, size)[-1] == "f: not UTF-8 text at byte 8"
    assert "not UTF-8 text at byte 2" in outcome(scan.scan_list, '["é'.encode()[:-1], 9)[-1]


@pytest.mark.parametrize("scanner", [scan.scan_list, scan.scan_lines])
@pytest.mark.parametrize("hostile", ["[" * 100_000, "[" + "9" * 5000 + "]"])
def test_hostile_values_are_an_error(scanner, hostile):
    found = outcome(scanner, f"[{hostile}".encode(), 10_000)
    assert found[-1].startswith("f") and "invalid JSON" in found[-1]


def test_a_syntax_error_is_found_without_reading_on():
    taken = []

    def data():
        for block in cut(b'[{"a": 1}, {"a" 1}' + b' {"a": 1},' * 1000, 100):
            taken.append(block)
            yield block

    with pytest.raises(ValueError, match="line 1 column 17"):
        list(scan.scan_list("f", data()))
    assert len(taken) <= 2


def test_memory_is_bounded(tmp_path):
    """64 MB of records: the window and what is read ahead stay far below."""
    path, record = tmp_path / "f.json", json.dumps({"é": "x" * 1000}, ensure_ascii=False)
    path.write_text("[" + ",".join([record] * 64_000) + "]")
    tracemalloc.start()
    digest = hashlib.sha256()
    count = sum(1 for _ in scan.scan_list(str(path), scan.blocks(str(path), digest)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 64_000 and peak < 16e6
    assert digest.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()
