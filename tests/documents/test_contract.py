"""What proves each promise: for every conflict between the documents (C1-C26) and every bug of
their own code (1-22) the tests that fail if it is broken, or the sentence of the page on the
documents where it is met by design. This table is checked against the files it names.
"""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]

CONFLICTS = {
    "C1 three documents on one port": [
        "documents/test_all.py::test_the_model_chooses_the_document",
        "documents/test_profiles.py::test_the_defaults_and_the_port_are_the_documents",
        "documents/test_halves.py::test_each_half_answers_and_refuses_in_its_own_dialect",
        "docs: only a `guide` on a port of its own insists on a model",
        "docs: errors have OpenAI's shape",
    ],
    "C2 bodies of /health": [
        "documents/test_golden.py::test_an_answer_is_the_one_on_file",
        "documents/test_all.py::"
        "test_health_is_the_fullest_documents_and_the_neutral_addresses_are_there_too",
    ],
    "C3 JSON or text at /metrics": [
        "api/test_ops.py::"
        "test_metrics_are_json_where_the_news_profile_is_served_and_text_elsewhere",
        "api/test_ops.py::test_a_prometheus_gets_text_everywhere_with_vllms_colons",
    ],
    "C4 max_tokens": [
        "documents/test_profiles.py::test_the_defaults_and_the_port_are_the_documents",
        "documents/test_guide.py::test_the_defaults_are_the_documents",
        "documents/test_news.py::test_values_beyond_the_documents_are_cut_and_said",
        "documents/test_generate.py::test_a_prompt_alone_gets_the_documented_defaults_echoed",
    ],
    "C5 temperature": [
        "documents/test_guide.py::test_a_malformed_request_is_told_from_a_wrong_value",
        "documents/test_news.py::test_values_beyond_the_documents_are_cut_and_said",
        "engine/test_sampler.py::test_temperature_0_is_the_best_token",
    ],
    "C6 top_p, top_k and generation_config": [
        "generation/test_sampling.py::test_the_request_wins_over_the_profile_and_the_profile_over_the_model",
        "docs: A documented default wins over the model's `generation_config.json`",
    ],
    "C7 names of models": [
        "documents/test_all.py::test_the_browsers_two_names_and_three_addresses_are_one",
        "documents/test_all.py::test_the_models_are_the_served_one_and_every_alias",
        "documents/test_guide.py::test_a_malformed_request_is_told_from_a_wrong_value",
        "documents/test_aliases.py::test_every_name_is_listed_with_who_answers_and_as_what",
    ],
    "C8 shapes of errors": [
        "documents/test_all.py::test_each_documents_errors_keep_their_shape_on_the_shared_port",
        "documents/test_golden.py::test_an_answer_is_the_one_on_file",
    ],
    "C9 meanings of 503, always with Retry-After": [
        "documents/test_golden.py::test_an_answer_is_the_one_on_file",
        "documents/test_news.py::test_three_run_ten_wait_and_the_next_is_told_the_queues_figures",
        "api/test_errors.py::test_waiting_is_told_in_seconds_and_milliseconds",
    ],
    "C10 any key or none while keys are off": [
        "documents/test_guide.py::"
        "test_the_openai_library_chats_and_streams_without_asking_for_usage",
        "documents/test_news.py::test_health_is_the_documents",
    ],
    "C11 addresses below /api": [
        "api/test_ops.py::test_every_report_is_of_the_same_numbers",
        "ops/test_nginx.py::"
        "test_the_pages_prefix_leads_to_the_openai_paths_and_the_report_keeps_its_own",
        "documents/test_all.py::test_the_browsers_two_names_and_three_addresses_are_one",
        "documents/test_printed_page.py::"
        "test_a_whole_answer_streams_and_is_shown_to_the_last_character",
    ],
    "C12 two kinds of stream": ["documents/test_golden.py::test_an_answer_is_the_one_on_file"],
    "C13 form or JSON": [
        "documents/test_coder.py::test_json_is_taken_too_and_fields_nobody_documents_are_named"
    ],
    "C14 who keeps the history": [
        "documents/test_coder.py::test_a_session_of_two_turns_knows_its_first",
        "documents/test_coder.py::test_conversations_outlive_a_restart",
        "documents/test_printed.py::test_every_printed_curl_of_a_completion_is_answered",
    ],
    "C15 prose over sample code": [
        "documents/test_golden.py::"
        "test_a_later_turn_is_its_text_alone_and_the_conversation_can_be_read",
        "documents/test_golden.py::test_an_answer_is_the_one_on_file",
        "documents/test_coder.py::"
        "test_a_profile_may_repeat_the_preface_and_begin_anew_for_an_unknown_id",
    ],
    "C16 loading": ["documents/test_generate.py::test_while_the_model_loads_it_says_so"],
    "C17 thinking": [
        "documents/test_guide.py::test_the_model_does_not_think_unless_it_is_asked_to",
        "documents/test_profiles.py::test_no_document_waits_for_a_thought",
    ],
    "C18 names of the figures": [
        "metrics/test_prometheus.py::test_the_documents_four_gauges_come_first_with_its_words",
        "metrics/test_prometheus.py::test_the_names_are_the_ones_dashboards_and_rules_are_built_on",
    ],
    "C19 names and versions": [
        "documents/test_generate.py::test_the_service_describes_itself",
        "docs: Names and versions in these answers are the documents', not this package's.",
    ],
    "C20 limits of each document over one engine": [
        "documents/test_profiles.py::test_only_the_news_are_limited_in_how_many_run",
        "documents/test_halves.py::"
        "test_three_run_and_ten_wait_exactly_while_the_other_half_is_busy",
        "documents/test_guide.py::test_the_load_loop_of_five_threads_never_fails",
    ],
    "C21 patience of servers and of clients": [
        "ops/test_nginx.py::test_a_long_silence_is_bounded_by_the_read_timeout_alone",
        "ops/test_nginx.py::test_a_caller_who_leaves_ends_its_generation_within_a_second",
    ],
    "C22 keys of a choice": [
        "documents/test_all.py::test_the_browsers_two_names_and_three_addresses_are_one",
        "documents/test_news.py::test_a_chat_has_the_documented_keys_and_no_others",
    ],
    "C23 pages of other origins": [
        "documents/test_guide.py::test_a_page_of_another_origin_may_call_and_read",
        "documents/test_guide.py::test_other_profiles_allow_no_other_origin",
    ],
    "C24 what stands at /": [
        "documents/test_all.py::test_a_browser_is_sent_to_the_page_and_a_script_gets_json",
        "documents/test_generate.py::test_the_service_describes_itself",
    ],
    "C25 three ways to operate": [
        "ops/test_units.py::test_the_layouts_place_wrappers_under_the_documents_names",
        "ops/test_docker.py::"
        "test_compose_serves_the_demo_model_on_this_machine_alone_unless_told_otherwise",
    ],
    "C26 utilization is of memory": [
        "metrics/test_report.py::test_the_memory_of_several_gpus_is_added_up_and_each_name_said_once",
        "metrics/test_report.py::test_the_documents_sample_comes_out_field_by_field",
    ],
}

BUGS = {
    "1 generation blocks the event loop": [
        "documents/test_halves.py::test_each_half_answers_and_refuses_in_its_own_dialect",
        "e2e/test_http_on_stub.py::test_a_megabyte_to_tokenize_does_not_hold_up_the_other_streams",
    ],
    "2 one stream at a time": [
        "e2e/test_http_on_stub.py::"
        "test_sixty_four_streams_at_once_each_equal_the_same_request_alone"
    ],
    "3 a failed generation hangs its caller": [
        "documents/test_coder.py::"
        "test_a_stream_whose_engine_fails_is_broken_off_and_its_turn_is_not_kept",
        "documents/test_golden.py::test_an_answer_is_the_one_on_file",
    ],
    "4 a caller who leaves stops nothing": [
        "e2e/test_http_on_stub.py::test_a_client_that_leaves_is_noticed_within_a_tenth_of_a_second",
        "documents/test_coder.py::test_a_turn_whose_caller_leaves_leaves_no_trace",
    ],
    "5 callers choose conversation ids": [
        "documents/test_coder.py::test_multipart_is_refused_and_an_unknown_conversation_is_404",
        "documents/test_coder.py::"
        "test_a_profile_may_repeat_the_preface_and_begin_anew_for_an_unknown_id",
    ],
    "6 turns race and failed ones poison": [
        "documents/test_conversations.py::test_fifty_turns_at_once_make_one_serial_history",
        "documents/test_coder.py::test_a_turn_whose_caller_leaves_leaves_no_trace",
        "documents/test_conversations.py::"
        "test_a_killed_http_worker_costs_the_turn_under_way_and_nothing_else",
    ],
    "7 history without bounds": [
        "documents/test_conversations.py::"
        "test_a_history_longer_than_the_model_is_kept_whole_and_told_in_part",
        "conversations/test_limits.py::test_conversations_expire_and_are_purged_with_their_bytes",
        "conversations/test_limits.py::test_a_conversation_takes_so_many_items_and_no_more",
    ],
    "8 bad input is a 500 that leaks": [
        "documents/test_coder.py::test_a_prompt_that_does_not_fit_is_a_422_list",
        "api/test_errors.py::test_a_failure_of_ours_names_the_request",
    ],
    "9 two threads in one model": [
        "engine/test_batching.py::test_a_seeded_request_is_independent_of_its_neighbours",
        "worker/test_admission.py::"
        "test_a_group_of_three_running_and_ten_waiting_takes_exactly_thirteen",
    ],
    "10 text cut inside a character": [
        "text/test_detokenizer.py::test_token_by_token_the_text_is_whole_and_has_no_replacement",
        "text/test_detokenizer.py::test_special_tokens_are_text_only_when_asked",
    ],
    "11 prompts in the log, remote code, open to all": [
        "e2e/test_http_on_stub.py::test_one_log_line_a_request_without_its_text",
        "test_architecture.py::test_nothing_unsafe_is_imported_or_called",
        "settings/test_settings.py::test_every_shipped_profile_is_valid_and_local",
    ],
    "12 a preface in pieces": [
        "documents/test_coder.py::test_a_session_of_two_turns_knows_its_first"
    ],
    "13 the page's decoder loses text": [
        "api/test_openai_render.py::test_document_003s_decoder_loses_nothing",
        "documents/test_printed.py::test_003_the_decoder_yields_every_character",
        "documents/test_printed_page.py::"
        "test_a_second_question_after_the_first_loses_nothing_either",
        "e2e/test_web_page.py::test_the_event_reader_is_indifferent_to_line_ends_and_cuts",
    ],
    "14 the reader's markup is executed": [
        "e2e/test_web_page.py::test_markup_of_the_reader_and_of_the_model_stays_text",
        "e2e/test_web_page.py::test_no_attack_in_an_answer_becomes_more_than_text",
    ],
    "15 stopping erases the answer": [
        "documents/test_printed_page.py::test_its_stop_button_frees_the_engine",
        "e2e/test_web_page.py::test_stopping_keeps_what_has_come_and_frees_the_engine",
    ],
    "16 input methods, scrolling, highlighting": [
        "e2e/test_web_page.py::"
        "test_an_input_methods_enter_does_not_send_and_shift_enter_starts_a_line",
        "e2e/test_web_page.py::"
        "test_the_page_follows_a_reader_at_the_end_and_leaves_one_who_scrolled_up",
        "e2e/test_web_page.py::test_markdown_is_shown_as_what_it_means",
    ],
    "17 failures are not shown, no history": [
        "e2e/test_web_page.py::"
        "test_a_failure_is_told_beside_what_has_come_and_forgotten_by_the_next_turn",
        "e2e/test_web_page.py::test_the_next_turn_knows_the_turns_before_and_a_new_chat_does_not",
    ],
    "18 errors labelled as streams": [
        "documents/test_printed_page.py::"
        "test_a_refusal_ends_the_answer_though_the_proxy_calls_it_a_stream"
    ],
    "19 clients that look at choices[0] unasked": [
        "documents/test_printed.py::test_002_the_aiohttp_batch_of_64_is_answered_whole",
        "documents/test_printed.py::test_002_the_load_test_counts_answers",
        "documents/test_printed.py::test_002_the_robust_client_answers",
    ],
    "20 the second turn's filter, an address that is a link": [
        "documents/test_printed.py::test_000_the_session_gets_an_id_and_a_second_turn",
        "documents/test_coder.py::test_a_session_of_two_turns_knows_its_first",
    ],
    "21 several sequences, one read": [
        "documents/test_generate.py::test_several_sequences_numbers_in_quotes_and_greedy"
    ],
    "22 a richer health is a false alarm": [
        "documents/test_news.py::test_health_is_the_documents",
        "documents/test_printed.py::"
        "test_004_the_client_classifies_reads_the_metrics_and_finds_the_service_healthy",
        "docs: `status` in `/health` is the documented word and nothing richer",
    ],
}

ROWS = CONFLICTS | BUGS


def test_every_row_has_its_place():
    assert [row.split()[0] for row in CONFLICTS] == [f"C{i}" for i in range(1, 27)]
    assert [row.split()[0] for row in BUGS] == [str(i) for i in range(1, 23)]


@pytest.mark.parametrize("row", ROWS)
def test_what_is_named_exists(row):
    assert ROWS[row]
    for proof in ROWS[row]:
        if proof.startswith("docs: "):
            page = (TESTS.parent / "docs/documents.md").read_text(encoding="utf-8")
            assert proof.removeprefix("docs: ") in page
        else:
            file, name = proof.split("::")
            assert name in functions_of(TESTS / file), proof


def functions_of(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
