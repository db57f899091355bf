"""The HLO reader and the clock, on small programs written by hand, and on one that XLA made."""

import jax
import jax.numpy as jnp
import pytest

from mgm_jax.plan.hlo import Loop, Op, Program, replica_groups, size
from mgm_jax.plan.links import EFFICIENCY, HOP
from mgm_jax.plan.links import LATENCY as LINK_LATENCY
from mgm_jax.plan.timing import STREAM, module_of, time_program
from mgm_jax.topologies import CHIPS

CHIP = CHIPS["v5e"]
LAYERS = """HloModule jit_step, is_scheduled=true, num_partitions=4

%body (p: (s32[], f32[1024,1024])) -> (s32[], f32[1024,1024]) {
  %p = (s32[], f32[1024,1024]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[1024,1024]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %w = f32[256,1024]{1,0:T(8,128)} constant({...})
  %gather-start = (SHARD, WHOLE) all-gather-start(%w), GROUPS
  %dot = f32[1024,1024]{1,0:T(8,128)} dot(%x, %x), DOT
  %gather-done = f32[1024,1024]{1,0:T(8,128)} all-gather-done(%gather-start)
  ROOT %out = (s32[], f32[1024,1024]{1,0:T(8,128)}) tuple(%next, %dot)
}

%condition (p: (s32[], f32[1024,1024])) -> pred[] {
  %p = (s32[], f32[1024,1024]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %limit = s32[] constant(LIMIT)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (x: f32[1024,1024]) -> f32[1024,1024] {
  %x = f32[1024,1024]{1,0:T(8,128)} parameter(0)
  %start = s32[] constant(2)
  %init = (s32[], f32[1024,1024]{1,0:T(8,128)}) tuple(%start, %x)
  %loop = (s32[], f32[1024,1024]{1,0:T(8,128)}) while(%init), condition=%condition, body=%body
  ROOT %y = f32[1024,1024]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""
DOT = (
    "lhs_contracting_dims={1}, rhs_contracting_dims={0}, "
    'metadata={op_name="jit(step)/llm/layers/mlp/gate_proj/dot_general"}, '
    'backend_config={"window_config":{"estimated_cycles":"CYCLES"}}'
)
GROUPS = "channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}"
SIZES = {"SHARD": "f32[256,1024]{1,0:T(8,128)}", "WHOLE": "f32[1024,1024]{1,0:T(8,128)}"}
for short, shape in SIZES.items():
    LAYERS = LAYERS.replace(short, shape)
LAYERS = LAYERS.replace("DOT", DOT).replace("GROUPS", GROUPS)
COORDS = [[0, 0], [0, 1], [1, 0], [1, 1]]


def layers(cycles=15_000_000, limit=34):
    return Program(LAYERS.replace("CYCLES", str(cycles)).replace("LIMIT", str(limit)))


def clock(program):
    return time_program(program, CHIP, COORDS, [0] * 4, CHIP.ring)


def test_rounds_of_a_loop():
    program = layers()
    loop = program.named["main"]["loop"]
    assert program.trips("main", loop) == 32
    assert layers(limit=1).trips("main", loop) == 0


def test_rounds_of_nested_loops_that_xla_made():
    def f(x):
        def inner(x, _):
            return jnp.sin(x) * 2, None

        def outer(x, _):
            return jax.lax.scan(inner, x, None, length=7)[0] + 1, None

        return jax.lax.scan(outer, x, None, length=5)[0]

    text = jax.jit(f).lower(jnp.ones((512, 512))).compile().as_text()
    program, rounds = Program(text), []

    def walk(computation, outer):
        for op in program.ops[computation]:
            if op.code == "while":
                rounds.append(program.trips(computation, op, outer))
                walk(op.calls("body"), Loop(computation, op, outer))
            elif op.code == "call":
                walk(op.calls("to_apply"), outer)

    walk(program.entry, None)
    assert rounds == [5, 7]


def test_a_loop_costs_its_rounds():
    time = clock(layers(cycles=15_000_000))  # 10 ms at 1.5 GHz; the gather takes less
    assert time.seconds == pytest.approx(32 * 0.010, rel=1e-9)
    assert time.flops == 32 * 2 * 1024**3
    assert time.split["collective"] == 0
    assert time.modules["mlp"] == pytest.approx(0.32)
    assert time.traffic["all-gather"].count == 32
    assert time.traffic["all-gather"].bytes == 32 * 4 * 2**20


def test_a_gather_is_exposed_where_nothing_hides_it():
    time, chip = clock(layers(cycles=1500)), CHIP
    gather = 3 * 2**20 / (2 * chip.link * EFFICIENCY) + LINK_LATENCY + 2 * HOP
    product = 12 * 2**20 / (chip.bandwidth * STREAM)  # HBM is slower than these cycles
    assert time.traffic["all-gather"].seconds == pytest.approx(32 * gather, rel=1e-9)
    assert time.traffic["all-gather"].exposed == pytest.approx(32 * (gather - product), rel=1e-9)
    assert time.seconds == pytest.approx(32 * gather, rel=1e-9)


def test_sizes_are_those_of_tiles():
    assert size("f32[8,128]{1,0:T(8,128)}") == 4096
    assert size("f32[9,100]{1,0:T(8,128)}") == 2 * 4096
    assert size("(bf16[2,4], s32[3])") == 28
    assert size("f32[8,128]{1,0:T(8,128)S(1)}", hbm_only=True) == 0


def op(rest):
    return Op("x", "f32[]", "all-gather", [], "", rest, False)


@pytest.mark.parametrize(
    "text,groups",
    [
        ("{{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
        ("mesh['a'=4] {'a'}", [[0, 1, 2, 3]]),
    ],
)
def test_groups(text, groups):
    assert (
        replica_groups(op(f", channel_id=1, replica_groups={text}, dimensions={{0}}"), 4) == groups
    )


def test_modules():
    path = "jit(step)/transpose(jvp(Mgm.loss))/llm/llm._run/while/body/layers/attn/q_proj/dot"
    assert module_of(path) == "attn"
    assert module_of("jit(step)/jvp(Mgm.loss)/shard_map/while/body/dot_general") == "loss"
    assert module_of("jit(step)/add") == "optimizer and the rest"


def test_text_that_is_no_program():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        Program("HloModule nothing\n")
