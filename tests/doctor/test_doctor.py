"""What the doctor finds, in the words in which a start is refused; the damaged files of the list
T39, each made from a whole model.
"""

import json
import math
import os
import resource
import shutil
import socket
import struct
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from qwenapi.doctor import machine, memory
from qwenapi.doctor.check import GIB, Outcome, refused
from qwenapi.doctor.memory import Room, check_memory, find_room, make_plan
from qwenapi.doctor.report import check_model, refuse_unfit
from qwenapi.settings.table import Settings, etc_dir
from tests.checkpoint.folders import LFS_POINTER
from tests.docs.pages import ROOT
from tests.doctor import rounded_sizes
from tests.pooling_folders import write_folder as write_pooling_folder
from workers.checkpoint.checkpoint import Checkpoint
from workers.checkpoint.model_config import ModelConfig
from workers.checkpoint.packings import WordPacking
from workers.checkpoint.rounding import num_rounded
from workers.checkpoint.safetensors_header import StoredTensor
from workers.checkpoint.weights import Weights
from workers.errors import ConfigError

DEMO = etc_dir() / "models" / "demo"
WEIGHTS = "model.safetensors"
# Of a core's time, whatever else the machine does.
MUST_NAME_WITHIN = 5.0


@pytest.fixture
def copy(tmp_path) -> Path:
    """Return a copy of the demo model's files, to be damaged."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in (*DEMO.glob("*.json"), *DEMO.glob("*.jinja"), DEMO / WEIGHTS):
        shutil.copy(file, folder)
    return folder


def change(file: Path, **changes) -> None:
    fields = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))


def header_of(file: Path) -> tuple[dict, bytes]:
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write(file: Path, header: dict, data: bytes) -> None:
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def command(
    name: str, *flags: object, prefix: tuple[str, ...] = ()
) -> "subprocess.CompletedProcess[str]":
    line = [*prefix, sys.executable, "-m", "qwenapi", name, *map(str, flags)]
    return subprocess.run(line, capture_output=True, text=True, timeout=60)


def outcomes(settings: Settings) -> dict[str, Outcome]:
    return {check.name: check.outcome for check in check_model(settings)}


def missing_shard(folder: Path) -> str:
    index = {"weight_map": {"a": WEIGHTS, "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return "model-00002-of-00002.safetensors"


def truncated(part: float):
    def damage(folder: Path) -> str:
        file = folder / WEIGHTS
        os.truncate(file, int(file.stat().st_size * part))
        return WEIGHTS

    damage.__name__ = f"truncated_at_{part:g}"
    return damage


def one_byte_short(folder: Path) -> str:
    file = folder / WEIGHTS
    os.truncate(file, file.stat().st_size - 1)
    return WEIGHTS


def a_header_of(length: int):
    def damage(folder: Path) -> str:
        with (folder / WEIGHTS).open("r+b") as file:
            file.write(struct.pack("<Q", length))
        return WEIGHTS

    damage.__name__ = f"a_header_of_{length}"
    return damage


def overlapping_offsets(folder: Path) -> str:
    header, data = header_of(folder / WEIGHTS)
    first, second = [name for name in header if name != "__metadata__"][:2]
    header[second]["data_offsets"] = header[first]["data_offsets"]
    write(folder / WEIGHTS, header, data)
    return WEIGHTS


def offsets_beyond_the_end(folder: Path) -> str:
    header, data = header_of(folder / WEIGHTS)
    name = next(name for name in header if name != "__metadata__")
    header[name]["data_offsets"] = [len(data), 2 * len(data)]
    write(folder / WEIGHTS, header, data)
    return WEIGHTS


def a_wrong_dtype(folder: Path) -> str:
    header, data = header_of(folder / WEIGHTS)
    header["model.norm.weight"]["dtype"] = "F32"
    write(folder / WEIGHTS, header, data)
    return WEIGHTS


def an_integer_dtype(folder: Path) -> str:
    header, data = header_of(folder / WEIGHTS)
    header["model.norm.weight"]["dtype"] = "I16"
    write(folder / WEIGHTS, header, data)
    return WEIGHTS


def a_swapped_shape(folder: Path) -> str:
    header, data = header_of(folder / WEIGHTS)
    header["model.layers.0.mlp.up_proj.weight"]["shape"].reverse()
    write(folder / WEIGHTS, header, data)
    return WEIGHTS


def a_huge_shape(folder: Path) -> str:
    header, data = header_of(folder / WEIGHTS)
    header["model.norm.weight"]["shape"] = [2**62, 2**62]
    write(folder / WEIGHTS, header, data)
    return WEIGHTS


def a_header_that_is_no_json(folder: Path) -> str:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 16) + b"{" * 16 + bytes(64))
    return WEIGHTS


def a_wrong_vocabulary(folder: Path) -> str:
    change(folder / "config.json", vocab_size=3001)
    return WEIGHTS


def a_tokenizer_of_another_model(folder: Path) -> str:
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": 3000, "content": "<x>"})
    file.write_text(json.dumps(tokenizer))
    return "tokenizer.json"


def more_layers_than_weights(folder: Path) -> str:
    change(folder / "config.json", num_hidden_layers=5, layer_types=None)
    return WEIGHTS


def a_loop_of_links(folder: Path) -> str:
    file = folder / WEIGHTS
    file.unlink()
    file.symlink_to(file)
    return WEIGHTS


def a_config_that_links_to_itself(folder: Path) -> str:
    file = folder / "config.json"
    file.unlink()
    file.symlink_to(file)
    return "config.json"


def an_empty_file(folder: Path) -> str:
    (folder / WEIGHTS).write_bytes(b"")
    return WEIGHTS


def a_git_lfs_pointer(folder: Path) -> str:
    (folder / WEIGHTS).write_bytes(LFS_POINTER)
    return WEIGHTS


def a_tokenizer_of_git_lfs(folder: Path) -> str:
    (folder / "tokenizer.json").write_bytes(LFS_POINTER)
    return "tokenizer.json"


def another_architecture(folder: Path) -> str:
    change(folder / "config.json", architectures=["LlamaForCausalLM"])
    return "config.json"


def another_packing(folder: Path) -> str:
    change(folder / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    return "config.json"


def no_hidden_size(folder: Path) -> str:
    change(folder / "config.json", hidden_size=-1)
    return "config.json"


DAMAGES = (
    missing_shard,
    *map(truncated, (0.0, 1e-6, 2e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)),
    one_byte_short,
    *map(a_header_of, (0, 1, 7, 2**31, 2**63, 2**64 - 1)),
    overlapping_offsets,
    offsets_beyond_the_end,
    a_wrong_dtype,
    an_integer_dtype,
    a_swapped_shape,
    a_huge_shape,
    a_header_that_is_no_json,
    a_wrong_vocabulary,
    a_tokenizer_of_another_model,
    more_layers_than_weights,
    a_loop_of_links,
    a_config_that_links_to_itself,
    an_empty_file,
    a_git_lfs_pointer,
    a_tokenizer_of_git_lfs,
    another_architecture,
    another_packing,
    no_hidden_size,
)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_model_is_refused_and_the_file_named(copy, damage):
    settings = replace(Settings(), model=str(copy))
    refuse_unfit(settings)  # whole, it is not
    name = damage(copy)
    started = time.process_time()
    with pytest.raises(ConfigError) as caught:
        refuse_unfit(settings)
    assert time.process_time() - started < MUST_NAME_WITHIN
    assert str(copy / name) in str(caught.value) and caught.value.exit_code == 78
    last = list(check_model(settings))[-1]
    # The library names the first of several faults that it happens to meet.
    assert last.outcome is Outcome.FAILURE and str(copy / name) in last.sentence


@pytest.mark.parametrize(
    "damage", [a_header_of(2**63), a_swapped_shape, one_byte_short, a_git_lfs_pointer]
)
@pytest.mark.parametrize("name", ["serve", "model", "doctor"])
def test_every_command_refuses_in_the_same_words(copy, tmp_path, damage, name):
    file = damage(copy)
    words = list(check_model(replace(Settings(), model=str(copy))))[-1]
    flags = ["--model", copy, "--run-dir", tmp_path / "run"]
    started = os.times()
    done = command(name, *flags, *([] if name == "model" else ["--port", "0"]))
    taken = os.times()
    user, system = (taken[2] - started[2], taken[3] - started[3])  # children's
    assert user + system < MUST_NAME_WITHIN
    assert done.returncode == 78 and file in done.stdout + done.stderr
    if name == "doctor":
        assert words.why in done.stdout and words.remedy in done.stdout
    else:
        assert done.stderr.splitlines()[-1] == f"qwenapi: {words.sentence}"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", WEIGHTS])
def test_a_file_that_may_not_be_read_is_named(copy, name):
    without_power: tuple[str, ...] = ()
    if os.geteuid() == 0:  # which may read every file, unless this is taken from it
        if shutil.which("setpriv") is None:
            pytest.skip("root may read every file, and there is no setpriv to change that")
        without_power = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    (copy / name).chmod(0)
    done = command("doctor", "--model", copy, prefix=without_power)
    assert done.returncode == 78 and str(copy / name) in done.stdout
    assert "Permission denied" in done.stdout


def test_a_model_without_a_chat_template_is_served_with_a_warning(copy):
    for file in copy.glob("*.jinja"):
        file.unlink()
    change(copy / "tokenizer_config.json", chat_template=None)
    settings = replace(Settings(), model=str(copy))
    assert outcomes(settings)["chat template"] is Outcome.WARNING
    refuse_unfit(settings)


@pytest.mark.parametrize("kind", ["embed", "rerank", "classifier"])
def test_a_model_that_writes_no_text_is_said_to_be_one(tmp_path, kind):
    write_pooling_folder(tmp_path, kind)
    checks = {c.name: c for c in check_model(replace(Settings(), model=str(tmp_path)))}
    assert all(check.outcome is Outcome.OK for check in checks.values()), checks
    purpose = "for embeddings" if kind == "embed" else "for scores of documents"
    assert checks["config"].what.endswith(purpose)
    assert not checks.keys() & {"chat template", "end of answers"}


def test_a_reranker_without_a_token_for_yes_is_refused(copy):
    settings = replace(Settings(), model=str(copy), task="rerank")
    with pytest.raises(ConfigError, match=r"tokenizer\.json: has no token for a yes or a no"):
        refuse_unfit(settings)


def test_the_demo_is_well_and_all_is_said_as_json(tmp_path):
    done = command("doctor", "--json", "--port", "0", "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stdout
    said = json.loads(done.stdout)
    assert said["outcome"] in ("ok", "warning")
    names = [check["name"] for check in said["checks"]]
    assert names[:4] == ["config", "weights", "tokenizer", "end of answers"]
    assert names[4:7] == ["chat template", "context", "memory"]
    for name in ("address", "run folder", "shared memory", "state folder", "descriptors", "clock"):
        assert name in names
    for check in said["checks"]:
        assert set(check) == {"name", "outcome", "what", "why", "remedy"}
        assert check["outcome"] == "ok" or (check["why"] and check["remedy"])
    assert not (tmp_path / "run").exists()


def test_the_doctor_never_imports_torch():
    code = "import sys, qwenapi.doctor.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"max_num_seqs": 4, "max_model_len": 256},
        {"kv_cache_gb": 0.01},
        {"num_blocks": 50, "max_model_len": 1000},
        {"max_num_seqs": 3, "block_size": 16, "max_num_batched_tokens": 64},
    ],
)
def test_it_foretells_the_cache_that_the_engine_allocates(changes):
    from workers.engine.engine import Engine

    settings = replace(Settings(), dtype="float32", device="cpu", **changes)
    weights, dimensions = demo()
    plan = make_plan(settings, weights, dimensions, find_room(settings, 0))
    config = replace(settings.engine_config(), threads=2)
    card = Engine(config, lambda stage, fraction: None).card
    assert (card.num_blocks, card.block_size) == (plan.num_blocks, plan.block_size)
    assert card.max_model_len == min(plan.wanted_len, plan.num_tokens)


def demo() -> tuple[Weights, ModelConfig]:
    checkpoint = Checkpoint.at(DEMO)
    return checkpoint.weights, checkpoint.config


def memory_checks(monkeypatch, room: Room, **changes) -> dict[str, object]:
    monkeypatch.setattr(memory, "machine_room", lambda: room)
    monkeypatch.setattr(memory, "visible_gpus", lambda: [room] if room.is_gpu else [])
    monkeypatch.setattr(memory, "_cpu_flags", set)
    settings = replace(Settings(), **{"dtype": "bfloat16"} | changes)
    return {check.name: check for check in check_memory(settings, *demo())}


def test_on_cpus_a_tied_head_is_counted_once_more_and_int8_only_where_it_is_multiplied(monkeypatch):
    weights, dimensions = demo()
    head = 2 * math.prod(weights.shapes["model.embed_tokens.weight"])
    rounded, plain = num_rounded(weights), 2 * weights.num_parameters

    def num_bytes(flags: set[str], weights: Weights = weights, **changes: str) -> int:
        monkeypatch.setattr(memory, "_cpu_flags", lambda: flags)
        settings = replace(Settings(), **{"dtype": "bfloat16", "device": "cpu"} | changes)
        room = Room("memory", False, GIB, GIB)
        return make_plan(settings, weights, dimensions, room).weights

    everything = {"avx512bw", "avx512_vnni"}
    assert num_bytes(everything) == plain + head
    assert num_bytes(everything | {"avx512_bf16"}) == plain
    assert num_bytes(everything | {"avx512_bf16", "amx_bf16"}) == plain + head
    assert num_bytes({"avx2"}) == num_bytes(everything, replace(weights, has_head=False)) == plain
    classifier = replace(weights, shapes=dict(weights.shapes) | {"score.weight": (1, 7)})
    assert num_bytes(everything, classifier) == plain + 2 * 7
    assert num_bytes(everything, dtype="float32") == 2 * plain
    assert num_bytes(everything, quantization="int8") == plain + head - rounded
    monkeypatch.setattr(memory.platform, "machine", lambda: "x86_64")
    assert num_bytes({"avx512bw"}, quantization="int8") == plain + head
    monkeypatch.setattr(memory.platform, "machine", lambda: "aarch64")
    assert num_bytes({"bf16"}, quantization="int8") == plain + head - rounded


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_the_readmes_say_what_the_doctor_counts(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for quantization in ("auto", "int8", "int4"):
        assert f"{rounded_sizes.weight_bytes('Qwen3-8B', quantization) / GIB:.1f}" in text


def test_weights_that_do_not_fit_are_a_failure_that_says_what_helps(monkeypatch):
    small = Room("memory", False, 8 << 20, 7 << 20)
    found = memory_checks(monkeypatch, small)["memory"]
    assert found.outcome is Outcome.FAILURE and "7.5 MiB" in found.what
    found = memory_checks(monkeypatch, small, dtype="float32")["memory"]
    assert "--dtype bfloat16" in found.remedy
    found = memory_checks(monkeypatch, small, data_parallel_size=3)["memory"]
    assert "--data-parallel-size" in found.remedy


def test_a_start_is_refused_for_memory_only_where_the_figures_are_sure(monkeypatch):
    for room in (Room("memory", False, GIB, 4), Room("GPU", True, GIB, 4)):
        assert memory_checks(monkeypatch, room)["memory"].outcome is Outcome.FAILURE
        with nullcontext() if room.is_gpu else pytest.raises(ConfigError):
            refuse_unfit(Settings())


def test_a_gpu_is_filled_but_for_its_reserve(monkeypatch):
    gpu = Room("a GPU", True, 80 * GIB, 79 * GIB)
    found = memory_checks(monkeypatch, gpu)
    assert found["memory"].outcome is Outcome.OK and "a GPU" in found["memory"].what
    settings = replace(Settings(), max_num_seqs=4096)
    plan = make_plan(settings, *demo(), gpu)
    reserve = gpu.total - int(settings.gpu_memory_utilization * gpu.total)
    assert plan.block_size == 64
    assert plan.weights + plan.workspace + plan.cache <= gpu.free - reserve + plan.block_bytes
    full = Room("a GPU", True, 80 * GIB, 8 * GIB)
    found = memory_checks(monkeypatch, full)["context"]
    assert found.outcome is Outcome.FAILURE


def test_packed_weights_stay_packed_and_plain_ones_of_layers_are_rounded(monkeypatch):
    weights, dimensions = demo()
    gpu, machine_memory = Room("GPU", True, GIB, GIB), Room("memory", False, GIB, GIB)
    name = "model.layers.0.mlp.up_proj"
    shape = weights.shapes[f"{name}.weight"]
    parts = WordPacking("awq", 32).parts(shape)
    tensors = {
        f"{name}.{part}": StoredTensor(part, Path("x"), said.dtypes[0], said.shape)
        for part, said in parts.items()
    }
    packed = replace(weights, packed={name: WordPacking("awq", 32)}, tensors=tensors)
    settings = replace(Settings(), dtype="bfloat16")
    monkeypatch.setattr(memory, "_cpu_flags", lambda: {"avx512_vnni"})

    def num_bytes(weights: Weights, room: Room, **changes: str) -> int:
        return make_plan(replace(settings, **changes), weights, dimensions, room).weights

    plain = 2 * weights.num_parameters
    assert num_bytes(weights, gpu) == num_bytes(weights, machine_memory) == plain
    rounded = num_rounded(weights)
    assert 0.3 < rounded / weights.num_parameters < 0.9
    assert num_bytes(weights, gpu, quantization="fp8") == plain - rounded
    assert num_bytes(weights, machine_memory, quantization="int8") == plain - rounded
    fours = num_bytes(weights, machine_memory, quantization="int4")
    assert plain - 1.5 * rounded < fours < plain - 1.45 * rounded
    # 4 bits a number; for 32 of them a scale of 16 and a zero point of 4.
    kept = plain - (16 - 4 - 20 / 32) / 8 * math.prod(shape)
    assert num_bytes(packed, gpu) == kept
    unpacked = 2 * packed.num_parameters
    monkeypatch.setenv("CC", "gcc")
    assert num_bytes(packed, machine_memory) == kept
    assert num_bytes(packed, machine_memory, attention_backend="torch") == unpacked
    monkeypatch.setenv("CC", "")
    monkeypatch.setenv("PATH", "/nowhere")
    assert num_bytes(packed, machine_memory) == unpacked
    assert num_bytes(packed, gpu, attention_backend="torch") == unpacked


def test_a_length_that_the_cache_cannot_hold_is_a_failure(monkeypatch):
    room = Room("memory", False, 16 * GIB, 16 * GIB)
    found = memory_checks(monkeypatch, room, kv_cache_gb=0.001, max_model_len=8192)["context"]
    assert found.outcome is Outcome.FAILURE and "--kv-cache-gb" in found.remedy
    wanted = float(found.remedy.split()[2])
    found = memory_checks(monkeypatch, room, kv_cache_gb=wanted, max_model_len=8192)["context"]
    assert found.outcome is Outcome.OK
    found = memory_checks(monkeypatch, room, kv_cache_gb=0.001)["context"]
    assert found.outcome is Outcome.WARNING and "8192" in found.what
    found = memory_checks(monkeypatch, room, max_model_len=9000)["context"]
    assert found.outcome is Outcome.FAILURE and "8192" in found.remedy


@pytest.mark.parametrize(
    ("num_gpus", "num_engines", "fits"),
    [(1, 1, True), (1, 2, False), (2, 2, True), (2, 3, False), (8, 8, True), (3, 2, True)],
)
def test_engines_take_turns_on_the_gpus(monkeypatch, num_gpus, num_engines, fits):
    weights, dimensions = demo()
    gpu = Room("GPU", True, 80 * GIB, int(3.5 * weights.num_parameters))  # 2 bytes each
    monkeypatch.setattr(memory, "visible_gpus", lambda: [gpu] * num_gpus)
    settings = replace(Settings(), dtype="bfloat16", data_parallel_size=num_engines)
    (found,) = (c for c in check_memory(settings, weights, dimensions) if c.name != "context")
    assert (" do not fit" not in found.what) == fits


def test_of_several_gpus_the_fullest_decides(monkeypatch):
    gpus = [Room("A", True, GIB, GIB), Room("B", True, GIB, GIB // 2), Room("C", True, GIB, 1)]
    monkeypatch.setattr(memory, "visible_gpus", lambda: gpus)
    rooms = [find_room(replace(Settings(), data_parallel_size=n), 0) for n in (2, 3, 4)]
    assert [(room.name, room.num_engines) for room in rooms] == [("B", 1), ("C", 1), ("C", 1)]
    crowded = find_room(replace(Settings(), data_parallel_size=8), 0)
    assert (crowded.name, crowded.num_engines) == ("C", 2)


def test_cuda_without_a_gpu_is_a_failure(monkeypatch):
    found = memory_checks(monkeypatch, Room("memory", False, GIB, GIB), device="cuda")["memory"]
    assert found.outcome is Outcome.FAILURE and "--device cpu" in found.remedy


def test_an_address_in_use_is_a_failure_that_names_the_process():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = replace(Settings(), port=taken.getsockname()[1])
        (found,) = machine.check_address(settings)
    assert found.outcome is Outcome.FAILURE and f"pid {os.getpid()}" in found.why
    (found,) = machine.check_address(replace(Settings(), port=0))
    assert found.outcome is Outcome.OK


def test_a_unix_socket_is_looked_at_and_left_alone(tmp_path):
    path = tmp_path / "http.sock"
    settings = replace(Settings(), uds=str(path))
    assert [c.outcome for c in machine.check_address(settings)] == [Outcome.OK]
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(path))
        taken.listen()
        (found,) = machine.check_address(settings)
    assert found.outcome is Outcome.FAILURE and "another server" in found.why and path.exists()
    for wrong in (tmp_path / ("x" * 120), tmp_path / "none" / "http.sock", tmp_path):
        (found,) = machine.check_address(replace(settings, uds=str(wrong)))
        assert found.outcome is Outcome.FAILURE


def test_folders_that_cannot_be_used_are_failures(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    long = machine.check_run_dir(replace(Settings(), run_dir=f"/tmp/{'x' * 120}"))
    assert long.outcome is Outcome.FAILURE and "107" in long.why and long.remedy
    good = machine.check_state_dir(replace(Settings(), state_dir=str(tmp_path / "new")))
    assert good.outcome is Outcome.OK and not (tmp_path / "new").exists()
    for wrong in (str(file), str(file / "below")):
        found = machine.check_state_dir(replace(Settings(), state_dir=wrong))
        assert found.outcome is Outcome.FAILURE
        found = machine.check_run_dir(replace(Settings(), run_dir=wrong))
        assert found.outcome is Outcome.FAILURE


def test_too_little_shared_memory_is_a_failure(tmp_path, monkeypatch):
    settings = replace(Settings(), run_dir=str(tmp_path))
    assert machine.check_shared_memory(settings, ["openai"]).outcome is Outcome.OK
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    found = machine.check_shared_memory(settings, ["openai"])
    assert found.outcome is Outcome.FAILURE and found.remedy


def test_few_descriptors_are_a_warning():
    kept = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, kept[1]))
    try:
        found = machine.check_descriptors()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, kept)
    assert found.outcome is Outcome.WARNING and "LimitNOFILE" in found.remedy


@pytest.mark.parametrize(("now", "outcome"), [(0.0, "warning"), (1.8e9, "ok"), (5e9, "warning")])
def test_a_clock_of_another_time_is_a_warning(now, outcome):
    assert machine.check_clock(now).outcome == outcome


def test_other_versions_are_a_warning_and_missing_ones_a_failure(monkeypatch):
    real = machine.version
    monkeypatch.setattr(machine, "version", lambda n: "0.1" if n == "flask" else real(n))
    found = list(machine.check_libraries())
    assert [c.outcome for c in found] == [Outcome.WARNING] and "flask 0.1" in found[0].what

    def without(name: str) -> str:
        if name == "orjson":
            raise machine.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(machine, "version", without)
    assert next(machine.check_libraries()).outcome is Outcome.FAILURE


def test_an_address_of_traces_that_is_none_is_refused_at_the_start(tmp_path):
    settings = replace(Settings(), otel_endpoint="collector:4318")
    assert machine.check_traces(settings).outcome is Outcome.FAILURE
    flags = ("--stub", "--otel-endpoint", "collector:4318", "--run-dir", tmp_path)
    done = command("serve", *flags, "--port", "0")
    assert done.returncode == 78 and "otel_endpoint" in done.stderr.splitlines()[-1]


def test_a_refusal_keeps_its_words():
    error = ConfigError("/a/file: it is gone, and: more; put it back")
    check = refused("model", error)
    assert (check.what, check.remedy) == ("/a/file", "put it back")
    assert check.sentence == str(error)
    assert refused("model", ConfigError("/a/file: gone")).sentence == "/a/file: gone"


@pytest.mark.parametrize("num_gpus", [2, 4])
def test_ranks_have_a_gpu_and_a_part_of_the_weights_each(monkeypatch, num_gpus):
    weights, dimensions = demo()
    gpu = Room("GPU", True, 80 * GIB, int(1.5 * weights.num_parameters))  # 2 bytes each
    monkeypatch.setattr(memory, "visible_gpus", lambda: [gpu] * num_gpus)
    monkeypatch.setattr(memory, "CUDA_BASE_BYTES", 0)
    settings = replace(Settings(), dtype="bfloat16", tensor_parallel_size=2)
    (found,) = (c for c in check_memory(settings, weights, dimensions) if c.name != "context")
    assert " do not fit" not in found.what and "of weights for each rank" in found.what
    plan = make_plan(settings, weights, dimensions, gpu)
    whole = make_plan(Settings(dtype="bfloat16"), weights, dimensions, gpu)
    assert plan.block_bytes == whole.block_bytes // 2
    assert 0.5 < plan.weights / whole.weights < 0.52


def test_more_ranks_than_gpus_are_a_failure(monkeypatch):
    gpu = Room("GPU", True, 80 * GIB, 80 * GIB)
    monkeypatch.setattr(memory, "visible_gpus", lambda: [gpu] * 2)
    settings = replace(Settings(), tensor_parallel_size=4)
    (found,) = check_memory(settings, *demo())
    assert (found.outcome, found.why) == (Outcome.FAILURE, "2 GPUs are visible")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tensor_parallel_size": 3}, "4 attention heads cannot be shared out evenly; choose one"),
        ({"tensor_parallel_size": 2, "enable_expert_parallel": True}, "is for mixtures of experts"),
        ({"enable_expert_parallel": True}, "tensor_parallel_size is 1; leave it out, or raise"),
    ],
)
def test_ranks_that_cannot_share_a_model_are_refused(changes, words):
    *_, found = check_model(replace(Settings(), **changes))
    assert found.outcome is Outcome.FAILURE and words in found.what
