"""The loop: it learns, it repeats itself to the bit, it stops well and refuses what is not finite."""

from __future__ import annotations

import io
import json
import os
import signal

import pytest
import torch
from PIL import Image

from safelight import DDIMScheduler
from safelight.errors import ConfigError, InputError, NonFiniteError, RepositoryError, WeightsError
from safelight.training import checkpoints, hooks
from safelight.training.objectives import DenoisingObjective
from safelight.training.trainer import Hook

from ..helpers.training import TinyNetwork, all_tensors, tiny_trainer


def objective():
    return DenoisingObjective(DDIMScheduler(prediction_type="v_prediction"), label_dropout=0.2, null_label=2)


def assert_identical(one, other):
    one, other = all_tensors(one), all_tensors(other)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


class Losses(Hook):
    def __init__(self):
        self.values = []

    def after_step(self, trainer, record):
        self.values.append(record["loss"])


def test_straight_through_equals_stopped_and_resumed(tmp_path):
    straight = tiny_trainer(objective())
    straight.run()
    first = tiny_trainer(objective(), [hooks.Checkpoints(tmp_path)])
    first.run(until=4)
    torch.manual_seed(1234)  # a resumed process has other global random numbers
    second = tiny_trainer(objective(), [hooks.Checkpoints(tmp_path)])
    second.load_checkpoint(checkpoints.newest(tmp_path))
    assert second.step == 4
    assert_identical(first, second)
    second.run()
    assert_identical(straight, second)


def test_accumulation_gives_the_large_batch():
    whole = tiny_trainer(objective(), network=TinyNetwork(dropout=0.0))
    parts = tiny_trainer(objective(), network=TinyNetwork(dropout=0.0), accumulation=4)
    for trainer in (whole, parts):
        trainer.run()
    assert [len(seen["timestep"]) for seen in parts.model.seen[:4]] == [2] * 4
    for name in ("sample", "timestep", "class_labels"):
        assert torch.equal(torch.cat([seen[name] for seen in parts.model.seen[:4]]), whole.model.seen[0][name])
    pairs = zip(whole.model.parameters(), parts.model.parameters(), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) < 1e-5


def test_training_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    tiny_trainer(objective()).run(until=2)
    assert torch.equal(torch.rand(3), expected)


def test_rate_follows_the_schedule_and_gradients_are_clipped():
    records = []

    class Records(Hook):
        def after_step(self, trainer, record):
            gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
            records.append({**record, "left": len(gradients)})

    tiny_trainer(objective(), [Records()], schedule="linear", steps=10, warmup=2).run()
    assert [round(record["learning_rate"], 6) for record in records[:3]] == [0.005, 0.01, 0.00875]
    assert records[-1]["learning_rate"] == 0
    assert records[-1]["epoch"] == pytest.approx(80 / 11)
    moved = {}
    for limit in (None, 1e-4):
        trainer = tiny_trainer(objective(), max_grad_norm=limit)
        trainer.optimizer = torch.optim.SGD(trainer.parameters, lr=1.0)
        before = [parameter.detach().clone() for parameter in trainer.parameters]
        trainer.train_step(trainer.data.batch(torch.arange(8)))
        change = [(a - b).square().sum() for a, b in zip(trainer.parameters, before, strict=True)]
        moved[limit] = sum(change).sqrt().item() / trainer.optimizer.param_groups[0]["lr"]
    assert moved[1e-4] == pytest.approx(1e-4, rel=0.05) and moved[None] > 10 * moved[1e-4]


@pytest.mark.parametrize("where", ["weights", "data"])
def test_non_finite_loss_names_the_step_and_changes_nothing(where):
    trainer = tiny_trainer(objective())
    trainer.run(until=3)
    before = {name: value.clone() for name, value in all_tensors(trainer).items()}
    batch = trainer.data.batch(torch.arange(8))
    if where == "weights":
        trainer.model.leave.bias.data.fill_(float("nan"))
        before["leave.bias"] = trainer.model.leave.bias.data.clone()
    else:
        batch["images"][2, 0, 1, 1] = float("inf")
    with pytest.raises(NonFiniteError, match="of step 4 is"):
        trainer.train_step(batch)
    after = all_tensors(trainer)
    assert all(torch.equal(after[name], before[name]) for name in before if name != "leave.bias")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_ends_the_step_and_saves(tmp_path, number):
    class Interrupt(Hook):
        def after_step(self, trainer, record):
            if trainer.step == 3:
                os.kill(os.getpid(), number)

    trainer = tiny_trainer(objective(), [Interrupt(), hooks.Checkpoints(tmp_path)])
    handler = signal.getsignal(number)
    trainer.run()
    assert trainer.interrupted and trainer.step == 3
    assert signal.getsignal(number) is handler
    resumed = tiny_trainer(objective())
    resumed.load_checkpoint(checkpoints.newest(tmp_path))
    assert_identical(trainer, resumed)


def test_checkpoints_are_pruned_and_appear_whole(tmp_path, monkeypatch):
    trainer = tiny_trainer(objective(), [hooks.Checkpoints(tmp_path, every=2, keep=2)])
    trainer.run()
    assert [path.name for path in checkpoints.found(tmp_path)] == ["step-00000008", "step-00000010"]
    files = list((tmp_path / "step-00000010").iterdir())
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    assert len({path.stat().st_mode for path in files}) == 1

    def crash(*args):
        raise OSError("no space left")

    monkeypatch.setattr(checkpoints, "write_json", crash)
    trainer.step = 12
    with pytest.raises(OSError, match="no space left"):
        trainer.save_checkpoint(tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000008", "step-00000010"]


def test_checkpoints_that_do_not_fit(tmp_path):
    with pytest.raises(RepositoryError, match="no checkpoint"):
        checkpoints.newest(tmp_path)
    place = tiny_trainer(objective()).save_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="has batch_size 8, now it is 4"):
        tiny_trainer(objective(), batch_size=4).load_checkpoint(place)
    with pytest.raises(WeightsError, match=r"'classes\.weight' \(checkpoint: \(3, 8\), model: \(5, 8\)\)"):
        tiny_trainer(objective(), network=TinyNetwork(classes=5)).load_checkpoint(place)
    file = place / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(WeightsError, match=r"model\.safetensors' is missing or damaged"):
        tiny_trainer(objective()).load_checkpoint(place)


def test_optimizer_state_survives_files():
    parameter = torch.nn.Parameter(torch.ones(3))
    for make in (torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop, torch.optim.SGD):
        first, second = make([parameter], lr=0.1), make([parameter], lr=0.5)
        parameter.grad = torch.ones(3)
        first.step()
        tensors, rest = checkpoints.flatten_optimizer(first.state_dict())
        second.load_state_dict(checkpoints.unflatten_optimizer(tensors, json.loads(json.dumps(rest))))
        assert str(second.state_dict()) == str(first.state_dict())


def test_hooks_write_progress_metrics_and_grids(tmp_path):
    stream, shown = io.StringIO(), []

    def sample(model):
        assert not model.training
        shown.append(model.leave.bias.detach().clone())
        return Image.new("L", (4, 4))

    def trainer():
        log = hooks.MetricsLog(tmp_path / "metrics.jsonl", every=2)
        return tiny_trainer(
            objective(), [hooks.Progress(0.0, stream), log, hooks.SampleGrids(tmp_path, sample, every=5)]
        )

    first = trainer()
    first.run(until=6)
    first.save_checkpoint(tmp_path / "checkpoints")
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "loss": 9}\n{"ste')  # written after the checkpoint, then killed
    second = trainer()
    second.load_checkpoint(checkpoints.newest(tmp_path / "checkpoints"))
    second.run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10]
    assert all(0 < line["loss"] < 9 for line in lines)
    assert "step 10/10 (100.0 %)" in stream.getvalue() and "0:00:00 left" in stream.getvalue()
    assert [path.name for path in sorted(tmp_path.glob("*.png"))] == ["step-00000005.png", "step-00000010.png"]
    average = dict(zip(dict(second.model.named_parameters()), second.ema.shadow_params, strict=True))
    assert torch.equal(shown[-1], average["leave.bias"])
    assert second.model.training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 10, "accumulation": 4}, "cannot be cut into 4"),
        ({"accumulation": 4, "parallel": 3}, "accumulation 4 cannot be done 3 at a time"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"ema_decay": 1.5}, "ema_decay is 1.5"),
        ({"precision": "bf16"}, "precision is 'bf16'; did you mean"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_trainer(objective(), **changes)


def test_nothing_to_train():
    with pytest.raises(InputError, match="there is nothing to train"):
        tiny_trainer(objective(), network=TinyNetwork().requires_grad_(False))


def test_parallel_micro_batches_give_the_same_bits():
    trainers = [
        tiny_trainer(objective(), network=TinyNetwork(dropout=0.0), accumulation=4, parallel=parallel)
        for parallel in (1, 2)
    ]
    for trainer in trainers:
        trainer.run()
    assert_identical(*trainers)
    with pytest.raises(ConfigError, match="dropout in no fixed order"):
        tiny_trainer(objective(), accumulation=2, parallel=2)
