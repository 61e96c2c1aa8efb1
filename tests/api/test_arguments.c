/* SPDX-License-Identifier: MIT */
/* What every public function does with arguments it cannot use. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "harness.h"

#define REFUSED(want, text, call)                                                                  \
	do {                                                                                       \
		agentd_error *err = NULL;                                                          \
		int got;                                                                           \
		errno = 4711;                                                                      \
		got = (call);                                                                      \
		ck_assert_msg(errno == 4711, "%s changed errno", #call);                           \
		ck_assert_msg(got == (want), "%s returned %d: %s", #call, got,                     \
			      agentd_error_message(err));                                          \
		t_expect_error(got, want, err, text, NULL);                                        \
	} while (0)

/* The same call without an error object to fill. */
#define REFUSED2(want, text, call, call_without)                                                   \
	do {                                                                                       \
		REFUSED(want, text, call);                                                         \
		ck_assert_int_eq((call_without), want);                                            \
	} while (0)

START_TEST(null_handles)
{
	agentd_error_unref(NULL);
	agentd_runner_unref(NULL);
	agentd_context_unref(NULL);
	agentd_params_unref(NULL);
	agentd_policy_unref(NULL);
	agentd_sink_unref(NULL);
	agentd_exec_unref(NULL);
	agentd_result_unref(NULL);
	agentd_loop_unref(NULL);
	agentd_free(NULL);
	ck_assert_ptr_null(agentd_error_ref(NULL));
	ck_assert_ptr_null(agentd_runner_ref(NULL));
	ck_assert_ptr_null(agentd_context_ref(NULL));
	ck_assert_ptr_null(agentd_params_ref(NULL));
	ck_assert_ptr_null(agentd_policy_ref(NULL));
	ck_assert_ptr_null(agentd_sink_ref(NULL));
	ck_assert_ptr_null(agentd_exec_ref(NULL));
	ck_assert_ptr_null(agentd_result_ref(NULL));
	ck_assert_ptr_null(agentd_loop_ref(NULL));
}
END_TEST

START_TEST(null_readers)
{
	uint64_t value = 7;
	const uint8_t *data = NULL;
	size_t len = 9;

	ck_assert_int_eq(agentd_error_code(NULL), 0);
	ck_assert_int_eq(agentd_error_os_errno(NULL), 0);
	ck_assert_ptr_nonnull(agentd_error_message(NULL));
	ck_assert_ptr_nonnull(agentd_error_pointer(NULL));
	agentd_log_record_level(NULL);
	agentd_log_record_component(NULL);
	agentd_log_record_message(NULL);
	ck_assert_uint_eq(agentd_log_record_field_count(NULL), 0);
	ck_assert_ptr_null(agentd_log_record_field_key(NULL, 0));
	ck_assert_ptr_null(agentd_log_record_field_value(NULL, 0));
	agentd_denial_kind(NULL);
	agentd_denial_target(NULL);
	agentd_denial_rule(NULL);
	agentd_denial_remedy(NULL);
	agentd_limits_init(NULL, sizeof(struct agentd_limits));
	agentd_result_status(NULL);
	agentd_result_cause(NULL);
	agentd_result_backend(NULL);
	ck_assert_int_eq(agentd_result_exit_code(NULL), -1);
	ck_assert_int_eq(agentd_result_signal(NULL), 0);
	agentd_result_limit(NULL);
	ck_assert_int_eq(agentd_result_truncated(NULL), 0);
	ck_assert_ptr_null(agentd_result_error(NULL));
	ck_assert_int_lt(agentd_result_metric(NULL, AGENTD_METRIC_WALL_NS, &value), 0);
	ck_assert_uint_eq(value, 7);
	ck_assert_uint_eq(agentd_result_protection_count(NULL), 0);
	ck_assert_int_lt(agentd_result_protection_at(NULL, 0, NULL, NULL, NULL), 0);
	ck_assert_int_eq(agentd_sink_buffer_get(NULL, AGENTD_STDOUT, &data, &len, NULL),
			 AGENTD_ERR_INVALID);
	agentd_exec_state(NULL);
	agentd_exec_id(NULL);
	ck_assert_ptr_null(agentd_exec_result(NULL));
	ck_assert_ptr_null(agentd_loop_event_base(NULL));
	ck_assert_ptr_nonnull(agentd_runner_digest(NULL));
}
END_TEST

START_TEST(null_exec)
{
	size_t taken = 9;

	ck_assert_int_eq(agentd_exec_cancel(NULL), AGENTD_ERR_INVALID);
	ck_assert_int_eq(agentd_exec_kill(NULL), AGENTD_ERR_INVALID);
	ck_assert_int_eq(agentd_exec_signal(NULL, 15, NULL), AGENTD_ERR_INVALID);
	ck_assert_int_eq(agentd_exec_write(NULL, (const uint8_t *)"x", 1, &taken),
			 AGENTD_ERR_INVALID);
	ck_assert_uint_eq(taken, 9);
	ck_assert_int_eq(agentd_exec_close_stdin(NULL), AGENTD_ERR_INVALID);
	ck_assert_int_eq(agentd_exec_resume(NULL, AGENTD_STDOUT), AGENTD_ERR_INVALID);
	ck_assert_int_eq(agentd_loop_wakeup(NULL), AGENTD_ERR_INVALID);
	ck_assert_int_eq(agentd_runner_shutdown(NULL, 0, NULL, NULL), AGENTD_ERR_INVALID);
	ck_assert_int_eq(agentd_policy_freeze(NULL), AGENTD_ERR_INVALID);
}
END_TEST

START_TEST(null_policy)
{
	struct agentd_limits limits;
	agentd_policy *policy = NULL;
	char *text = NULL;
	size_t len = 0;

	agentd_limits_init(&limits, sizeof(limits));
	REFUSED2(AGENTD_ERR_INVALID, NULL, agentd_policy_new(NULL, &err),
		 agentd_policy_new(NULL, NULL));
	REFUSED2(AGENTD_ERR_INVALID, NULL, agentd_policy_from_json("{}", 2, NULL, &err),
		 agentd_policy_from_json("{}", 2, NULL, NULL));
	REFUSED2(AGENTD_ERR_INVALID, NULL, agentd_policy_from_json(NULL, 2, &policy, &err),
		 agentd_policy_from_json(NULL, 2, &policy, NULL));
	ck_assert_ptr_null(policy);
	ck_assert_int_eq(agentd_policy_new(&policy, NULL), 0);
#define POLICY(call_p, call_null) REFUSED2(AGENTD_ERR_INVALID, NULL, call_p, call_null)
	POLICY(agentd_policy_allow_path(NULL, "/a", AGENTD_ACCESS_READ, &err),
	       agentd_policy_allow_path(NULL, "/a", AGENTD_ACCESS_READ, NULL));
	POLICY(agentd_policy_allow_path(policy, NULL, AGENTD_ACCESS_READ, &err),
	       agentd_policy_allow_path(policy, NULL, AGENTD_ACCESS_READ, NULL));
	POLICY(agentd_policy_deny_path(NULL, "/a", &err),
	       agentd_policy_deny_path(NULL, "/a", NULL));
	POLICY(agentd_policy_deny_path(policy, NULL, &err),
	       agentd_policy_deny_path(policy, NULL, NULL));
	POLICY(agentd_policy_set_net(NULL, AGENTD_NET_NONE, &err),
	       agentd_policy_set_net(NULL, AGENTD_NET_NONE, NULL));
	POLICY(agentd_policy_allow_host(NULL, "a", 0, 0, &err),
	       agentd_policy_allow_host(NULL, "a", 0, 0, NULL));
	POLICY(agentd_policy_allow_host(policy, NULL, 0, 0, &err),
	       agentd_policy_allow_host(policy, NULL, 0, 0, NULL));
	POLICY(agentd_policy_deny_host(NULL, "a", &err), agentd_policy_deny_host(NULL, "a", NULL));
	POLICY(agentd_policy_deny_host(policy, NULL, &err),
	       agentd_policy_deny_host(policy, NULL, NULL));
	POLICY(agentd_policy_set_protection(NULL, "seccomp", 0, &err),
	       agentd_policy_set_protection(NULL, "seccomp", 0, NULL));
	POLICY(agentd_policy_set_protection(policy, NULL, 0, &err),
	       agentd_policy_set_protection(policy, NULL, 0, NULL));
	POLICY(agentd_policy_protect_name(NULL, "a", &err),
	       agentd_policy_protect_name(NULL, "a", NULL));
	POLICY(agentd_policy_protect_name(policy, NULL, &err),
	       agentd_policy_protect_name(policy, NULL, NULL));
	POLICY(agentd_policy_require_kvm(NULL, &err), agentd_policy_require_kvm(NULL, NULL));
	POLICY(agentd_policy_discard_unfinished(NULL, &err),
	       agentd_policy_discard_unfinished(NULL, NULL));
	POLICY(agentd_policy_allow_env(NULL, "A", &err), agentd_policy_allow_env(NULL, "A", NULL));
	POLICY(agentd_policy_allow_env(policy, NULL, &err),
	       agentd_policy_allow_env(policy, NULL, NULL));
	POLICY(agentd_policy_set_limits(NULL, &limits, &err),
	       agentd_policy_set_limits(NULL, &limits, NULL));
	POLICY(agentd_policy_set_limits(policy, NULL, &err),
	       agentd_policy_set_limits(policy, NULL, NULL));
	POLICY(agentd_policy_set_min_isolation(NULL, 0, &err),
	       agentd_policy_set_min_isolation(NULL, 0, NULL));
	POLICY(agentd_policy_to_json(NULL, &text, &len, &err),
	       agentd_policy_to_json(NULL, &text, &len, NULL));
	POLICY(agentd_policy_to_json(policy, NULL, &len, &err),
	       agentd_policy_to_json(policy, NULL, &len, NULL));
	ck_assert_ptr_null(text);
	agentd_policy_unref(policy);
}
END_TEST

START_TEST(null_context)
{
	static const char *const shell[] = { NULL };
	struct agentd_limits limits;
	agentd_context *ctx = NULL;

	agentd_limits_init(&limits, sizeof(limits));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_new(NULL, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_from_json("{}", 2, NULL, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_from_json(NULL, 2, &ctx, &err));
	ck_assert_ptr_null(ctx);
	ck_assert_int_eq(agentd_context_new(&ctx, NULL), 0);
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_set_policy(NULL, NULL, &err));
	ck_assert_int_eq(agentd_context_set_policy(ctx, NULL, NULL), 0);
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_set_limits(NULL, &limits, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_set_limits(ctx, NULL, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_set_backend(NULL, "host", &err));
	ck_assert_int_eq(agentd_context_set_backend(ctx, NULL, NULL), 0);
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_set_rootfs(NULL, "/", &err));
	ck_assert_int_eq(agentd_context_set_rootfs(ctx, NULL, NULL), 0);
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_set_workdir(NULL, "/", &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_set_workdir(ctx, NULL, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_set_env(NULL, "A", "b", &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_set_env(ctx, NULL, "b", &err));
	ck_assert_int_eq(agentd_context_set_env(ctx, "A", NULL, NULL), 0);
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_add_mount(NULL, "/a", "/b", 1, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_add_mount(ctx, NULL, "/b", 1, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_add_mount(ctx, "/a", NULL, 1, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_set_trace_id(NULL, "t", &err));
	ck_assert_int_eq(agentd_context_set_trace_id(ctx, NULL, NULL), 0);
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_set_credentials(NULL, "t", 0, &err));
	ck_assert_int_eq(agentd_context_set_credentials(ctx, NULL, 0, NULL), 0);
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_set_netns(NULL, -1, &err));
	ck_assert_int_eq(agentd_context_set_netns(ctx, -1, NULL), 0);
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_set_shell(NULL, NULL, &err));
	ck_assert_int_eq(agentd_context_set_shell(ctx, NULL, NULL), 0);
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_set_shell(ctx, shell, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_set_label(NULL, "k", "v", &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_set_label(ctx, NULL, "v", &err));
	ck_assert_int_eq(agentd_context_set_label(ctx, "k", NULL, NULL), 0);
	agentd_context_unref(ctx);
}
END_TEST

START_TEST(null_params_and_sinks)
{
	static const struct agentd_sink_ops ops = { .size = sizeof(ops) };
	static const char *const empty[] = { NULL };
	static const char *const good[] = { "true", NULL };
	agentd_params *params = NULL;
	agentd_sink *sink = NULL, *other = NULL;
	const uint8_t *data = NULL;
	char *text = NULL;
	size_t len = 77;

	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_params_parse(NULL, 2, &params, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_params_parse(NULL, 0, &params, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL,
		agentd_params_parse("{\"command\":\"a\"}", 15, NULL, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_params_new_shell(NULL, 0, &params, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_params_new_shell("a", 0, NULL, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_params_new_argv(NULL, 0, &params, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_params_new_argv(empty, 0, &params, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_params_new_argv(good, 0, NULL, &err));
	ck_assert_ptr_null(params);
	ck_assert_int_eq(agentd_params_new_argv(good, 0, &params, NULL), 0);
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_params_to_json(NULL, &text, &len, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_params_to_json(params, NULL, &len, &err));
	ck_assert_uint_eq(len, 77);
	agentd_params_unref(params);

	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_sink_new(NULL, NULL, &sink, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_sink_new(&ops, NULL, NULL, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_sink_new_buffer(1, 1, NULL, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_sink_new_fd(1, 2, NULL, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_sink_new_fd(-2, 2, &sink, &err));
	ck_assert_ptr_null(sink);
	ck_assert_int_eq(agentd_sink_new(&ops, NULL, &sink, NULL), 0);
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_sink_new_tee(NULL, sink, &other, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_sink_new_tee(sink, NULL, &other, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_sink_new_tee(sink, sink, NULL, &err));
	ck_assert_ptr_null(other);
	ck_assert_int_eq(agentd_sink_buffer_get(sink, AGENTD_STDOUT, &data, &len, NULL),
			 AGENTD_ERR_INVALID);
	agentd_sink_unref(sink);
	ck_assert_int_eq(agentd_sink_new_buffer(0, 0, &sink, NULL), 0);
	ck_assert_int_eq(agentd_sink_buffer_get(sink, AGENTD_STDOUT, NULL, &len, NULL),
			 AGENTD_ERR_INVALID);
	ck_assert_int_eq(agentd_sink_buffer_get(sink, AGENTD_STDOUT, &data, NULL, NULL),
			 AGENTD_ERR_INVALID);
	ck_assert_int_eq(agentd_sink_buffer_get(sink, AGENTD_STDIN, &data, &len, NULL),
			 AGENTD_ERR_INVALID);
	ck_assert_int_eq(agentd_sink_buffer_get(sink, AGENTD_STDOUT, &data, &len, NULL), 0);
	ck_assert_uint_eq(len, 0);
	agentd_sink_unref(sink);
}
END_TEST

START_TEST(null_runner_and_loop)
{
	struct t_world *world = t_world_new(NULL);
	struct agentd_runner_opts opts = { .size = sizeof(opts), .event_base = world->base };
	agentd_runner *runner = NULL;
	agentd_params *params = NULL;
	agentd_loop *loop = NULL;
	agentd_exec *exec = NULL;
	char *text = NULL;
	struct t_run run;
	size_t taken = 9;

	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_runner_new(NULL, &runner, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_runner_new(&opts, NULL, &err));
	opts.event_base = NULL;
	REFUSED(AGENTD_ERR_INVALID, "event_base", agentd_runner_new(&opts, &runner, &err));
	ck_assert_ptr_null(runner);
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_runner_add_backend(NULL, NULL, NULL, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL,
		agentd_runner_add_backend(world->runner, NULL, NULL, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL,
		agentd_runner_validate(NULL, "{\"command\":\"a\"}", 15, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_runner_validate(world->runner, NULL, 15, &err));
	ck_assert_int_eq(agentd_params_new_shell("true", 0, &params, NULL), 0);
	REFUSED(AGENTD_ERR_INVALID, NULL,
		agentd_runner_explain(NULL, world->ctx, params, &text, NULL, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL,
		agentd_runner_explain(world->runner, NULL, params, &text, NULL, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL,
		agentd_runner_explain(world->runner, world->ctx, NULL, &text, NULL, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL,
		agentd_runner_explain(world->runner, world->ctx, params, NULL, NULL, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL,
		agentd_exec_start(NULL, world->ctx, params, NULL, NULL, &exec, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL,
		agentd_exec_start(world->runner, NULL, params, NULL, NULL, &exec, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL,
		agentd_exec_start(world->runner, world->ctx, NULL, NULL, NULL, &exec, &err));
	ck_assert_ptr_null(exec);
	ck_assert_ptr_null(text);

	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_loop_new(NULL, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_loop_run(NULL, 0, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_loop_run_until(NULL, NULL, 0, &err));
	ck_assert_int_eq(agentd_loop_new(&loop, NULL), 0);
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_loop_run_until(loop, NULL, 0, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_loop_run(loop, -2, &err));
	agentd_loop_unref(loop);

	/* nothing is wanted of it: no sink, no handle, no options, no error */
	ck_assert_int_eq(agentd_exec_start(world->runner, world->ctx, params, NULL, NULL, NULL,
					   NULL),
			 0);
	t_run_init(&run, world);
	ck_assert_int_eq(t_run_start_params(&run, params, NULL), 0);
	ck_assert_int_eq(agentd_exec_write(run.exec, NULL, 1, &taken), AGENTD_ERR_INVALID);
	ck_assert_int_eq(agentd_exec_write(run.exec, (const uint8_t *)"", 0, NULL),
			 AGENTD_ERR_INVALID);
	ck_assert_int_eq(agentd_exec_resume(run.exec, AGENTD_STDIN), AGENTD_ERR_INVALID);
	ck_assert_int_eq(agentd_exec_resume(run.exec, 3), AGENTD_ERR_INVALID);
	ck_assert_int_eq(agentd_exec_resume(run.exec, -1), AGENTD_ERR_INVALID);
	t_run_wait(&run);
	ck_assert_int_eq(agentd_result_metric(run.result, AGENTD_METRIC_WALL_NS, NULL),
			 AGENTD_ERR_INVALID);
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_result_to_json(NULL, &text, NULL, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_result_to_json(run.result, NULL, NULL, &err));
	agentd_params_unref(params);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

/* ---- sized structs */

/* Every size a caller may claim, with the bytes it claims really there: a struct
 * at the end of a page, so that reading past it crashes. */
typedef int (*use_fn)(void *data, void *userdata, agentd_error **reterr);

static void check_sizes(const char *what, const void *good, size_t size, size_t first, use_fn use,
			void *userdata)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	uint8_t *map = mmap(NULL, page * 4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			    0);
	uint8_t *end = map + page * 3;
	static const uint32_t absurd[] = { 0, 1, 3, 4, 7, 4097, 65536, UINT32_MAX };
	agentd_error *err;
	uint32_t claim;
	uint8_t *at;
	int r;

	ck_assert_ptr_ne(map, MAP_FAILED);
	ck_assert_int_eq(mprotect(end, page, PROT_NONE), 0);
	for (size_t i = 0; i < T_COUNT(absurd); i++) {
		at = end - 8192;
		memcpy(at, good, size);
		memcpy(at, &absurd[i], sizeof(absurd[i]));
		err = NULL;
		r = use(at, userdata, &err);
		ck_assert_msg(r == AGENTD_ERR_ABI, "%s of size %u: %d", what, absurd[i], r);
		t_expect_error(r, AGENTD_ERR_ABI, err, what, NULL);
		ck_assert_int_eq(use(at, userdata, NULL), AGENTD_ERR_ABI);
	}
	/* smaller than in the first release: no such library ever was */
	claim = (uint32_t)first - 8;
	at = end - claim;
	memcpy(at, good, claim);
	memcpy(at, &claim, sizeof(claim));
	err = NULL;
	r = use(at, userdata, &err);
	t_expect_error(r, AGENTD_ERR_ABI, err, what, NULL);
	/* as it is */
	at = end - size;
	memcpy(at, good, size);
	r = use(at, userdata, NULL);
	ck_assert_msg(r == 0, "%s: %d", what, r);
	/* newer, with nothing in what is not known here */
	for (claim = (uint32_t)size + 8; claim <= 4096; claim = claim < 4088 ? 4088 : claim + 8) {
		at = end - claim;
		memset(at, 0, claim);
		memcpy(at, good, size);
		memcpy(at, &claim, sizeof(claim));
		r = use(at, userdata, NULL);
		ck_assert_msg(r == 0, "%s with a zero tail to %u: %d", what, claim, r);
		at[claim - 1] = 1;
		err = NULL;
		r = use(at, userdata, &err);
		t_expect_error(r, AGENTD_ERR_ABI, err, what, NULL);
		at[claim - 1] = 0;
		at[size] = 0x80;
		err = NULL;
		r = use(at, userdata, &err);
		t_expect_error(r, AGENTD_ERR_ABI, err, what, NULL);
	}
	munmap(map, page * 4);
}

static int use_policy_limits(void *data, void *userdata, agentd_error **reterr)
{
	return agentd_policy_set_limits(userdata, data, reterr);
}

static int use_context_limits(void *data, void *userdata, agentd_error **reterr)
{
	return agentd_context_set_limits(userdata, data, reterr);
}

static int use_sink_ops(void *data, void *userdata, agentd_error **reterr)
{
	agentd_sink *sink = NULL;
	int r = agentd_sink_new(data, userdata, &sink, reterr);

	ck_assert((r == 0) == (sink != NULL));
	agentd_sink_unref(sink);
	return r;
}

static int use_runner_opts(void *data, void *userdata, agentd_error **reterr)
{
	agentd_runner *runner = NULL;
	int r = agentd_runner_new(data, &runner, reterr);

	(void)userdata;
	ck_assert((r == 0) == (runner != NULL));
	agentd_runner_unref(runner);
	return r;
}

struct start_with {
	struct t_world *world;
	agentd_params *params;
};

static int use_exec_opts(void *data, void *userdata, agentd_error **reterr)
{
	struct start_with *with = userdata;
	agentd_exec *exec = NULL;
	int r = agentd_exec_start(with->world->runner, with->world->ctx, with->params, NULL, data,
				  &exec, reterr);

	ck_assert((r == 0) == (exec != NULL));
	agentd_exec_unref(exec);
	return r;
}

static int use_exec_limits(void *data, void *userdata, agentd_error **reterr)
{
	struct agentd_exec_opts opts = { .size = sizeof(opts), .limits = data };

	return use_exec_opts(&opts, userdata, reterr);
}

START_TEST(claimed_sizes)
{
	struct t_world *world = t_world_new(&(struct t_world_opts){ .max_queued = 100 });
	struct agentd_runner_opts ropts = { .size = sizeof(ropts),
					    .event_base = world->base,
					    .helper_path = world->helper };
	struct agentd_exec_opts eopts = { .size = sizeof(eopts) };
	struct agentd_sink_ops sops = { .size = sizeof(sops) };
	struct agentd_limits limits;
	struct start_with with = { .world = world };
	agentd_policy *policy = NULL;

	agentd_limits_init(&limits, sizeof(limits));
	ck_assert_int_eq(agentd_policy_new(&policy, NULL), 0);
	ck_assert_int_eq(agentd_params_new_shell("true", 0, &with.params, NULL), 0);
	check_sizes("agentd_limits", &limits, sizeof(limits), sizeof(limits), use_policy_limits,
		    policy);
	check_sizes("agentd_limits", &limits, sizeof(limits), sizeof(limits), use_context_limits,
		    world->ctx);
	check_sizes("agentd_limits", &limits, sizeof(limits), sizeof(limits), use_exec_limits,
		    &with);
	check_sizes("agentd_exec_opts", &eopts, sizeof(eopts), sizeof(eopts), use_exec_opts, &with);
	check_sizes("agentd_sink_ops", &sops, sizeof(sops), sizeof(sops), use_sink_ops, NULL);
	check_sizes("agentd_runner_opts", &ropts, sizeof(ropts),
		    offsetof(struct agentd_runner_opts, sandbox_tmp_bytes), use_runner_opts, NULL);
	agentd_policy_unref(policy);
	agentd_params_unref(with.params);
	t_world_free(world);
}
END_TEST

START_TEST(reserved_and_flags)
{
	struct t_world *world = t_world_new(NULL);
	struct agentd_runner_opts ropts = { .size = sizeof(ropts),
					    .event_base = world->base,
					    .helper_path = world->helper };
	struct agentd_exec_opts eopts = { .size = sizeof(eopts) };
	struct agentd_sink_ops sops = { .size = sizeof(sops), .reserved0 = 1 };
	struct start_with with = { .world = world };

	ck_assert_int_eq(agentd_params_new_shell("true", 0, &with.params, NULL), 0);
	REFUSED(AGENTD_ERR_ABI, "reserved0", use_sink_ops(&sops, NULL, &err));
	ropts.reserved0 = 1;
	REFUSED(AGENTD_ERR_ABI, "reserved0", use_runner_opts(&ropts, NULL, &err));
	ropts.reserved0 = 0;
	ropts.reserved1 = 1;
	REFUSED(AGENTD_ERR_ABI, "reserved1", use_runner_opts(&ropts, NULL, &err));
	ropts.reserved1 = 0;
	ropts.sandbox_prewarm = 65;
	REFUSED(AGENTD_ERR_INVALID, "sandbox_prewarm", use_runner_opts(&ropts, NULL, &err));
	ropts.sandbox_prewarm = 0;
	ropts.flags = 0x80000000U;
	REFUSED(AGENTD_ERR_INVALID, "flags", use_runner_opts(&ropts, NULL, &err));
	ropts.flags = 0;
	ropts.log_level = 4;
	REFUSED(AGENTD_ERR_INVALID, "log_level", use_runner_opts(&ropts, NULL, &err));
	ropts.log_level = -1;
	REFUSED(AGENTD_ERR_INVALID, "log_level", use_runner_opts(&ropts, NULL, &err));
	ropts.log_level = 0;
	ropts.helper_path = "/nonexistent/agentd-helper";
	REFUSED(AGENTD_ERR_NOTFOUND, "/nonexistent/agentd-helper",
		use_runner_opts(&ropts, NULL, &err));
	ropts.helper_path = "relative/agentd-helper";
	{
		agentd_error *err = NULL;
		int r = use_runner_opts(&ropts, NULL, &err);

		ck_assert_msg(r == AGENTD_ERR_NOTFOUND || r == AGENTD_ERR_INVALID, "%d", r);
		t_expect_error(r, r, err, "relative/agentd-helper", NULL);
	}
	eopts.reserved0 = 1;
	REFUSED(AGENTD_ERR_ABI, "reserved0", use_exec_opts(&eopts, &with, &err));
	eopts.reserved0 = 0;
	eopts.flags = 0x40000000U;
	REFUSED(AGENTD_ERR_INVALID, "flags", use_exec_opts(&eopts, &with, &err));
	agentd_params_unref(with.params);
	t_world_free(world);
}
END_TEST

/* A helper that is no helper: an error soon, and nothing is left of it. */
START_TEST(wrong_helper)
{
	struct t_world *world = t_world_new_bare(NULL);
	char *text = t_format("%s/text", world->dir), *empty = t_format("%s/empty", world->dir);
	const char *const bad[] = { text, empty, world->dir, "/bin/true" };
	agentd_error *err;
	struct t_run run;

	t_write_file(text, "this is not a program\n");
	t_write_file(empty, "");
	world->base = event_base_new();
	world->owns_base = true;
	for (size_t i = 0; i < T_COUNT(bad); i++) {
		struct agentd_runner_opts opts = { .size = sizeof(opts),
						   .event_base = world->base,
						   .helper_path = bad[i] };
		agentd_policy *policy = t_policy_none();
		int r;

		opts.policy = policy;
		err = NULL;
		r = agentd_runner_new(&opts, &world->runner, &err);
		agentd_policy_unref(policy);
		if (r < 0) {
			t_expect_error(r, r, err, NULL, NULL);
			ck_assert_ptr_null(world->runner);
			continue;
		}
		/* It ran, but it is no helper: every command fails, in time. */
		world->ctx = t_world_context(world);
		t_run(&run, world, "echo never", 0);
		ck_assert_int_ne(agentd_result_status(run.result), AGENTD_STATUS_OK);
		ck_assert_ptr_nonnull(agentd_result_error(run.result));
		ck_assert_int_eq(run.started, 0);
		t_run_free(&run);
		agentd_context_unref(world->ctx);
		world->ctx = NULL;
		t_world_shutdown(world);
	}
	free(text);
	free(empty);
	t_world_free(world);
}
END_TEST

START_TEST(limits_init)
{
	union {
		struct agentd_limits limits;
		uint8_t bytes[4096];
	} big;
	static const uint32_t sizes[] = { 8, 12, 16, sizeof(struct agentd_limits), 200, 4096 };

	for (uint32_t size = 0; size < 8; size++) {
		memset(&big, 0xff, sizeof(big));
		agentd_limits_init(&big.limits, size);
		for (size_t i = 0; i < sizeof(big); i++)
			T_CHECK(big.bytes[i] == 0xff, "byte %zu was written", i);
	}
	for (size_t j = 0; j < T_COUNT(sizes); j++) {
		memset(&big, 0xff, sizeof(big));
		agentd_limits_init(&big.limits, sizes[j]);
		ck_assert_uint_eq(big.limits.size, sizes[j]);
		for (size_t i = sizeof(uint32_t); i < sizeof(big); i++)
			T_CHECK(big.bytes[i] == (i < sizes[j] ? 0 : 0xff), "byte %zu", i);
	}
}
END_TEST

/* ---- values */

START_TEST(bad_context_values)
{
	static const char *const bad_paths[] = { "", "a", "./a", "/a/../b", "/a/./b", "/..", "/." };
	static const char *const bad_names[] = { "", "A=B", "=" };
	char *longest = malloc(6000);
	agentd_context *ctx = NULL;

	ck_assert_ptr_nonnull(longest);
	memset(longest, 'a', 5999);
	longest[0] = '/';
	longest[5999] = '\0';
	ck_assert_int_eq(agentd_context_new(&ctx, NULL), 0);
	for (size_t i = 0; i < T_COUNT(bad_paths) + 1; i++) {
		const char *path = i < T_COUNT(bad_paths) ? bad_paths[i] : longest;

		REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_set_workdir(ctx, path, &err));
		REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_set_rootfs(ctx, path, &err));
		REFUSED(AGENTD_ERR_INVALID, NULL,
			agentd_context_add_mount(ctx, path, "/b", AGENTD_ACCESS_READ, &err));
		REFUSED(AGENTD_ERR_INVALID, NULL,
			agentd_context_add_mount(ctx, "/b", path, AGENTD_ACCESS_READ, &err));
	}
	for (size_t i = 0; i < T_COUNT(bad_names); i++)
		REFUSED(AGENTD_ERR_INVALID, NULL,
			agentd_context_set_env(ctx, bad_names[i], "v", &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_add_mount(ctx, "/a", "/b", 0, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_add_mount(ctx, "/a", "/b", 8, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_context_set_netns(ctx, -2, &err));
	{
		agentd_error *err = NULL;
		int r = agentd_context_set_netns(ctx, 987654, &err);

		ck_assert_int_lt(r, 0);
		t_expect_error(r, r, err, NULL, NULL);
	}
	/* what is looked at only at the start is taken */
	ck_assert_int_eq(agentd_context_set_workdir(ctx, "/nonexistent/dir", NULL), 0);
	agentd_context_unref(ctx);
	free(longest);
}
END_TEST

START_TEST(bad_policy_values)
{
	agentd_policy *policy = NULL;

	ck_assert_int_eq(agentd_policy_new(&policy, NULL), 0);
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_policy_allow_path(policy, "a", 1, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_policy_allow_path(policy, "/a/../b", 1, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_policy_allow_path(policy, "/a", 0, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_policy_allow_path(policy, "/a", 16, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_policy_deny_path(policy, "a", &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_policy_set_net(policy, 3, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_policy_set_net(policy, -1, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_policy_allow_host(policy, "*", 0, 0, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_policy_allow_host(policy, "", 0, 0, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL,
		agentd_policy_allow_host(policy, "example.org", 9, 8, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_policy_deny_host(policy, "a b", &err));
	REFUSED(AGENTD_ERR_INVALID, NULL,
		agentd_policy_set_protection(policy, "no-such-layer", 0, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_policy_set_protection(policy, "seccomp", 3, &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_policy_protect_name(policy, "/abs", &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_policy_protect_name(policy, "a/../b", &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_policy_protect_name(policy, "", &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_policy_allow_env(policy, "", &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_policy_allow_env(policy, "A=B", &err));
	REFUSED(AGENTD_ERR_INVALID, NULL, agentd_policy_set_min_isolation(policy, -1, &err));
	/* frozen: nothing may be changed, everything may be read */
	ck_assert_int_eq(agentd_policy_freeze(policy), 0);
	ck_assert_int_eq(agentd_policy_freeze(policy), 0);
	REFUSED(AGENTD_ERR_STATE, NULL, agentd_policy_allow_path(policy, "/a", 1, &err));
	REFUSED(AGENTD_ERR_STATE, NULL, agentd_policy_deny_path(policy, "/a", &err));
	REFUSED(AGENTD_ERR_STATE, NULL, agentd_policy_set_net(policy, 0, &err));
	REFUSED(AGENTD_ERR_STATE, NULL, agentd_policy_allow_host(policy, "a.b", 0, 0, &err));
	REFUSED(AGENTD_ERR_STATE, NULL, agentd_policy_deny_host(policy, "a.b", &err));
	REFUSED(AGENTD_ERR_STATE, NULL, agentd_policy_set_protection(policy, "seccomp", 0, &err));
	REFUSED(AGENTD_ERR_STATE, NULL, agentd_policy_protect_name(policy, "a", &err));
	REFUSED(AGENTD_ERR_STATE, NULL, agentd_policy_require_kvm(policy, &err));
	REFUSED(AGENTD_ERR_STATE, NULL, agentd_policy_discard_unfinished(policy, &err));
	REFUSED(AGENTD_ERR_STATE, NULL, agentd_policy_allow_env(policy, "A", &err));
	REFUSED(AGENTD_ERR_STATE, NULL, agentd_policy_set_min_isolation(policy, 0, &err));
	agentd_policy_unref(policy);
}
END_TEST

START_TEST(start_refusals)
{
	struct t_world *world = t_world_new(NULL);
	agentd_params *params = NULL;
	agentd_context *ctx = NULL;
	agentd_policy *policy;
	agentd_error *err = NULL;
	struct t_run run;
	int r;

	ck_assert_int_eq(agentd_params_new_shell("true", 0, &params, NULL), 0);
	/* a context without a workdir */
	ck_assert_int_eq(agentd_context_new(&ctx, NULL), 0);
	policy = t_policy_none();
	ck_assert_int_eq(agentd_context_set_policy(ctx, policy, NULL), 0);
	agentd_policy_unref(policy);
	t_run_init(&run, world);
	run.ctx = ctx;
	r = t_run_start_params(&run, params, &err);
	t_expect_error(r, AGENTD_ERR_INVALID, err, "workdir", "/workdir");
	agentd_context_unref(ctx);
	/* a backend that does not exist, named with those that do */
	ck_assert_int_eq(agentd_context_set_backend(world->ctx, "nosuch", NULL), 0);
	t_run_init(&run, world);
	err = NULL;
	r = t_run_start_params(&run, params, &err);
	t_expect_error(r, AGENTD_ERR_NOTFOUND, err, "nosuch", "/backend");
	/* after the start of a shutdown */
	ck_assert_int_eq(agentd_context_set_backend(world->ctx, "host", NULL), 0);
	ck_assert_int_eq(agentd_runner_shutdown(world->runner, 0, NULL, NULL), 0);
	ck_assert_int_eq(agentd_runner_shutdown(world->runner, 0, NULL, NULL), AGENTD_ERR_STATE);
	t_run_init(&run, world);
	err = NULL;
	r = t_run_start_params(&run, params, &err);
	t_expect_error(r, AGENTD_ERR_STATE, err, NULL, NULL);
	t_world_loop(world, 200, NULL);
	agentd_runner_unref(world->runner);
	world->runner = NULL;
	agentd_params_unref(params);
	t_world_free(world);
}
END_TEST

/* A refusal is a result: nothing runs, `finished` comes, and the error says what
 * to change. */
START_TEST(refusals_are_results)
{
	struct t_world *world = t_world_new(NULL);
	agentd_policy *policy = NULL;
	const agentd_error *err;
	struct t_run run;

	/* the context asks for a sandbox (the default), the backend is host */
	ck_assert_int_eq(agentd_context_set_policy(world->ctx, NULL, NULL), 0);
	t_run(&run, world, "echo > marker", 0);
	t_expect_status(&run, AGENTD_STATUS_DENIED);
	t_expect_cause(&run, AGENTD_CAUSE_ISOLATION);
	err = agentd_result_error(run.result);
	ck_assert_int_eq(agentd_error_code(err), AGENTD_ERR_DENIED);
	ck_assert_str_eq(agentd_result_backend(run.result), "");
	ck_assert_int_eq(run.started, 0);
	ck_assert_int_eq(agentd_result_exit_code(run.result), -1);
	t_run_free(&run);

	/* none is named and none is strong enough */
	ck_assert_int_eq(agentd_policy_new(&policy, NULL), 0);
	ck_assert_int_eq(agentd_policy_set_min_isolation(policy, AGENTD_ISOLATION_VM, NULL), 0);
	ck_assert_int_eq(agentd_context_set_policy(world->ctx, policy, NULL), 0);
	agentd_policy_unref(policy);
	ck_assert_int_eq(agentd_context_set_backend(world->ctx, NULL, NULL), 0);
	t_run(&run, world, "echo > marker", 0);
	t_expect_status(&run, AGENTD_STATUS_DENIED);
	t_expect_cause(&run, AGENTD_CAUSE_ISOLATION);
	t_run_free(&run);

	/* the context asks for more than the runner's policy allows */
	policy = t_policy_none();
	ck_assert_int_eq(agentd_policy_set_net(policy, AGENTD_NET_FULL, NULL), 0);
	ck_assert_int_eq(agentd_context_set_policy(world->ctx, policy, NULL), 0);
	agentd_policy_unref(policy);
	ck_assert_int_eq(agentd_context_set_backend(world->ctx, "host", NULL), 0);
	t_run(&run, world, "echo > marker", 0);
	t_expect_status(&run, AGENTD_STATUS_DENIED);
	t_expect_cause(&run, AGENTD_CAUSE_POLICY);
	ck_assert_int_eq(agentd_error_code(agentd_result_error(run.result)), AGENTD_ERR_DENIED);
	t_run_free(&run);

	/* credentials of yesterday */
	policy = t_policy_none();
	ck_assert_int_eq(agentd_context_set_policy(world->ctx, policy, NULL), 0);
	agentd_policy_unref(policy);
	ck_assert_int_eq(agentd_context_set_credentials(world->ctx, "s3cret", 1, NULL), 0);
	t_run(&run, world, "echo > marker", 0);
	t_expect_status(&run, AGENTD_STATUS_DENIED);
	t_expect_cause(&run, AGENTD_CAUSE_POLICY);
	ck_assert_ptr_null(strstr(t_run_story(&run), "s3cret"));
	t_run_free(&run);
	{
		char *marker = t_format("%s/marker", world->workdir);

		ck_assert_int_ne(access(marker, F_OK), 0);
		free(marker);
	}
	t_world_free(world);
}
END_TEST

int main(void)
{
	TCase *nulls = t_case("nulls", 30), *structs = t_case("structs", 60);
	TCase *values = t_case("values", 30);
	TCase *const cases[] = { nulls, structs, values };

	tcase_add_test(nulls, null_handles);
	tcase_add_test(nulls, null_readers);
	tcase_add_test(nulls, null_exec);
	tcase_add_test(nulls, null_policy);
	tcase_add_test(nulls, null_context);
	tcase_add_test(nulls, null_params_and_sinks);
	tcase_add_test(nulls, null_runner_and_loop);
	tcase_add_test(structs, claimed_sizes);
	tcase_add_test(structs, reserved_and_flags);
	tcase_add_test(structs, limits_init);
	tcase_add_test(structs, wrong_helper);
	tcase_add_test(values, bad_context_values);
	tcase_add_test(values, bad_policy_values);
	tcase_add_test(values, start_refusals);
	tcase_add_test(values, refusals_are_results);
	return t_main("arguments", cases, T_COUNT(cases));
}
