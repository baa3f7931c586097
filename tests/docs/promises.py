"""The promises T1-T48: what each says, in both languages, and the tests that fail if it is broken.

From it comes the table of docs/reliability.md. A test is named by its file below `tests/` and what
follows `test_` in its name.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Promise:
    """What a fault must lead to, and what shows it; `unlike` says where less or other is held."""

    says: str
    says_zh: str
    tests: tuple[str, ...]
    unlike: str = ""
    unlike_zh: str = ""


REPLAY = "e2e/test_replay.py::"
FAULTS = "e2e/test_faults_on_stub.py::"
HTTP = "e2e/test_http_on_stub.py::"
RELOAD = "e2e/test_reload.py::"
SQLITE = "conversations/test_sqlite.py::"
TOKENIZER = "text/test_tokenizer.py::"

PROMISES: dict[str, Promise] = {
    "T1": Promise(
        "An engine is killed under 50 answers: each goes on, equal to the undisturbed one.",
        "引擎在 50 个回答进行中被杀：每个都继续，与未受干扰时相同。",
        (
            f"{REPLAY}fifty_answers_of_every_dialect_survive_their_engine",
            "e2e/test_demo_model.py::a_deterministic_engine_gives_the_same_bits_after_it_was_killed",
            "e2e/test_kills.py::no_stream_is_lost_to_engines_that_are_killed_every_few_seconds",
        ),
    ),
    "T2": Promise(
        "It is killed again while it catches up: as T1.",
        "补算时再次被杀：同 T1。",
        (f"{REPLAY}an_engine_lost_again_while_it_catches_up_changes_nothing",),
    ),
    "T3": Promise(
        "An engine is stopped: found out, killed, replaced; its answers go on.",
        "引擎被暂停：被发现、杀掉、替换，回答继续。",
        (
            f"{REPLAY}a_stopped_engine_is_killed_and_its_answers_go_on",
            f"{FAULTS}an_idle_engine_that_is_stopped_is_not_ready_within_seconds_and_replaced",
        ),
    ),
    "T4": Promise(
        "A step never ends and holds the interpreter: as T3, and the log has its stack.",
        "某一步永不结束并占住解释器：同 T3，日志中有其调用栈。",
        (f"{REPLAY}a_request_that_hangs_engines_inside_a_step_fails_alone",),
    ),
    "T5": Promise(
        "An engine is killed under answers that are not streamed: 200, whole, counted once.",
        "非流式回答进行中引擎被杀：200，完整，只计一次。",
        (
            f"{REPLAY}fifty_answers_of_every_dialect_survive_their_engine",
            "metrics/test_truth.py::the_metrics_store_says_what_the_callers_were_told",
        ),
    ),
    "T6": Promise(
        "One of twenty requests kills engines: it alone fails, and is refused for ten minutes.",
        "二十个请求之一会杀死引擎：只有它失败，并在十分钟内被拒绝。",
        (f"{REPLAY}poison_among_twenty_fails_alone_and_is_refused_afterwards",),
    ),
    "T7": Promise(
        "Two such, or one that kills only in company: only the guilty fail.",
        "两个这样的请求，或只在有同伴时才致命的：只有肇事者失败。",
        (
            f"{REPLAY}poison_among_twenty_fails_alone_and_is_refused_afterwards",
            f"{REPLAY}poison_that_kills_only_in_company_is_answered_alone",
            "engines/test_replay_at_random.py::"
            "the_innocent_get_their_own_tokens_and_the_guilty_are_found",
        ),
    ),
    "T8": Promise(
        "An engine that never gets up is tried seldom, and a repair is found without a restart.",
        "起不来的引擎很少重试；修好后无须重启即可恢复。",
        (
            f"{RELOAD}an_engine_that_never_gets_up_is_tried_seldom_and_a_reload_mends_it",
            "supervisor/test_supervisor.py::"
            "who_dies_again_and_again_without_serving_is_tried_seldom_until_it_serves",
        ),
    ),
    "T9": Promise(
        "Choices, log-probabilities, stop strings and characters are whole across a crash.",
        "多个选择、对数概率、停止串和字符在崩溃前后完整。",
        (
            f"{REPLAY}stops_characters_and_choices_are_whole_across_every_crash_point",
            "engine/test_grammar.py::an_answer_cut_at_any_token_goes_on_as_if_nothing_had_happened",
        ),
    ),
    "T10": Promise(
        "Two hundred callers leave at random: seen within a second, every block comes back.",
        "两百个调用者随机离开：一秒内被发现，所有块归还。",
        (
            f"{HTTP}two_hundred_random_disconnects_leave_nothing_behind",
            f"{HTTP}a_client_that_leaves_is_noticed_within_a_tenth_of_a_second",
            f"{HTTP}a_queued_client_that_leaves_is_noticed_too",
            "e2e/test_demo_model.py::two_hundred_random_disconnects_leave_every_block_free",
        ),
    ),
    "T11": Promise(
        "A thousand requests are aborted: descriptors, threads and memory stay as they were.",
        "一千个请求被中断：描述符、线程和内存保持原样。",
        (
            "e2e/test_resources.py::"
            "a_thousand_aborted_requests_leave_descriptors_threads_and_memory_as_they_were",
        ),
    ),
    "T12": Promise(
        "A reload under load fails no request and cuts no stream.",
        "负载下重载：没有请求失败，没有流被切断。",
        (f"{RELOAD}a_reload_under_load_fails_no_request_and_cuts_no_stream",),
    ),
    "T13": Promise(
        "A restart on a socket that was handed over refuses nobody; what lasts too long is told.",
        "在移交的套接字上重启不拒绝任何人；超时未完的会被告知。",
        (
            f"{RELOAD}a_restart_on_a_handed_over_socket_refuses_nobody",
            f"{RELOAD}what_still_runs_at_the_end_of_a_drain_is_told_so",
        ),
    ),
    "T14": Promise(
        "An HTTP worker is killed: only its own streams end, and their work with them.",
        "一个 HTTP 工作进程被杀：只有它自己的流及其计算结束。",
        (f"{FAULTS}a_killed_http_worker_ends_only_its_own_streams_and_their_work",),
    ),
    "T15": Promise(
        "gunicorn's arbiter is killed or stopped: replaced within 10 s; no process is orphaned.",
        "gunicorn 主进程被杀或暂停：10 秒内被替换，没有孤儿进程。",
        (
            f"{RELOAD}an_arbiter_that_is_killed_or_stopped_is_replaced_within_10_s",
            f"{FAULTS}a_killed_supervisor_leaves_no_orphans",
            f"{FAULTS}after_a_killed_supervisor_a_start_in_its_place_has_the_conversations_whole",
        ),
    ),
    "T16": Promise(
        "A thousand more than fit are refused at once with Retry-After; the queue keeps its order.",
        "超出容量的一千个请求立即被拒并带 Retry-After；队列保持顺序。",
        (
            "e2e/test_overload.py::"
            "a_thousand_more_than_fit_are_refused_at_once_and_the_queue_drains_in_order",
        ),
    ),
    "T17": Promise(
        "One tenant floods: another's first token comes as soon.",
        "一个租户洪泛：另一个租户的首 token 一样快。",
        (
            "e2e/test_fairness.py::"
            "beside_a_tenant_with_eight_running_the_first_token_comes_as_soon",
            "engine/test_scheduler.py::a_tenant_that_floods_does_not_keep_another_waiting",
        ),
    ),
    "T18": Promise(
        "A wait that is foreseen to be too long is refused at the door, one that becomes so ends.",
        "预计过久的等待在入口被拒；等待中超时的会结束。",
        (
            "worker/test_admission.py::"
            "a_wait_is_predicted_only_from_enough_finished_requests_of_one_busy_period",
            "engine/test_scheduler.py::waiting_too_long_ends_a_request_but_not_one_that_ran",
        ),
    ),
    "T19": Promise(
        "Idle connections, drips of heads and bodies, readers that do not read: nobody else waits.",
        "空闲连接、慢速头和正文、不读取的读者：其他人不受影响。",
        (
            "e2e/test_half_open.py::three_thousand_half_heads_end_while_others_are_served",
            "e2e/test_half_open.py::a_body_that_trickles_ends_too",
            f"{HTTP}a_reader_that_does_not_read_holds_up_nobody_and_is_left_in_the_end",
        ),
    ),
    "T20": Promise(
        "What is not strict JSON is 400 within 50 ms, never 500.",
        "不严格的 JSON 在 50 毫秒内得到 400，绝不是 500。",
        (
            "text/test_strict_json.py::what_is_not_strict_json_is_refused_fast",
            "text/test_strict_json.py::any_bytes_end_in_an_object_or_a_refusal",
            f"{HTTP}a_bad_body_is_refused_quickly_in_openais_words",
        ),
    ),
    "T21": Promise(
        "Lengths that lie, codings, pipelined requests: refused or read whole, never mixed up.",
        "撒谎的长度、编码、流水线请求：被拒绝或完整读取，绝不混淆。",
        (
            "http/test_body.py::a_body_in_chunks_over_the_limit_is_413_and_not_read_on",
            "http/test_body.py::a_body_shorter_than_it_says_is_400",
            f"{HTTP}requests_of_one_connection_follow_each_other",
            f"{HTTP}what_is_no_http_is_refused_in_json_without_an_echo",
        ),
        "decided since: chunked bodies are read up to the limit",
        "后来的决定：分块正文会被读取直到上限",
    ),
    "T22": Promise(
        "Every number beyond its bounds, and what is no number, is 400 and named.",
        "每个越界的数和不是数的值：400 并指名字段。",
        (
            "api/test_openai_schemas.py::integers_are_integers_within_bounds",
            "api/test_openai_schemas.py::numbers_are_finite_and_within_bounds",
        ),
        "decided since: an answer longer than the room left is cut to it, and says so",
        "后来的决定：超出剩余空间的回答被截到该长度并注明",
    ),
    "T23": Promise(
        "No body that the reference allows, or nearly allows, makes the server fail.",
        "参考文档允许或几乎允许的正文都不会使服务器出错。",
        (
            "e2e/test_reference.py::no_request_the_reference_allows_makes_the_server_fail",
            "fuzz/test_bodies.py::no_body_makes_the_server_fail",
        ),
    ),
    "T24": Promise(
        "Hostile texts are tokenized in linear time; no text of a caller is a control token.",
        "恶意文本以线性时间分词；调用者的文本不会成为控制 token。",
        (
            f"{TOKENIZER}tokenising_takes_linear_time",
            f"{TOKENIZER}a_callers_control_tokens_are_plain_text",
            f"{TOKENIZER}nothing_a_caller_writes_becomes_a_control_token_by_joining",
            "e2e/test_control_tokens.py::"
            "nothing_a_caller_says_in_any_field_becomes_a_control_token",
            f"{HTTP}a_megabyte_to_tokenize_does_not_hold_up_the_other_streams",
        ),
    ),
    "T25": Promise(
        "Grammars that are bombs are refused or served in bounded time; nobody else waits.",
        "语法炸弹在有限时间内被拒绝或服务；其他人不等待。",
        (
            "grammar/test_compiler.py::hostile_grammars_are_refused_or_served_in_bounded_time",
            "grammar/test_compiler.py::a_slow_grammar_keeps_nobody_else_waiting",
        ),
    ),
    "T26": Promise(
        "Nothing in either package unpickles, evaluates or runs a shell.",
        "两个包中都没有反序列化 pickle、求值或调用 shell。",
        (
            "test_architecture.py::nothing_unsafe_is_imported_or_called",
            "request_context/test_audit.py::a_models_name_is_no_path",
        ),
    ),
    "T27": Promise(
        "What a model writes stays text: its calls are parsed in linear time, streamed as whole.",
        "模型写的内容只是文本：调用以线性时间解析，流式与整体一致。",
        (
            "text/output/test_output_parser.py::time_is_linear",
            "text/output/test_output_parser.py::streamed_equals_whole_at_random_splits",
            "text/output/test_hermes_call.py::deep_nesting_and_endless_numbers_never_finish_a_call",
            "text/output/test_python_literal.py::nothing_else_is_a_literal",
        ),
    ),
    "T28": Promise(
        "A model's name is no path: unknown ones are 404, and no file is opened.",
        "模型名不是路径：未知的得到 404，不打开任何文件。",
        ("request_context/test_audit.py::a_models_name_is_no_path",),
    ),
    "T29": Promise(
        "No address in a request is asked but a picture's on a host that a setting allows.",
        "除设置所允许的主机上的图片外，请求中的任何地址都不会被访问。",
        (
            "request_context/test_audit.py::no_address_in_a_request_is_asked",
            "images/test_fetch.py::only_hosts_that_are_named_are_asked",
            "images/test_fetch.py::a_redirect_is_checked_as_the_first_address_is",
        ),
    ),
    "T30": Promise(
        "Only the public routes answer without a key, whatever the spelling, host or method.",
        "无密钥只能访问公开路由，无论写法、Host 或方法。",
        (
            "request_context/test_auth.py::nothing_but_the_public_routes_is_answered_without_a_key",
            "request_context/test_auth.py::no_spelling_of_an_address_gets_round_the_key",
            "e2e/test_keys.py::no_header_on_the_wire_gets_round_the_key",
        ),
        "the time that a wrong key takes is not measured: hashes are compared by hmac",
        "错误密钥的耗时未测量：散列用 hmac 比较",
    ),
    "T31": Promise(
        "What belongs to another tenant is as unknown as what nobody has.",
        "属于其他租户的东西与不存在的一样未知。",
        (
            "e2e/test_keys.py::a_conversation_of_another_tenant_is_as_unknown_as_any",
            "e2e/test_responses_on_stub.py::another_tenants_response_is_missing",
            "e2e/test_batches.py::each_tenant_has_its_own_and_a_key_that_is_gone_answers_nothing",
        ),
    ),
    "T32": Promise(
        "A prompt in one tenant's cache is not in another's.",
        "一个租户缓存中的提示不在另一个租户的缓存中。",
        (
            "e2e/test_keys.py::a_prompt_in_the_cache_of_one_tenant_is_not_in_anothers",
            "engine/test_block_manager.py::salts_separate",
        ),
        "by counting cached tokens, not by timing",
        "以缓存 token 计数为据，而非计时",
    ),
    "T33": Promise(
        "What a caller wrote is in no file, log, metric or command line, faults included.",
        "调用者写的内容不在任何文件、日志、指标或命令行中，故障时亦然。",
        (
            "observability/test_canary.py::what_a_caller_wrote_is_in_no_file_and_no_command_line",
            "observability/test_logs.py::no_line_holds_what_a_caller_wrote",
        ),
    ),
    "T34": Promise(
        "A kill during hundreds of commits loses and doubles nothing.",
        "在数百次提交中被杀：不丢失也不重复。",
        (
            "conversations/test_processes.py::"
            "kill_during_hundreds_of_commits_loses_and_doubles_nothing",
            "documents/test_conversations.py::"
            "of_turns_that_end_while_the_server_is_killed_no_acknowledged_one_is_lost",
        ),
    ),
    "T35": Promise(
        "A full disk or a locked file makes only conversations unavailable, until it is over.",
        "磁盘满或文件被锁只使会话暂不可用，结束即恢复。",
        (
            f"{SQLITE}a_full_disk_is_survived_without_a_restart",
            f"{SQLITE}a_lock_held_too_long_makes_the_storage_unavailable_until_it_is_released",
            "conversations/test_gevent.py::a_locked_file_holds_up_no_other_greenlet",
        ),
    ),
    "T36": Promise(
        "A damaged file of conversations is moved aside; the service goes on.",
        "损坏的会话文件被移开；服务继续。",
        (
            f"{SQLITE}a_damaged_file_is_moved_aside_at_the_start",
            f"{SQLITE}damage_under_way_is_noticed_and_other_processes_follow",
        ),
    ),
    "T37": Promise(
        "Shared memory is full: refused in words at the start or counted without it, no SIGBUS.",
        "共享内存已满：启动时以文字拒绝或不用它计数，没有 SIGBUS。",
        (
            "doctor/test_doctor.py::too_little_shared_memory_is_a_failure",
            "wire/test_shared_memory.py::no_room_is_an_error_at_creation_and_no_signal_later",
            "metrics/test_truth.py::without_room_for_the_page_the_server_serves_and_says_so_once",
        ),
    ),
    "T38": Promise(
        "The wall clock is set by an hour or a day: no timeout fires, no drain is shorter.",
        "墙上时钟被拨动一小时或一天：没有超时触发，排空不变短。",
        (
            "e2e/test_clock.py::no_timeout_fires_and_no_duration_is_wrong_when_the_clock_is_set",
            "e2e/test_clock.py::a_drain_is_as_long_whatever_the_clock_says",
        ),
    ),
    "T39": Promise(
        "A damaged model is refused and the file named; the engines before it serve on.",
        "损坏的模型被拒绝并指名文件；原有引擎继续服务。",
        (
            "doctor/test_doctor.py::a_damaged_model_is_refused_and_the_file_named",
            f"{RELOAD}a_bad_model_directory_never_replaces_a_good_one",
            "engine/test_nonfinite_logits.py::only_requests_that_meet_the_damage_fail",
        ),
        "weights that are no numbers fail the requests that meet them, not the start",
        "非数权重使遇到它的请求失败，而不是启动失败",
    ),
    "T40": Promise(
        "An address in use is refused in words, a living server untouched, a dead socket replaced.",
        "地址被占用时以文字拒绝，活着的服务不受影响，死套接字被替换。",
        (
            "doctor/test_doctor.py::an_address_in_use_is_a_failure_that_names_the_process",
            "e2e/test_listening.py::a_socket_file_left_behind_is_replaced_and_a_living_one_is_not",
        ),
    ),
    "T41": Promise(
        "Memory that runs out at the start has its words and exit code; in a step it is a death.",
        "启动时内存不足有说明和退出码；步骤中则视为引擎死亡。",
        (
            "worker/test_supervisor_pipe.py::"
            "memory_that_runs_out_at_the_start_has_its_words_and_its_code",
            f"{REPLAY}poison_among_twenty_fails_alone_and_is_refused_afterwards",
        ),
        "a start is not tried again with a smaller cache",
        "不会以更小的缓存再次启动",
    ),
    "T42": Promise(
        "Frames that are cut, garbage or too long close their connection, and nothing else.",
        "被截断、无意义或过长的帧只关闭其连接。",
        (
            "wire/test_protocol.py::garbage_is_a_protocol_error_and_nothing_else",
            "wire/test_protocol.py::a_frame_longer_than_allowed_is_refused_by_its_length_alone",
            "wire/test_connection.py::a_peer_that_breaks_the_contract_is_closed_and_others_go_on",
            "engines/test_replay.py::tokens_of_a_former_attempt_are_dropped",
            "fuzz/test_frames.py::whatever_comes_is_messages_or_a_protocol_error",
        ),
    ),
    "T43": Promise(
        "Without descriptors what runs goes on, and new callers are served when there are some.",
        "描述符用尽时进行中的继续，有了之后新调用者得到服务。",
        (
            "e2e/test_resources.py::"
            "a_process_without_descriptors_serves_what_it_has_and_then_again_what_comes",
            "wire/test_connection.py::"
            "running_out_of_descriptors_delays_a_connection_and_ends_nothing",
        ),
        "callers wait in the backlog and are not told 503",
        "调用者在积压队列中等待，而不是得到 503",
    ),
    "T44": Promise(
        "No caller ends, colours or stretches a line of the log.",
        "任何调用者都不能截断、着色或拉长日志行。",
        (
            "observability/test_logs.py::no_caller_ends_colours_or_stretches_a_line",
            "observability/test_logs.py::a_long_line_is_cut_and_stays_whole",
        ),
    ),
    "T45": Promise(
        "Random bytes and near misses of every format read: no crash, no hang, no growth.",
        "所读各种格式的随机字节和近似输入：不崩溃、不挂起、不增长。",
        (
            "fuzz/test_bodies.py::no_body_makes_the_server_fail",
            "fuzz/test_requests.py::no_bytes_on_a_connection_make_the_server_fail",
            "fuzz/test_frames.py::whatever_comes_is_messages_or_a_protocol_error",
            "fuzz/test_files.py::a_header_of_weights_is_read_or_refused",
            "text/output/test_output_parser.py::the_result_depends_on_the_text_alone",
        ),
        "with hypothesis instead of atheris, for seconds; longer where asked for",
        "用 hypothesis 而非 atheris，运行数秒；可要求更久",
    ),
    "T46": Promise(
        "No header of an answer holds a line break from outside.",
        "回答的头部不含外来的换行。",
        (f"{HTTP}a_request_id_is_kept_when_it_is_one_and_replaced_when_it_is_not",),
    ),
    "T47": Promise(
        "A second supervisor on one run directory is told of the first and ends.",
        "同一运行目录上的第二个监督进程被告知第一个并退出。",
        (f"{FAULTS}a_second_supervisor_on_one_run_directory_is_told_of_the_first",),
    ),
    "T48": Promise(
        "All kinds of faults at random, under callers of all dialects: what is checked holds.",
        "各种故障随机发生，各种方言的调用者在场：检查全部成立。",
        ("chaos/test_chaos.py::a_short_run_of_chaos_loses_and_doubles_nothing",),
    ),
}


def table() -> str:
    """Return the promises as Markdown: a row each."""
    return _table(("id", "what is promised", "tests"), is_chinese=False)


def table_zh() -> str:
    return _table(("编号", "承诺", "测试"), is_chinese=True)


def _table(head: tuple[str, str, str], *, is_chinese: bool) -> str:
    lines = [f"| {' | '.join(head)} |", "|---|---|---|"]
    for name, promise in PROMISES.items():
        says = promise.says_zh if is_chinese else promise.says
        unlike = promise.unlike_zh if is_chinese else promise.unlike
        tests = "<br>".join(f"`{test}`" for test in promise.tests)
        lines.append(f"| {name} | {says}{f' ({unlike})' if unlike else ''} | {tests} |")
    return "\n".join(lines) + "\n"
