"""The synthetic pair: the target holds the draft, and the dial does what it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import specdec_ref as sd
from specdec_ref.acceptance import acceptance_rate

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))  # a benchmark is a script; it imports from its own folder

from synthetic import SHAPES, Shape, Synthetic, dial, synthetic_pair  # noqa: E402

LARGE, SMALL = Shape(64, 5, 4, 2, 160, head=16), Shape(32, 3, 2, 1, 64, head=16)


def make(acceptance: float = 0.7) -> Synthetic:
    return synthetic_pair(
        LARGE, SMALL, acceptance, vocab_size=97, context=256, device="cpu", dtype=torch.float32, seed=3
    )


def test_without_the_further_layers_both_models_say_the_same() -> None:
    pair = make().pair
    for layer in pair.target.model.layers[SMALL.layers :]:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    text = torch.randint(97, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        mine, theirs = (model(text).logits.log_softmax(-1) for model in (pair.target, pair.draft))
    torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=0)


@pytest.mark.parametrize("wanted", [0.5, 0.7, 0.9])
def test_the_dial_gives_the_acceptance_asked_for(wanted: float) -> None:
    synthetic = make(wanted)
    assert synthetic.acceptance == pytest.approx(wanted, abs=0.02)
    text = torch.randint(97, (8, 64), generator=torch.Generator().manual_seed(9))  # not the text it was tuned on
    with torch.inference_mode():
        p, q = (model(text).logits.softmax(-1) for model in (synthetic.pair.target, synthetic.pair.draft))
    assert acceptance_rate(p, q).mean().item() == pytest.approx(wanted, abs=0.05)


def test_the_loop_accepts_what_the_dial_says() -> None:
    synthetic = make(0.7)
    prompts = [[i, 5, 2, 60] for i in range(24)]
    written = sd.generate_speculative(synthetic.pair, prompts, k=3, max_new_tokens=60, seed=1)
    rounds = [r for one in written for r in one.rounds]
    examined = sum(min(r.accepted + 1, len(r.drafted)) for r in rounds)
    assert sum(r.accepted for r in rounds) / examined == pytest.approx(0.7, abs=0.06)
    assert all(len(one.tokens) == 60 for one in written)


def test_the_dial_turns_both_ways() -> None:
    synthetic = make(0.9)
    lower = dial(synthetic, 0.5)
    assert lower.acceptance == pytest.approx(0.5, abs=0.02)
    assert lower.scale > synthetic.scale
    assert dial(lower, 0.9).scale == pytest.approx(synthetic.scale, rel=0.2)


def test_the_named_shapes_have_the_sizes_of_their_names() -> None:
    sizes = {name: shape.matrices / 1e9 for name, shape in SHAPES.items()}
    for name, size in sizes.items():
        assert size == pytest.approx(float(name.removesuffix("B")), rel=0.25), name


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"acceptance": 1.0}, "acceptance="),
        ({"acceptance": float("nan")}, "acceptance="),
        ({"acceptance": 0.001}, "cannot be had"),
        ({"target": "70B"}, "target="),
        ({"target": SMALL}, "does not fit"),
        ({"draft": Shape(64, 2, 4, 4, 64, head=16)}, "does not fit"),
        ({"draft": Shape(60, 2, 4, 2, 64, head=16)}, "heads"),
        ({"vocab_size": 1}, "vocab_size="),
    ],
)
def test_what_cannot_be_built_is_said(change: dict[str, object], says: str) -> None:
    arguments = {"target": LARGE, "draft": SMALL, "acceptance": 0.7, "vocab_size": 97, "context": 128} | change
    with pytest.raises(sd.SpecdecError, match=says):
        synthetic_pair(device="cpu", dtype=torch.float32, **arguments)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_gpu_benchmark_runs_at_small_shapes(tmp_path: Path) -> None:
    """Everything that it does on a GPU, but for the capturing of steps, is done here."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--small", "--device", "cpu"]
    done = subprocess.run([*command, "--json", str(tmp_path / "gpu.json")], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert {"bandwidth", "steps", "scoring", "speedups", "peers", "equivalence", "ratios"} <= set(report)
    assert {dtype: found["consistent"] for dtype, found in report["equivalence"].items()} == {
        "float32": True,
        "bfloat16": True,
    }
    assert report["steps"].keys() == {"floor", "plain", "graphs"}
    assert report["scoring"].keys() == {"1", "2"}
    assert {"ours", "transformers generate"} <= {name.split(",")[0] for name in report["peers"]["tokens_per_second"]}
    assert "goal 0.75" in done.stdout
    shown = done.stdout.splitlines()
    for name, value in (
        ("memory bandwidth, copied", f"{report['bandwidth']['copy'] / 1e9:.2f} GB/s"),
        ("floor of a step", f"{1000 * report['steps']['floor']:.2f} ms"),
    ):
        assert [line.endswith(value) for line in shown if name in line] == [True], done.stdout
    for way in ("plain", "graphs"):
        step, floor = report["steps"][way], report["steps"]["floor"]
        assert step["c"] == step["draft_step"] / step["target_step"]
        cells = [
            way,
            f"{1000 * step['target_step']:.3f}",
            f"{step['target_step'] / floor:.2f}",
            f"{1000 * step['draft_step']:.3f}",
            f"{step['c']:.3f}",
        ]
        assert cells in [line.split() for line in shown]
    assert "mean nothing" in report["machine"]["shapes"]


def test_the_gpu_benchmark_tells_a_wrong_device_in_one_line() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device=nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("gpu.py: device='nonsense'")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_benchmark_says_where_there_is_no_gpu() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "no CUDA GPU here" in done.stderr
