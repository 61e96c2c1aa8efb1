/* SPDX-License-Identifier: MIT */
/* The library's half of the sandbox backend, with a helper that puts up nothing: what
 * is asked for, and what becomes of each answer. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "launch/launch.h"
#include "proto/helper_msg.h"

static agentd_policy *policy_of(const char *json)
{
	agentd_error *err = NULL;
	agentd_policy *policy = NULL;

	ck_assert_msg(agentd_policy_from_json(json, strlen(json), &policy, &err) == 0, "%s",
		      agentd_error_message(err));
	return policy;
}

static struct t_world *world;

static void set_policy(const char *json)
{
	agentd_policy *policy = policy_of(json);

	ck_assert_int_eq(agentd_context_set_policy(world->ctx, policy, NULL), 0);
	agentd_policy_unref(policy);
}

static void setup(void)
{
	world = t_world_new(&(struct t_world_opts){
		.backend = "sandbox",
		.max_queued = 64,
		.runner_policy = "{\"min_isolation\": \"none\", \"paths\": {\"read\": [\"/\"],"
				 " \"write\": [\"/\"], \"exec\": [\"/\"]},"
				 " \"net\": {\"mode\": \"full\"}}" });
}

static void teardown(void)
{
	t_world_free(world);
}

static struct t_run run;

static void run_argv(const char *const *argv)
{
	agentd_params *params = NULL;

	ck_assert_int_eq(agentd_params_new_argv(argv, 0, &params, NULL), 0);
	t_run_init(&run, world);
	ck_assert_int_eq(t_run_start_params(&run, params, NULL), 0);
	agentd_params_unref(params);
	t_run_wait(&run);
}

/* A line of what the helper shows it was asked for. */
static bool shown(const char *line)
{
	char *text = t_format("\n%.*s", (int)run.out_len[AGENTD_STDOUT],
			      (const char *)run.out[AGENTD_STDOUT]);
	char *wanted = t_format("\n%s\n", line);
	bool found = strstr(text, wanted) != NULL;

	if (!found)
		fprintf(stderr, "no line \"%s\" in:\n%s", line, text);
	free(text);
	free(wanted);
	return found;
}

static size_t lines_with(const char *start)
{
	char *text = t_format("\n%.*s", (int)run.out_len[AGENTD_STDOUT],
			      (const char *)run.out[AGENTD_STDOUT]);
	char *wanted = t_format("\n%s", start);
	size_t count = 0;

	for (const char *at = text; (at = strstr(at, wanted)); at++)
		count++;
	free(text);
	free(wanted);
	return count;
}

static void show(void)
{
	static const char *const argv[] = { "show", NULL };

	run_argv(argv);
	t_expect_status(&run, AGENTD_STATUS_OK);
}

#define CK_SHOWN(...)                                                                              \
	do {                                                                                       \
		char *line_ = t_format(__VA_ARGS__);                                               \
		bool shown_ = shown(line_);                                                        \
		ck_assert_msg(shown_, "%s", line_);                                                \
		free(line_);                                                                       \
	} while (0)

/* ---- what is asked for */

START_TEST(defaults)
{
	const struct t_log *spawned;

	set_policy("{}");
	show();
	CK_SHOWN("uid 65530 gid 65530 prewarm 1 tmp %u", 1u << 30);
	CK_SHOWN("host_net 0 workdir 7");
	CK_SHOWN("strict 00000000000010");
	CK_SHOWN("fds 0");
	CK_SHOWN("file_bytes %llu", 2ull << 30);
	CK_SHOWN("name .git/hooks");
	CK_SHOWN("name .bashrc");
	ck_assert_uint_eq(lines_with("name .bashrc\n"), 1);
	ck_assert_uint_eq(lines_with("path "), 0);
	ck_assert_str_eq(agentd_result_backend(run.result), "sandbox");
	/* the pid is that of who reported, not what it said */
	spawned = t_logs_find(&world->logs, 0, "Shell command spawned");
	CK_SHOWN("pid %s", t_log_field(spawned, "child_pid"));
	t_run_free(&run);
}
END_TEST

START_TEST(environment)
{
	ck_assert_int_eq(setenv("AGENTD_TEST_SECRET", "host", 1), 0);
	ck_assert_int_eq(agentd_context_set_env(world->ctx, "HOME", NULL, NULL), 0);
	ck_assert_int_eq(agentd_context_set_env(world->ctx, "USER", "someone", NULL), 0);
	show();
	CK_SHOWN("env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
	CK_SHOWN("env LOGNAME=agent");
	CK_SHOWN("env USER=someone");
	CK_SHOWN("env LANG=C.UTF-8");
	CK_SHOWN("env TMPDIR=/tmp");
	CK_SHOWN("env SHELL=%s", access("/bin/bash", X_OK) == 0 ? "/bin/bash" : "/bin/sh");
	ck_assert_uint_eq(lines_with("env HOME"), 0);
	ck_assert_uint_eq(lines_with("env USER="), 1);
	ck_assert_uint_eq(lines_with("env AGENTD_TOKEN_FILE"), 0);
	ck_assert_uint_eq(lines_with("env AGENTD_TEST_SECRET"), 0);
	t_run_free(&run);
}
END_TEST

START_TEST(home_of_its_own)
{
	agentd_context *ctx = NULL, *usual = world->ctx;

	ck_assert_int_eq(agentd_context_new(&ctx, NULL), 0);
	ck_assert_int_eq(agentd_context_set_workdir(ctx, world->workdir, NULL), 0);
	world->ctx = ctx;
	show();
	CK_SHOWN("env HOME=/run/home");
	CK_SHOWN("env USER=agent");
	ck_assert_uint_eq(lines_with("env "), 7);
	t_run_free(&run);
	world->ctx = usual;
	agentd_context_unref(ctx);
}
END_TEST

START_TEST(paths_and_layers)
{
	ck_assert_int_eq(agentd_context_add_mount(world->ctx, "/usr/share", "/data",
						  AGENTD_ACCESS_READ, NULL),
			 0);
	set_policy("{\"min_isolation\": \"none\","
		   " \"paths\": {\"read\": [\"/usr\", \"/bin\"], \"exec\": [\"/bin\"],"
		   " \"deny\": [\"/usr/local\"]},"
		   " \"protections\": {\"userns\": \"off\", \"mountns\": \"degradable\","
		   " \"pidns\": \"off\", \"landlock\": \"degradable\", \"keyring\": \"off\"},"
		   " \"protect_names\": [\"b\", \"a/c\", \"b\"], \"net\": {\"mode\": \"full\"},"
		   " \"limits\": {\"file_bytes\": 4096}}");
	show();
	CK_SHOWN("host_net 1 workdir 7");
	/* the first three are never less than required; of two policies the stricter */
	CK_SHOWN("strict 00000000000010");
	CK_SHOWN("path 1 /usr /usr");
	CK_SHOWN("path 5 /bin /bin");
	CK_SHOWN("path 1 /usr/share /data");
	CK_SHOWN("path 0 /usr/local /usr/local");
	CK_SHOWN("name a/c");
	ck_assert_uint_eq(lines_with("path "), 4);
	ck_assert_uint_eq(lines_with("name b\n"), 1);
	CK_SHOWN("file_bytes 4096");
	t_run_free(&run);
}
END_TEST

START_TEST(workdir_under_a_rule)
{
	char *json = t_format("{\"paths\": {\"read\": [\"%s\"]}}", world->dir);
	char *denied = t_format("{\"paths\": {\"deny\": [\"%s\"]}}", world->dir);
	static const char *const argv[] = { "show", NULL };

	set_policy(json);
	show();
	CK_SHOWN("host_net 0 workdir 1");
	t_run_free(&run);
	set_policy(denied);
	run_argv(argv);
	t_expect_cause(&run, AGENTD_CAUSE_ISOLATION);
	ck_assert_str_eq(agentd_error_pointer(agentd_result_error(run.result)), "/workdir");
	t_run_free(&run);
	free(json);
	free(denied);
}
END_TEST

START_TEST(token_and_netns)
{
	int netns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);

	ck_assert_int_ge(netns, 0);
	ck_assert_int_eq(agentd_context_set_credentials(world->ctx, "s3cret", 0, NULL), 0);
	show();
	CK_SHOWN("fds 1");
	CK_SHOWN("token s3cret");
	CK_SHOWN("env AGENTD_TOKEN_FILE=/run/credentials/token");
	ck_assert_uint_eq(lines_with("env AGENTD_TOKEN_FILE"), 1);
	t_run_free(&run);
	ck_assert_int_eq(agentd_context_set_netns(world->ctx, netns, NULL), 0);
	set_policy("{\"min_isolation\": \"none\", \"net\": {\"mode\": \"full\"}}");
	show();
	CK_SHOWN("fds 2");
	CK_SHOWN("token s3cret");
	CK_SHOWN("netns net:");
	CK_SHOWN("host_net 0 workdir 7");
	t_run_free(&run);
	close(netns);
}
END_TEST

/* The listening socket that comes with STARTED is served, and the command told of it. */
START_TEST(allowed_hosts)
{
	set_policy("{\"min_isolation\": \"none\", \"net\": {\"mode\": \"allow\"},"
		   " \"protections\": {\"netns\": \"off\"}}");
	show();
	CK_SHOWN("host_net 0 workdir 7");
	CK_SHOWN("proxy_port 911");
	CK_SHOWN("strict 00000000000010"); /* whatever the policy says of the network layer */
	CK_SHOWN("env HTTPS_PROXY=http://127.0.0.1:911");
	CK_SHOWN("env no_proxy=localhost,127.0.0.1,::1");
	t_run_free(&run);
	ck_assert_int_eq(agentd_context_set_env(world->ctx, "HTTPS_PROXY", "mine", NULL), 0);
	show();
	CK_SHOWN("env HTTPS_PROXY=mine");
	ck_assert_uint_eq(lines_with("env HTTPS_PROXY"), 1);
	t_run_free(&run);
	/* Those of the host program's machine are behind the proxy. */
	set_policy("{\"min_isolation\": \"none\", \"net\": {\"mode\": \"allow\","
		   " \"allow\": [\"127.0.0.1:8080\", \"[::1]:8080\"]}}");
	show();
	CK_SHOWN("env NO_PROXY=localhost");
	CK_SHOWN("env no_proxy=localhost");
	t_run_free(&run);
	set_policy("{\"min_isolation\": \"none\", \"net\": {\"mode\": \"allow\","
		   " \"allow\": [\"localhost\", \"127.0.0.0/8\"]}}");
	show();
	CK_SHOWN("env NO_PROXY=127.0.0.1,::1");
	t_run_free(&run);
	set_policy("{\"min_isolation\": \"none\"}");
	show();
	CK_SHOWN("proxy_port 0");
	ck_assert_uint_eq(lines_with("env HTTP_PROXY"), 0);
	t_run_free(&run);
}
END_TEST

/* Beyond what fits in one message: its own descriptor comes first. */
START_TEST(large_requests)
{
	enum { SIZE = 100 * 1024 };
	char *argument = malloc(SIZE + 1);
	const char *argv[] = { "show", argument, NULL };

	ck_assert_ptr_nonnull(argument);
	memset(argument, 'x', SIZE);
	argument[SIZE] = '\0';
	ck_assert_int_eq(agentd_context_set_credentials(world->ctx, "s3cret", 0, NULL), 0);
	run_argv(argv);
	t_expect_status(&run, AGENTD_STATUS_OK);
	CK_SHOWN("large 1");
	CK_SHOWN("fds 2");
	CK_SHOWN("token s3cret");
	t_run_free(&run);
	free(argument);
}
END_TEST

/* Many at once: requests wait for room in the socket, descriptors with them. */
START_TEST(many_at_once)
{
	enum { COUNT = 64, SIZE = 30 * 1024 };
	static struct t_run runs[COUNT];
	char *argument = malloc(SIZE + 1);
	const char *argv[] = { "show", argument, NULL };
	agentd_params *params = NULL;

	ck_assert_ptr_nonnull(argument);
	memset(argument, 'x', SIZE);
	argument[SIZE] = '\0';
	ck_assert_int_eq(agentd_context_set_credentials(world->ctx, "s3cret", 0, NULL), 0);
	ck_assert_int_eq(agentd_params_new_argv(argv, 0, &params, NULL), 0);
	for (size_t i = 0; i < COUNT; i++) {
		t_run_init(&runs[i], world);
		ck_assert_int_eq(t_run_start_params(&runs[i], params, NULL), 0);
	}
	for (size_t i = 0; i < COUNT; i++) {
		t_run_wait(&runs[i]);
		run = runs[i];
		t_expect_status(&run, AGENTD_STATUS_OK);
		CK_SHOWN("token s3cret");
		t_run_free(&runs[i]);
	}
	agentd_params_unref(params);
	free(argument);
}
END_TEST

START_TEST(not_supported)
{
	static const char *const argv[] = { "show", NULL };
	const agentd_error *err;

	int netns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);

	set_policy("{\"min_isolation\": \"none\", \"net\": {\"mode\": \"allow\"}}");
	ck_assert_int_eq(agentd_context_set_netns(world->ctx, netns, NULL), 0);
	run_argv(argv);
	t_expect_cause(&run, AGENTD_CAUSE_ISOLATION);
	err = agentd_result_error(run.result);
	ck_assert_int_eq(agentd_error_code(err), AGENTD_ERR_UNSUPPORTED);
	ck_assert_str_eq(agentd_error_pointer(err), "/netns");
	ck_assert_ptr_nonnull(strstr(agentd_error_message(err), "network of allowed hosts"));
	t_run_free(&run);
	ck_assert_int_eq(agentd_context_set_netns(world->ctx, -1, NULL), 0);
	close(netns);
	set_policy("{}");
	ck_assert_int_eq(agentd_context_set_rootfs(world->ctx, "/usr", NULL), 0);
	run_argv(argv);
	t_expect_cause(&run, AGENTD_CAUSE_ISOLATION);
	err = agentd_result_error(run.result);
	ck_assert_int_eq(agentd_error_code(err), AGENTD_ERR_UNSUPPORTED);
	ck_assert_str_eq(agentd_error_pointer(err), "/rootfs");
	t_run_free(&run);
}
END_TEST

/* ---- what becomes of the answers */

START_TEST(receipt)
{
	static const char *const layers[] = { "userns",  "mountns",      "pidns",    "netns",
					      "ipcns",   "utsns",        "cgroupns", "landlock",
					      "seccomp", "capabilities", "keyring",  "rlimits",
					      "cgroup" };
	int32_t state = 99;

	set_policy("{}");
	show();
	for (size_t i = 0; i < T_COUNT(layers); i++) {
		const char *reason = t_run_layer(&run, layers[i], &state);

		ck_assert_msg(reason && strncmp(reason, "required: ", 10) == 0, "%s: %s", layers[i],
			      reason);
		ck_assert_int_eq(state, AGENTD_LAYER_ENFORCED);
	}
	ck_assert_str_eq(t_run_layer(&run, "landlock", &state), "required: ABI 5");
	ck_assert_str_eq(t_run_layer(&run, "tree-kill", &state), "the end of its pid namespace");
	ck_assert_int_eq(state, AGENTD_LAYER_ENFORCED);
	ck_assert_str_eq(t_run_layer(&run, "network", &state), "none");
	ck_assert_str_eq(t_run_layer(&run, "credentials", &state), "uid 65530, gid 65531 outside");
	ck_assert_ptr_nonnull(t_run_layer(&run, "idmap", &state));
	ck_assert_int_eq(state, AGENTD_LAYER_ABSENT);
	t_run_free(&run);
}
END_TEST

static void run_layer(const char *layer, const char *state, const char *error)
{
	const char *const argv[] = { "layer", layer, state, error, NULL };

	run_argv(argv);
}

/* The helper's word is not enough: what is required and was not put up ends the run. */
START_TEST(required_layers_are_checked)
{
	char number[8];

	set_policy("{}");
	for (int i = 0; i < AD_LAYER_COUNT; i++) {
		snprintf(number, sizeof(number), "%d", i);
		for (int state = AD_MSG_LAYER_NONE; state < AD_MSG_LAYER_STATES; state++) {
			char text[8];

			if (state == AD_MSG_LAYER_ENFORCED || i == AD_LAYER_RLIMITS ||
			    i == AD_LAYER_CGROUP || i == AD_LAYER_IDMAP)
				continue;
			snprintf(text, sizeof(text), "%d", state);
			run_layer(number, text, "1");
			t_expect_status(&run, AGENTD_STATUS_DENIED);
			t_expect_cause(&run, AGENTD_CAUSE_ISOLATION);
			ck_assert_int_eq(run.started, 0);
			ck_assert_ptr_nonnull(
				strstr(agentd_error_message(agentd_result_error(run.result)),
				       "helper"));
			t_run_free(&run);
		}
	}
}
END_TEST

START_TEST(degraded_layers)
{
	int32_t state = 99;
	const char *reason;
	agentd_runner *usual = world->runner;
	struct agentd_runner_opts opts = { .size = sizeof(opts),
					   .event_base = world->base,
					   .helper_path = world->helper,
					   .sandbox_uid = 1234,
					   .sandbox_gid = 4321,
					   .sandbox_prewarm = 3,
					   .sandbox_tmp_bytes = 65536 };

	opts.policy = policy_of("{\"min_isolation\": \"none\", \"protections\":"
				" {\"landlock\": \"degradable\", \"keyring\": \"off\"}}");
	ck_assert_int_eq(agentd_runner_new(&opts, &world->runner, NULL), 0);
	ck_assert_int_eq(agentd_context_set_policy(world->ctx, opts.policy, NULL), 0);
	agentd_policy_unref(opts.policy);
	show();
	CK_SHOWN("strict 00000001002010");
	CK_SHOWN("uid 1234 gid 4321 prewarm 3 tmp 65536");
	t_run_free(&run);
	run_layer("7", "2", "38");
	t_expect_status(&run, AGENTD_STATUS_OK);
	reason = t_run_layer(&run, "landlock", &state);
	ck_assert_int_eq(state, AGENTD_LAYER_DEGRADED);
	ck_assert_msg(strstr(reason, "degradable: Function not implemented") != NULL, "%s", reason);
	t_run_free(&run);
	run_layer("10", "0", "0");
	t_expect_status(&run, AGENTD_STATUS_OK);
	ck_assert_str_eq(t_run_layer(&run, "keyring", &state), "off: the policy does not want it");
	ck_assert_int_eq(state, AGENTD_LAYER_ABSENT);
	t_run_free(&run);
	agentd_runner_unref(world->runner);
	world->runner = usual;
}
END_TEST

static void expect_failure(const char *const *argv, agentd_status status, int code,
			   const char *pointer, const char *text)
{
	const agentd_error *err;

	run_argv(argv);
	t_expect_status(&run, status);
	ck_assert_int_eq(run.started, 0);
	err = agentd_result_error(run.result);
	ck_assert_int_eq(agentd_error_code(err), code);
	ck_assert_str_eq(agentd_error_pointer(err), pointer);
	ck_assert_msg(strstr(agentd_error_message(err), text) != NULL, "\"%s\" does not say \"%s\"",
		      agentd_error_message(err), text);
	t_run_free(&run);
}

START_TEST(layers_fail)
{
	static const struct {
		enum ad_layer layer;
		int error;
		const char *text;
	} rows[] = {
		{ AD_LAYER_USERNS, EPERM, "the layer \"userns\" of the sandbox cannot be put up" },
		{ AD_LAYER_LANDLOCK, ENOSYS, "\"landlock\" degradable" },
		{ AD_LAYER_CGROUP, EACCES, "Delegate=yes" },
		{ AD_LAYER_IDMAP, EINVAL, "sandbox_uid" },
		{ AD_LAYER_SECCOMP, EINVAL, "CONFIG_SECCOMP_FILTER" },
		{ AD_LAYER_PIDNS, ENOSPC, "user.max_user_namespaces" },
	};

	for (size_t i = 0; i < T_COUNT(rows); i++) {
		char stage[8], index[8], error[8];
		const char *const argv[] = { "fail", stage, index, error, "what was tried", NULL };

		snprintf(stage, sizeof(stage), "%d", AD_STAGE_LAYER);
		snprintf(index, sizeof(index), "%d", rows[i].layer);
		snprintf(error, sizeof(error), "%d", rows[i].error);
		expect_failure(argv, AGENTD_STATUS_DENIED, AGENTD_ERR_DENIED, "", rows[i].text);
		expect_failure(argv, AGENTD_STATUS_DENIED, AGENTD_ERR_DENIED, "", "what was tried");
	}
}
END_TEST

/* What ran out is named, and that the policy ask for less is not advised. */
START_TEST(shortage)
{
	static const struct {
		enum ad_layer layer;
		int error, code;
		const char *text;
	} rows[] = {
		{ AD_LAYER_CGROUPNS, ENOMEM, AGENTD_ERR_NOMEM, "mem_bytes" },
		{ AD_LAYER_SECCOMP, ENOMEM, AGENTD_ERR_NOMEM, "mem_bytes" },
		{ AD_LAYER_SECCOMP, EMFILE, AGENTD_ERR_SYSTEM, "RLIMIT_NOFILE" },
		{ AD_LAYER_LANDLOCK, ENFILE, AGENTD_ERR_SYSTEM, "fs.file-max" },
		{ AD_LAYER_PIDNS, EAGAIN, AGENTD_ERR_SYSTEM, "RLIMIT_NPROC" },
		{ AD_LAYER_IDMAP, ENOSPC, AGENTD_ERR_SYSTEM, "fs.mount-max" },
	};
	static const char *const never[] = { "degradable", "Docker", "CONFIG_" };

	for (size_t i = 0; i < T_COUNT(rows); i++) {
		char stage[8], index[8], error[8];
		const char *const argv[] = { "fail", stage, index, error, "what was tried", NULL };
		const char *message;

		snprintf(stage, sizeof(stage), "%d", AD_STAGE_LAYER);
		snprintf(index, sizeof(index), "%d", rows[i].layer);
		snprintf(error, sizeof(error), "%d", rows[i].error);
		expect_failure(argv, AGENTD_STATUS_ERROR, rows[i].code, "", rows[i].text);
		run_argv(argv);
		t_expect_cause(&run, AGENTD_CAUSE_SPAWN);
		message = agentd_error_message(agentd_result_error(run.result));
		for (size_t k = 0; k < T_COUNT(never); k++)
			ck_assert_msg(!strstr(message, never[k]), "%s", message);
		t_run_free(&run);
	}
}
END_TEST

START_TEST(paths_fail)
{
	char stage[8], view[8], workdir[8];
	const char *first[] = { "fail", stage, "0", "2", "/usr", NULL };
	const char *denied[] = { "fail", stage, "2", "13", "/usr/local", NULL };
	const char *mount[] = { "fail", stage, "1", "40", "/data is a symbolic link", NULL };
	const char *none[] = { "fail", stage, "77", "2", "/usr", NULL };
	const char *root[] = { "fail", view, "0", "28", "the root", NULL };
	const char *place[] = { "fail", workdir, "0", "2", world->workdir, NULL };

	snprintf(stage, sizeof(stage), "%d", AD_STAGE_PATH);
	snprintf(view, sizeof(view), "%d", AD_STAGE_VIEW);
	snprintf(workdir, sizeof(workdir), "%d", AD_STAGE_WORKDIR);
	ck_assert_int_eq(agentd_context_add_mount(world->ctx, "/usr/share", "/data",
						  AGENTD_ACCESS_EXEC, NULL),
			 0);
	set_policy("{\"min_isolation\": \"none\","
		   " \"paths\": {\"deny\": [\"/bin\", \"/usr/local\"], \"exec\": [\"/usr\"]}}");
	expect_failure(first, AGENTD_STATUS_ERROR, AGENTD_ERR_INVALID, "/paths/exec/0",
		       "\"/usr\" cannot be shown in the sandbox: No such file or directory");
	expect_failure(mount, AGENTD_STATUS_ERROR, AGENTD_ERR_INVALID, "/mounts/0",
		       "\"/usr/share\" cannot be shown in the sandbox: /data is a symbolic link");
	denied[2] = "3";
	expect_failure(denied, AGENTD_STATUS_ERROR, AGENTD_ERR_INVALID, "/paths/deny/1",
		       "/usr/local");
	expect_failure(none, AGENTD_STATUS_ERROR, AGENTD_ERR_SYSTEM, "", "path of the policy");
	expect_failure(root, AGENTD_STATUS_ERROR, AGENTD_ERR_SYSTEM, "", "file system view");
	expect_failure(place, AGENTD_STATUS_ERROR, AGENTD_ERR_SYSTEM, "/workdir",
		       "No such file or directory (os error 2)");
}
END_TEST

static size_t denials;

static void count_denials(struct t_run *which, enum t_event_kind kind)
{
	(void)which;
	denials += kind == T_DENIED;
}

START_TEST(denied)
{
	static const char *const argv[] = { "denied", NULL };
	agentd_params *params = NULL;
	char *json = NULL;

	denials = 0;
	ck_assert_int_eq(agentd_params_new_argv(argv, 0, &params, NULL), 0);
	t_run_init(&run, world);
	run.on_event = count_denials;
	ck_assert_int_eq(t_run_start_params(&run, params, NULL), 0);
	agentd_params_unref(params);
	t_run_wait(&run);
	ck_assert_uint_eq(denials, 2);
	t_expect_status(&run, AGENTD_STATUS_KILLED);
	t_expect_cause(&run, AGENTD_CAUSE_VIOLATION);
	ck_assert_str_eq(agentd_result_limit(run.result), "seccomp");
	ck_assert_int_eq(agentd_result_to_json(run.result, &json, NULL, NULL), 0);
	ck_assert_ptr_nonnull(strstr(json, "\"denied_count\":2"));
	agentd_free(json);
	t_run_free(&run);
}
END_TEST

/* Nothing can be denied to what does not run, or is in no sandbox. */
START_TEST(denied_out_of_order)
{
	static const char *const early[] = { "denied-early", NULL }, *const any[] = { "denied",
										      NULL };

	run_argv(early);
	t_expect_cause(&run, AGENTD_CAUSE_SPAWN);
	ck_assert_int_eq(agentd_error_code(agentd_result_error(run.result)), AGENTD_ERR_PROTOCOL);
	t_run_free(&run);
	teardown();
	world = t_world_new(NULL);
	run_argv(any);
	t_expect_cause(&run, AGENTD_CAUSE_BACKEND_LOST);
	t_run_free(&run);
}
END_TEST

/* One that is stopped while it starts may have met something: the helper is not to blame. */
START_TEST(denied_in_a_session_that_never_was)
{
	char *config = t_format("{\"enabled\": true, \"backend\": \"sandbox\", \"fallback\": false,"
				" \"volume_root\": \"%s/volumes\"}",
				world->dir);
	static const char *const argv[] = { "show", NULL };
	agentd_pool *pool = NULL;

	ck_assert_int_eq(agentd_pool_new(world->runner, config, strlen(config), &pool, NULL), 0);
	ck_assert_int_eq(agentd_runner_set_pool(world->runner, pool, NULL), 0);
	ck_assert_int_eq(agentd_context_set_session(world->ctx,
						    "aaaaaaaa-0000-4000-8000-000000000000", NULL,
						    NULL, NULL),
			 0);
	run_argv(argv);
	t_expect_cause(&run, AGENTD_CAUSE_ISOLATION);
	t_run_free(&run);
	ck_assert_int_eq(agentd_context_set_session(world->ctx, NULL, NULL, NULL, NULL), 0);
	show();
	t_run_free(&run);
	agentd_pool_unref(pool);
	free(config);
}
END_TEST

int main(void)
{
	TCase *tc = t_case("sandbox", 60);

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, defaults);
	tcase_add_test(tc, environment);
	tcase_add_test(tc, home_of_its_own);
	tcase_add_test(tc, paths_and_layers);
	tcase_add_test(tc, workdir_under_a_rule);
	tcase_add_test(tc, token_and_netns);
	tcase_add_test(tc, allowed_hosts);
	tcase_add_test(tc, large_requests);
	tcase_add_test(tc, many_at_once);
	tcase_add_test(tc, not_supported);
	tcase_add_test(tc, receipt);
	tcase_add_test(tc, required_layers_are_checked);
	tcase_add_test(tc, degraded_layers);
	tcase_add_test(tc, layers_fail);
	tcase_add_test(tc, shortage);
	tcase_add_test(tc, paths_fail);
	tcase_add_test(tc, denied);
	tcase_add_test(tc, denied_in_a_session_that_never_was);
	tcase_add_test(tc, denied_out_of_order);
	return t_main("sandbox", &tc, 1);
}
