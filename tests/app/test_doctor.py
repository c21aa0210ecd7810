"""`workbench doctor`: exit codes, one screen of text, JSON of a fixed shape, models by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.config import NANO
from model.lm import MoELM
from workbench.app.cli import main
from workbench.app.doctor import as_json, as_text
from workbench.app.named_model import ModelBroken, ModelNotFound, named_model
from workbench.capture.checkup.checkup import Plan, check_up
from workbench.capture.checkup.overhead import Interval

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
TINY = replace(
    NANO, d_model=32, n_layers=2, n_heads=4, n_key_value_heads=2, d_mlp=16, num_experts=8,
    experts_per_token=2, n_ctx=32,
)  # fmt: skip
MODELS = f"""
from dataclasses import replace
import torch
from model.config import MoEConfig
from model.lm import MoELM
TINY = MoEConfig(**{TINY.to_dict()})
def healthy(): return MoELM(TINY)
def asleep(): return MoELM(TINY).eval()
def plain(): return torch.nn.Linear(2, 2)
def number(): return 3
def broken(): raise KeyError("no\\nsuch")
def leaves(): raise SystemExit(0)
"""


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A module of models in the working folder, under a name of its own."""
    name = f"models_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("workbench.capture.checkup.machine.file_system", lambda folder: "ext4")
    monkeypatch.setattr("workbench.capture.checkup.checkup.SECONDS", 0.1)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return name


def doctor(capsys, *arguments):
    code = 0
    try:
        main(["doctor", *map(str, arguments)])
    except SystemExit as leave:
        code = leave.code or 0
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def checkup(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disk")
    plan = Plan(rows=4, length=16, step_seconds=1.0, into=folder, omp_wait_policy="PASSIVE")
    return check_up(MoELM(TINY), plan, seconds=0.1)


def test_a_healthy_model_leaves_with_0_and_says_what_is_captured(models, capsys, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    code, out, err = doctor(
        capsys, f"{models}:healthy", "--batch", 2, "--length", 8, "--step-seconds", 1
    )
    assert (code, err) == (0, "")
    assert "2 routers (Router) of 8 experts, 2 a token" in out
    assert "a step of 2 x 8 = 16 tokens" in out
    assert "the loss is the same bit for" in " ".join(out.split())
    assert "healthy" in out


def test_a_fault_that_loses_data_leaves_with_1_and_is_named(models, capsys):
    code, out, _ = doctor(capsys, f"{models}:asleep", "--batch", 2, "--length", 8)
    assert code == 1
    assert "LOSES DATA    evaluation-mode" in out
    assert "model.train()" in out


def test_the_trainers_retention_decides_the_exit_code(models, capsys):
    small = (
        f"{models}:healthy",
        "--batch",
        2,
        "--length",
        8,
        "--step-seconds",
        1,
        "--checkpoints",
        40,
    )
    code, out, _ = doctor(capsys, *small, "--keep", 3)
    assert code == 1
    assert "the trainer keeps 3 of 40 checkpoints" in out
    code, out, _ = doctor(capsys, *small)
    assert code == 0
    assert "= 40 checkpoints" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nanno"], 3, "no model 'nanno': expected a preset"),
        (["some/hub-name"], 3, "Models are not downloaded"),
        (["../../etc/passwd"], 3, "no model"),
        (["{tmp}"], 3, "has no config.json"),
        (["{models}:none"], 3, "has no function 'none'"),
        (["no_such_package.here:f"], 3, "no module 'no_such_package'"),
        (["{models}:broken"], 1, "broken() failed: KeyError: 'no\\nsuch'"),
        (["{models}:leaves"], 1, "leaves() failed: SystemExit: 0"),
        (["{models}:number"], 2, "returned int; expected an nn.Module"),
        (["a;rm -rf:f"], 3, "no model"),
        ([""], 3, "no model ''"),
        (["nano", "--length", "999"], 2, "takes at most 128 positions"),
        (["nano", "--keep", "3"], 2, "give both"),
        (["nano", "--checkpoints", "0"], 2, "must be 1 or more"),
        (["nano", "--step-seconds", "1", "--steps-per-day", "9"], 2, "say the same"),
        (["nano", "--steps-per-day", "-1"], 2, "must be above 0"),
        (["nano", "--steps-per-day", "0"], 2, "--steps-per-day 0.0: must be above 0"),
        (["nano", "--steps-per-day", "inf"], 2, "--steps-per-day inf: must be above 0, and finite"),
        (["nano", "--steps-per-day", "nan"], 2, "--steps-per-day nan: must be above 0, and finite"),
        (["nano", "--step-seconds", "inf"], 2, "must be above 0, and finite"),
        (["nano", "--step-seconds", "0"], 2, "must be above 0"),
        (["nano", "--traces", "2"], 2, "from 0 to 1"),
        (["nano", "--device", "gpu"], 2, "expected auto, cpu, cuda"),
    ],
)
def test_what_cannot_be_is_one_clear_line(arguments, code, message, models, tmp_path, capsys):
    filled = [a.format(tmp=tmp_path, models=models) for a in arguments]
    found, out, err = doctor(capsys, *filled)
    assert (found, out) == (code, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "config",
    [
        "{nope",
        "[]",
        '{"model_type": "no-such-family"}',
        '{"model_type": "mixtral", "hidden_size": "wide"}',
        '{"model_type": "x", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}',
    ],
)
def test_a_hostile_folder_is_one_clear_line_and_its_code_is_not_run(config, tmp_path):
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    with pytest.raises(ModelBroken, match="gives no model") as refused:
        named_model(str(tmp_path), CPU)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "owned").exists()


def write_mixtral(folder, **sizes):
    from transformers import MixtralConfig

    sizes = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 64,
        "num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4,
        "max_position_embeddings": 48,
    } | sizes  # fmt: skip
    MixtralConfig(**sizes).save_pretrained(folder)


def test_a_hugging_face_folder_is_built_from_its_configuration_to_train(tmp_path):
    write_mixtral(tmp_path)
    for name in (tmp_path, tmp_path / "config.json"):
        found = named_model(str(name), CPU)
        assert type(found.model).__name__ == "MixtralForCausalLM"
        assert (found.longest, found.model.training) == (48, True)
        assert {p.device.type for p in found.model.parameters()} == {"cpu"}


def test_what_is_too_large_is_made_of_shapes_alone(tmp_path):
    write_mixtral(tmp_path, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32)
    for name in (str(tmp_path), "base", "dbrx"):
        model = named_model(name, CPU).model
        assert {p.device.type for p in model.parameters()} == {"meta"}
        assert model.training


def test_a_preset_brings_the_batch_of_its_own_plan():
    found = named_model("NANO", CPU)
    assert (found.rows, found.length, found.longest) == (64, 64, 128)


def test_a_module_that_fails_on_its_own_import_is_not_called_missing(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "needs_more_of_it.py").write_text("import no_such_dependency")
    with pytest.raises(ModelBroken, match="no_such_dependency"):
        named_model("needs_more_of_it:f", CPU)
    with pytest.raises(ModelNotFound):
        named_model("needs_less_of_it:f", CPU)


def test_the_text_is_one_screen_and_never_wider_than_asked(checkup):
    for width in (80, 110):
        lines = as_text("tiny", checkup, width).splitlines()
        assert len(lines) <= 40
        assert max(map(len, lines)) <= width
    labels = [line.split()[0] for line in lines if line[:1] not in ("", " ")]
    assert labels[:7] == [
        "model", "captured", "machine", "folder", "record", "step", "overhead"
    ]  # fmt: skip


def test_the_columns_of_the_record_are_aligned(checkup):
    lines = as_text("tiny", checkup, 100).splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("record"))
    table = [line for line in lines[begin : begin + 7] if "disk" not in line]
    assert len({len(line) for line in table}) == 1


def test_an_effect_in_the_noise_is_said_to_be_so_and_not_a_number(checkup):
    cost = checkup.trial.overhead
    hidden, shown, few = (
        replace(cost, capture=Interval(median=0.012, low=low, high=high, of=of))
        for low, high, of in ((-0.03, 0.05, 40), (0.01, 0.014, 40), (0.01, 0.014, 5))
    )
    said = [
        " ".join(as_text("t", replace(checkup, trial=replace(checkup.trial, overhead=c))).split())
        for c in (hidden, shown, few)
    ]
    assert "capture: too small to tell from this machine's noise (-3.0% to +5.0%, 95 %)" in said[0]
    assert "+1.2%" not in said[0]
    assert "capture: +1.2% of a step (+1.0% to +1.4%, 95 %)" in said[1]
    assert "capture: 5 steps are too few to tell (+1.0% to +1.4%, all of them)" in said[2]


def test_the_json_has_the_shape_that_machines_rely_on(checkup):
    plain = json.loads(json.dumps(as_json("tiny", checkup)))
    assert plain["format_version"] == 1
    assert (plain["model"], plain["healthy"]) == ("tiny", True)
    assert {name: sorted(part) for name, part in plain.items() if isinstance(part, dict)} == {
        "plan": [
            "coactivation_every", "domains", "into", "length", "omp_wait_policy", "retention",
            "rows", "step_seconds", "traces",
        ],
        "machine": [
            "blocked_by", "cores", "device", "device_name", "file_system", "folder", "free_bytes",
            "joined", "load", "locks", "omp_wait_policy", "op", "packages", "python",
            "sync_seconds", "threads", "triton", "world_size", "writable",
        ],
        "seen": [
            "compiled", "embedding", "model", "no_embedding", "parameters", "recomputes",
            "refusal", "routers", "training", "vocabulary",
        ],
        "trial": ["alters_input", "failure", "miscount", "overhead"],
        "size": [
            "checkpoint", "coactivation", "commit_seconds", "slow_table_bytes", "step",
            "traced_token",
        ],
        "per_step": ["raw", "stored"],
        "per_day": ["raw", "stored"],
    }  # fmt: skip
    assert sorted(plain["trial"]["overhead"]) == [
        "bare", "beyond_op_p99", "capture", "inside_p50", "inside_p99", "loss_unchanged",
        "op_per_layer", "rounds", "with_traces",
    ]  # fmt: skip
    assert sorted(plain["seen"]["routers"][0]) == [
        "experts", "k", "kind", "name", "scores", "training"
    ]  # fmt: skip


def test_json_is_all_that_is_printed(models, capsys):
    code, out, err = doctor(
        capsys, f"{models}:plain", "--json", "--steps-per-day", 86400, "--traces", 0
    )
    plain = json.loads(out)
    assert (code, err) == (1, "")
    assert plain["plan"]["step_seconds"] == 1.0
    assert [sorted(fault) for fault in plain["faults"]] == [
        ["expected", "found", "loses", "name", "remedy"]
    ]
    assert plain["faults"][0]["name"] == "routers-refused"


def test_help_answers_at_once():
    probe = (
        "import sys; from workbench.app.cli import main\n"
        "try: main(['doctor', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'xarray', 'plotly', 'zarr', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    before = os.times()
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True, capture_output=True)
    after = os.times()
    spent = after.children_user + after.children_system
    assert spent - before.children_user - before.children_system < 0.5
