"""`data.stream`: what a run's data config may say, and what a resumed run has to find again."""

import json

import pytest

from mgm_jax.data.stream import check_identity, open_stream
from mgm_jax.run import prepare
from mgm_jax.settings import TrainingError


@pytest.fixture
def write(tmp_path):
    """(name, count) -> a file of text-only records."""

    def write(name, count, first=0):
        talk = [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "three"}]
        records = [
            {"id": f"r{i}", "conversations": [talk[0] | {"value": f"{i} a?"}, talk[1]]}
            for i in range(first, first + count)
        ]
        (tmp_path / name).write_text(json.dumps(records))
        return str(tmp_path / name)

    return write


def config(tiny_config, sources, **values):
    c = tiny_config(**values)
    del c.data.sources.main
    c.data.sources.update(sources)
    return c


@pytest.mark.parametrize(
    "values,message",
    [
        (dict(data__batching="pak"), "config.data.batching is 'pak', expected .*'pack'"),
        (dict(data__group_rows=3), r"batch 8 in groups of 3 rows .* does not divide over 1"),
        (
            dict(data__length_grouping=True, data__batching="pack"),
            "length_grouping.*expected 'pad'",
        ),
        (dict(data__length_grouping=True, data__microbatch=3), "batch 8.*data.microbatch 3"),
        (dict(data__batching="pack", switches__loss_reduction="microbatch"), "'pack'; set it to"),
        (dict(epochs=2), "config.steps is 6 and config.epochs 2, expected one of them"),
        (dict(steps=0), "config.steps is 0 and config.epochs None, expected one of them"),
        (dict(data__window=0), "config.data.window is 0, expected at least 1"),
        (dict(data__slots=0), "config.data.slots is 0, expected at least 1"),
        (dict(data__sources__main__path=""), "sources.main.path is not set"),
        (dict(data__sources__main__weight=0.0), "sources.main.weight is 0.0, expected more than 0"),
        (dict(data__slots=1), "1 picture slots, expected at least 8: 8 padded rows"),
    ],
)
def test_bad_configs(values, message, tiny_config):
    with pytest.raises(ValueError, match=message):
        open_stream(tiny_config(**values)).batch(0)


def test_shards_that_do_not_divide(tiny_config):
    with pytest.raises(TrainingError, match="does not divide over 16 batch shards"):
        open_stream(tiny_config(), shards=16)


def test_unknown_keys_and_no_source(tiny_config, write):
    sources = {"a": {"path": write("a.json", 20), "wieght": 2.0}}
    with pytest.raises(TrainingError, match="sources.a has the key 'wieght', expected .*'weight'"):
        open_stream(config(tiny_config, sources))
    with pytest.raises(TrainingError, match="config.data.sources is empty"):
        open_stream(config(tiny_config, {}))


def test_records_in_two_sources_are_warned_about(tiny_config, write, capsys):
    sources = {"all": {"path": write("a.json", 40)}, "part": {"path": write("b.json", 20, 10)}}
    open_stream(config(tiny_config, sources))
    assert "warning: data.sources.part and data.sources.all overlap" in capsys.readouterr().err


def test_epochs_are_steps(tiny_config, write):
    sources = {"a": {"path": write("a.json", 20)}}
    c = config(tiny_config, sources, steps=0, epochs=3, data__batching="pad", data__batch=8)
    assert prepare(c).steps == 8  # 60 rows, the last batch half empty


def test_a_resumed_run_finds_its_data_and_layout(tiny_config, write):
    sources = {"a": {"path": write("a.json", 20)}, "b": {"path": write("b.json", 30, 20)}}
    began = open_stream(config(tiny_config, sources), shards=4).identity
    assert began["group_rows"] == 2
    # Another mesh: the same groups, though the config leaves them open.
    again = open_stream(config(tiny_config, sources), shards=2, kept=began).identity
    check_identity(again, began, "state")
    with pytest.raises(TrainingError, match="state: the run began with data.group_rows 2, found 8"):
        check_identity(open_stream(config(tiny_config, sources)).identity, began, "state")
    write("b.json", 31, 20)
    changed = open_stream(config(tiny_config, sources), kept=began).identity
    with pytest.raises(TrainingError, match="source 'b' has changed .* 30 records.* found 31"):
        check_identity(changed, began, "state")
    del sources["a"]
    fewer = open_stream(config(tiny_config, sources), kept=began).identity
    with pytest.raises(TrainingError, match=r"began with the sources \['a', 'b'\], found \['b'\]"):
        check_identity(fewer, began, "state")
