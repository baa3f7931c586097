"""Settings: one table, four sources, the later one wins, and a mistake is named with its remedy."""

import os
from dataclasses import fields
from pathlib import Path

import pytest

from qwenapi.settings import sources
from qwenapi.settings.flags import FlagParser, add_flags
from qwenapi.settings.run_dir import make_run_dir, model_run_dir, run_dir
from qwenapi.settings.table import Settings, table
from qwenapi.settings.vllm_flags import VLLM_FLAGS
from workers.config import EngineConfig
from workers.errors import ConfigError, ExitCode


def parse(*arguments: str, command: str = "serve") -> dict[str, object]:
    parser = FlagParser(prog="qwenapi serve")
    add_flags(parser, command)
    return vars(parser.parse_args(arguments))


def load(*arguments: str, **environ: str) -> Settings:
    return sources.load(parse(*arguments), environ)


@pytest.fixture
def write(tmp_path):
    def write_file(text: str, name: str = "file.toml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write_file


def test_without_any_source_the_defaults_and_the_profile_of_all_documents_hold():
    settings = load()
    assert (settings.host, settings.port, settings.profile) == ("127.0.0.1", 8000, "all")
    assert settings.defaults_max_tokens is None
    assert settings.defaults_temperature is None
    assert settings.served_names == ("qwen-demo",)


def test_the_later_source_wins(write):
    profile = write("port = 1\nhost = 'a'\nmax_num_seqs = 1\nblock_size = 1", "p.toml")
    laid_over = write("port = 2\nhost = 'b'\nmax_num_seqs = 2", "c.toml")
    files = ("--profile", profile, "--config", laid_over)
    settings = load(*files, "--port", "4", QWENAPI_PORT="3", QWENAPI_HOST="c")
    assert settings.port == 4
    assert settings.host == "c"
    assert settings.max_num_seqs == 2
    assert settings.block_size == 1


def test_a_config_file_and_the_environment_may_name_the_profile(write):
    profile = write("port = 7", "p.toml")
    assert load("--config", write(f"profile = '{profile}'")).port == 7
    assert load(QWENAPI_PROFILE=profile).port == 7
    assert load(QWENAPI_CONFIG=profile).port == 7


def test_dotted_names_are_tables_variables_and_short_flags(write):
    assert load("--config", write("[limits]\nmax_waiting = 5")).limits_max_waiting == 5
    assert load(QWENAPI_LIMITS_MAX_WAITING="6").limits_max_waiting == 6
    assert load("--max-waiting", "7").limits_max_waiting == 7
    assert load("--default-temperature", "0").defaults_temperature == 0.0
    assert load("--log-level", "debug").log_level == "debug"


def test_a_setting_can_have_several_values(write):
    assert load("--served-model-name", "a", "b").served_names == ("a", "b")
    assert load(QWENAPI_SERVED_MODEL_NAME="a, b").served_names == ("a", "b")
    assert load("--config", write("served_model_name = ['a', 'b']")).served_names == ("a", "b")


def test_switches_are_turned_both_ways():
    assert not load("--no-enable-prefix-caching").enable_prefix_caching
    assert load(
        "--enable-prefix-caching", QWENAPI_ENABLE_PREFIX_CACHING="off"
    ).enable_prefix_caching
    assert not load("--no-log-requests").log_requests
    assert not load("--disable-log-requests").log_requests
    assert not load(QWENAPI_LOG_REQUESTS="False").log_requests


def test_an_empty_variable_is_not_set():
    assert load(QWENAPI_PORT="", QWENAPI_MODEL="").port == 8000


@pytest.mark.parametrize("name", ["QWENAPI_DOCUMENTS", "QWENAPI_FAULT", "QWENAPI_TEST_SEED"])
def test_internal_variables_are_left_alone(name):
    assert load(**{name: "x"}) == load()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("prot = 1", ["unknown key prot", "did you mean port?"]),
        ("limits_max_waiting = 1", ["did you mean limits.max_waiting?"]),
        ("[limit]\nmax_waiting = 1", ["limit.max_waiting", "did you mean limits.max_waiting?"]),
        ("zzz = 1", ["unknown key zzz"]),
        ("port = 'a'", ["port = 'a'", "must be a whole number from 0 to 65535"]),
        ("port = '8000'", ["must be a whole number"]),
        ("port = true", ["must be a whole number"]),
        ("port = 70000", ["port = 70000"]),
        ("max_num_seqs = 0", ["from 1 to 4096"]),
        ("dtype = 'float8'", ["one of: auto, float32, bfloat16, float16"]),
        ("quantization = 'int7'", ["one of: auto, none, awq, gptq"]),
        ("step_timeout = nan", ["must be a number of at least 0"]),
        ("step_timeout = inf", ["must be a number of at least 0"]),
        ("served_model_name = ['']", ["none of them empty"]),
        ("log.requests = 1", ["must be true or false"]),
        ("model = 3", ["must be a text"]),
        ("config = 'x'", ["unknown key config"]),
        ("port = ", ["not TOML"]),
    ],
)
def test_a_mistake_in_a_file_names_file_value_and_remedy(write, text, names):
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        load("--config", path)
    for name in (path, *names):
        assert name in str(caught.value)
    assert caught.value.exit_code == ExitCode.CONFIG == 78


def test_a_file_may_be_missing_or_not_text(write, tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load("--config", "nowhere.toml")
    (tmp_path / "latin").write_bytes(b"host = '\xff'")
    with pytest.raises(ConfigError, match="not TOML"):
        load("--config", str(tmp_path / "latin"))


def test_an_unknown_profile_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="profile 'opnai' does not exist; there are: .*openai"):
        load("--profile", "opnai")


@pytest.mark.parametrize("profile", sorted((sources.etc_dir() / "profiles").glob("*.toml")))
def test_every_shipped_profile_is_valid_and_local(profile):
    assert load("--profile", str(profile)).host == "127.0.0.1"


def test_a_mistake_in_the_environment_names_the_variable():
    with pytest.raises(
        ConfigError, match="unknown variable QWENAPI_PROT: did you mean QWENAPI_PORT"
    ):
        load(QWENAPI_PROT="1")
    with pytest.raises(ConfigError, match="QWENAPI_PORT=x: port must be a whole number from 0"):
        load(QWENAPI_PORT="x")
    with pytest.raises(ConfigError, match="QWENAPI_LOG_REQUESTS=maybe: .* true or false"):
        load(QWENAPI_LOG_REQUESTS="maybe")


@pytest.mark.parametrize("said", ['{"method": "eagle"}', '{"method": "ngram", "depth": 1}', "[]"])
def test_who_drafts_is_refused_before_anything_starts(said):
    with pytest.raises(ConfigError, match="speculative_config"):
        load("--speculative-config", said)


def test_a_bad_value_of_a_flag_is_a_config_error():
    with pytest.raises(ConfigError, match="--port x: port must be a whole number from 0 to 65535"):
        load("--port", "x")
    with pytest.raises(ConfigError, match="--quantization int7: .* one of: auto, none, awq, gptq"):
        load("--quantization", "int7")


@pytest.mark.parametrize(
    ("flag", "answer"),
    [
        ("--max-model-length", "did you mean --max-model-len?"),
        ("--max-model-lenn=3", "unknown flag --max-model-lenn: did you mean --max-model-len?"),
        ("--max-model", "unknown flag --max-model"),
        ("-tpx", "unknown flag -tpx: did you mean -tp?"),
        ("--chat-templates", "did you mean --chat-template?"),
        ("--kv-transfer-config", "--kv-transfer-config: nothing is called like it"),
        ("--foo", "unknown flag --foo: nothing is called like it"),
        ("stray", "unexpected argument 'stray'"),
    ],
)
def test_an_unknown_flag_exits_2_with_the_closest_one(flag, answer, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(flag)
    assert caught.value.code == 2
    assert answer in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "model", "http", "check"])
def test_vllms_flags_are_taken_where_they_ask_for_nothing(command, capsys):
    taken = """--pipeline-parallel-size=1 -pp 1 --enable-chunked-prefill
        --kv-cache-dtype auto --load-format auto --no-enable-lora --seed 0"""
    assert parse(*taken.split(), command=command) == {}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "flag",
    ["--trust-remote-code", "--disable-log-stats", "--uvicorn-log-level info", "--swap-space 4",
     "--max-seq-len-to-capture 8192", "--distributed-executor-backend mp"],
)  # fmt: skip
def test_vllms_flags_without_a_meaning_here_are_ignored_with_one_line(flag, capsys):
    assert parse(*flag.split()) == {}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"qwenapi: {flag.split()[0]} is ignored: ")


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("-pp=2", "-pp 2 is not supported: layers are not spread over processes"),
        ("--pipeline-parallel-size 4", "--data-parallel-size"),
        ("--no-enable-chunked-prefill", "--no-enable-chunked-prefill is not supported"),
        ("--chat-template x.jinja", "the model's own chat template is used"),
        ("--kv-cache-dtype fp8", "--kv-cache-dtype fp8 is not supported"),
        ("--enable-lora", "adapters are not supported"),
    ],
)
def test_vllms_flags_that_ask_for_more_are_refused_in_a_sentence(flag, sentence, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(*flag.split())
    assert caught.value.code == 2
    assert sentence in capsys.readouterr().err


def test_no_flag_of_vllms_is_also_a_setting():
    own = {row.flag for row in table().values()}
    listed = [name for flag in VLLM_FLAGS for name in flag.names.split()]
    assert not own & set(listed) and len(listed) == len(set(listed))


def test_types_have_the_names_that_vllm_gives_them_too(write):
    assert load("--dtype", "half").dtype == "float16"
    assert load(QWENAPI_DTYPE="float").dtype == "float32"
    assert load("--config", write("dtype = 'half'")).dtype == "float16"
    assert load("--generation-config", "vllm").generation_config == "vllm"
    assert load("--no-enable-log-requests").log_requests is False


def test_a_sub_command_suggests_its_own_flags(capsys):
    parser = FlagParser(prog="qwenapi")
    command = parser.add_subparsers().add_parser("serve")
    add_flags(command, "serve")
    with pytest.raises(SystemExit):
        parser.parse_args(["serve", "--prot", "1"])
    assert "qwenapi serve: error: unknown flag --prot: did you mean --port?" in (
        capsys.readouterr().err
    )


def test_each_half_has_only_its_own_flags(capsys):
    for command, flag in (("model", "--port"), ("http", "--dtype")):
        with pytest.raises(SystemExit):
            parse(flag, "x", command=command)
    assert parse("--dtype", "float32", command="model") == {"dtype": "float32"}
    assert parse("--model-run-dir", "x", command="http") == {"model_run_dir": "x"}
    with pytest.raises(SystemExit):
        parse("--model-run-dir", "x", command="serve")


def test_help_names_every_flag_that_is_not_hidden(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for row in table().values():
        is_shown = f"{row.flag} " in shown
        assert is_shown is not (row.hidden or row.name == "model_run_dir")


def test_names_of_all_rows_differ_in_every_source():
    rows = list(table().values())
    for names in ([r.key for r in rows], [r.flag for r in rows], [r.variable for r in rows]):
        assert len(set(names)) == len(rows)


def test_defaults_are_values_their_own_rows_allow():
    flags = {row.name: row.default for row in table().values() if row.default not in (None, ())}
    assert sources.load(flags, {}).port == 8000


def test_an_engine_gets_every_field_it_has():
    derived = {"max_waiting", "replica", "rank", "local_rank", "num_local_ranks", "interface"}
    derived |= {"rendezvous", "rendezvous_fd"}
    assert {field.name for field in fields(EngineConfig)} - derived <= set(table())
    settings = load("--model", "./some/dir", "--max-num-seqs", "3", "--max-waiting", "9", "--stub")
    engine = settings.engine_config()
    assert engine.model == str(Path.cwd() / "some/dir")
    assert (engine.max_num_seqs, engine.max_waiting, engine.stub) == (3, 9, True)
    assert load().engine_config().model.endswith("/etc/models/demo")


def test_ranks_are_counted_by_vllms_names():
    for flag in ("--tensor-parallel-size", "-tp"):
        engine = load(flag, "4", "--enable-expert-parallel").engine_config()
        assert (engine.tensor_parallel_size, engine.enable_expert_parallel) == (4, True)


def test_a_model_is_called_like_its_directory():
    assert load("--model", "/data/Qwen3-8B/").served_names == ("Qwen3-8B",)
    assert load("--model", "/data/Qwen3-8B", "--served-model-name", "q").served_names == ("q",)


def test_run_dir_is_the_first_that_is_given():
    base = {"XDG_RUNTIME_DIR": "/run/user/1"}
    unit = base | {"RUNTIME_DIRECTORY": "/run/qwenapi/http-openai:/run/other"}
    own = f"/run/user/1/qwenapi-{os.getuid()}"
    assert str(run_dir(load("--run-dir", "/r"), "serve", unit)) == "/r"
    assert str(run_dir(load(), "http", unit)) == "/run/qwenapi/http-openai"
    assert str(run_dir(load("--port", "81"), "serve", base)) == f"{own}/serve-81"
    assert str(run_dir(load("--model", "/m/Qwen3-8B"), "model", base)) == f"{own}/model-Qwen3-8B"
    assert str(run_dir(load("--port", "0"), "serve", base)) == f"{own}/serve-pid{os.getpid()}"
    assert run_dir(load(), "serve", {}).parent.name == f"qwenapi-{os.getuid()}"


def test_http_half_finds_the_model_half_by_the_models_name():
    base = {"XDG_RUNTIME_DIR": "/run/user/1"}
    settings = load("--model", "/m/Qwen3-8B")
    assert model_run_dir(settings, base) == run_dir(settings, "model", base)
    unit = {"RUNTIME_DIRECTORY": "/run/qwenapi/http-openai"}
    assert str(model_run_dir(settings, unit)) == "/run/qwenapi/model-Qwen3-8B"
    given = sources.load(parse("--model-run-dir", "/r/m", command="http"), {})
    assert str(model_run_dir(given, unit)) == "/r/m"


def test_a_run_dir_too_long_for_a_socket_is_refused():
    fits = "/" + "x" * (107 - 1 - len("/engine-000.sock"))
    assert str(run_dir(load("--run-dir", fits), "serve", {})) == fits
    with pytest.raises(ConfigError, match="take 108 bytes, the system allows 107; .*--run-dir"):
        run_dir(load("--run-dir", fits + "x"), "serve", {})
    with pytest.raises(ConfigError, match="--run-dir"):
        run_dir(load("--run-dir", "/" + "模" * 40), "serve", {})


def test_a_run_dir_is_its_owners_alone(tmp_path):
    path = tmp_path / f"qwenapi-{os.getuid()}" / "serve-1"
    make_run_dir(path)
    make_run_dir(path)
    assert path.stat().st_mode & 0o777 == 0o700
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_run_dir_behind_a_link_or_under_a_file_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="belongs to somebody else"):
        make_run_dir(tmp_path / "link")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="set --run-dir"):
        make_run_dir(tmp_path / "file" / "run")


def test_the_profile_all_lists_every_document_the_general_one_last():
    profiles = sources.load_profiles(load(), {}, {})
    assert [p.name for p in profiles] == [
        *("news", "guide", "browser", "coder", "qwen2", "anthropic", "openai")
    ]
    by_name = {profile.name: profile for profile in profiles}
    news, coder = by_name["news"], by_name["coder"]
    assert (news.limits.max_running, news.limits.max_waiting) == (3, 10)
    assert (news.settings.defaults_max_tokens, news.settings.defaults_temperature) == (100, 0.7)
    assert coder.settings.defaults_repetition_penalty == 1.05
    assert by_name["openai"].names == ("qwen-demo",)


def test_flags_hold_in_every_profile():
    flags = parse("--max-running", "2", "--served-model-name", "a", "b")
    profiles = sources.load_profiles(sources.load(flags, {}), flags, {})
    assert {profile.limits.max_running for profile in profiles} == {2}
    assert profiles[-1].names == ("a", "b")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[api]\nnmes = ['a']", ["has no key nmes"]),
        ("[api]\ndialect = 'soap'", ["api.dialect", "one of openai, fastapi, flat"]),
        ("[api]\nclamp = 1", ["api.clamp", "must be a bool"]),
        ("api = 3", ["api must be a table"]),
    ],
)
def test_a_mistake_in_a_profiles_facts_is_named(write, text, names):
    flags = parse("--profile", write(text))
    with pytest.raises(ConfigError) as caught:
        sources.load_profiles(sources.load(flags, {}), flags, {})
    assert all(name in str(caught.value) for name in names)
