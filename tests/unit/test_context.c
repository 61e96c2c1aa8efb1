/* SPDX-License-Identifier: MIT */
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/context.h"
#include "core/params.h"
#include "corpus.h"
#include "policy/policy.h"

static agentd_context *new_context(void)
{
	agentd_context *ctx = NULL;

	ck_assert_int_eq(agentd_context_new(&ctx, NULL), 0);
	return ctx;
}

/* What it says now; borrowed from ctx, which the test does not change meanwhile. */
static const struct ad_context_state *now(agentd_context *ctx)
{
	const struct ad_context_state *state = ad_context_snapshot(ctx);

	ad_context_state_unref(state);
	return state;
}

/* ---- setters */

START_TEST(test_empty)
{
	agentd_context *ctx = new_context();
	const struct ad_context_state *state = now(ctx);

	ck_assert_int_eq(state->netns, -1);
	ck_assert_ptr_null(state->policy);
	ck_assert_uint_eq(state->limits.size, sizeof(state->limits));
	ck_assert_ptr_null(state->backend);
	ck_assert_ptr_null(state->rootfs);
	ck_assert_ptr_null(state->workdir);
	ck_assert_ptr_null(state->trace_id);
	ck_assert_ptr_null(state->token);
	ck_assert_ptr_null(state->shell);
	ck_assert_uint_eq(state->env_count + state->label_count + state->mount_count, 0);
	ck_assert_ptr_eq(agentd_context_ref(ctx), ctx);
	agentd_context_unref(ctx);
	agentd_context_unref(ctx);
	agentd_context_unref(NULL);
	ck_assert_ptr_null(agentd_context_ref(NULL));
	ad_context_state_unref(NULL);
	ck_assert_ptr_null(ad_context_state_ref(NULL));
}
END_TEST

START_TEST(test_texts)
{
	agentd_context *ctx = new_context();

	ck_assert_int_eq(agentd_context_set_workdir(ctx, "/srv/a", NULL), 0);
	ck_assert_int_eq(agentd_context_set_workdir(ctx, "/srv/b", NULL), 0);
	ck_assert_str_eq(now(ctx)->workdir, "/srv/b");
	ck_assert_int_eq(agentd_context_set_rootfs(ctx, "/images/a", NULL), 0);
	ck_assert_str_eq(now(ctx)->rootfs, "/images/a");
	ck_assert_int_eq(agentd_context_set_rootfs(ctx, NULL, NULL), 0);
	ck_assert_ptr_null(now(ctx)->rootfs);
	ck_assert_int_eq(agentd_context_set_backend(ctx, " Linux_Native\n", NULL), 0);
	ck_assert_str_eq(now(ctx)->backend, " Linux_Native\n");
	ck_assert_int_eq(agentd_context_set_backend(ctx, NULL, NULL), 0);
	ck_assert_ptr_null(now(ctx)->backend);
	ck_assert_int_eq(agentd_context_set_trace_id(ctx, "t-\xc3\xa4", NULL), 0);
	ck_assert_str_eq(now(ctx)->trace_id, "t-\xc3\xa4");
	ck_assert_int_eq(agentd_context_set_trace_id(ctx, NULL, NULL), 0);
	ck_assert_ptr_null(now(ctx)->trace_id);
	ck_assert_int_eq(agentd_context_set_credentials(ctx, "secret", 99, NULL), 0);
	ck_assert_str_eq(now(ctx)->token, "secret");
	ck_assert_uint_eq(now(ctx)->expires_unix_ms, 99);
	ck_assert_int_eq(agentd_context_set_credentials(ctx, NULL, 99, NULL), 0);
	ck_assert_ptr_null(now(ctx)->token);
	ck_assert_uint_eq(now(ctx)->expires_unix_ms, 0);
	agentd_context_unref(ctx);
}
END_TEST

START_TEST(test_policy)
{
	agentd_context *ctx = new_context();
	agentd_policy *policy = NULL;

	ck_assert_int_eq(agentd_policy_new(&policy, NULL), 0);
	ck_assert_int_eq(agentd_context_set_policy(ctx, policy, NULL), 0);
	ck_assert_int_eq(agentd_policy_require_kvm(policy, NULL), AGENTD_ERR_STATE); /* frozen */
	ck_assert_int_eq(agentd_context_set_policy(ctx, policy, NULL), 0);
	agentd_policy_unref(policy);
	ck_assert_ptr_eq(now(ctx)->policy, policy);
	ck_assert_int_eq(ad_policy_net(now(ctx)->policy), AGENTD_NET_NONE);
	ck_assert_int_eq(agentd_context_set_policy(ctx, NULL, NULL), 0);
	ck_assert_ptr_null(now(ctx)->policy);
	agentd_context_unref(ctx);
}
END_TEST

START_TEST(test_limits)
{
	agentd_context *ctx = new_context();
	struct agentd_limits limits;

	agentd_limits_init(&limits, sizeof(limits));
	limits.timeout_ms = 5;
	ck_assert_int_eq(agentd_context_set_limits(ctx, &limits, NULL), 0);
	ck_assert_uint_eq(now(ctx)->limits.timeout_ms, 5);
	limits.size = 1;
	ck_refused(agentd_context_set_limits(ctx, &limits, &refused), AGENTD_ERR_ABI, "",
		   "size is 1");
	ck_assert_uint_eq(now(ctx)->limits.timeout_ms, 5);
	agentd_context_unref(ctx);
}
END_TEST

START_TEST(test_lists)
{
	const char *shell[] = { "sh", "-c", NULL };
	agentd_context *ctx = new_context();

	ck_assert_int_eq(agentd_context_set_env(ctx, "A", "1", NULL), 0);
	ck_assert_int_eq(agentd_context_set_env(ctx, "LD_PRELOAD", "", NULL), 0);
	ck_assert_int_eq(agentd_context_set_env(ctx, "A", "2", NULL), 0);
	ck_assert_int_eq(agentd_context_set_env(ctx, "B_9", NULL, NULL), 0);
	ck_assert_uint_eq(now(ctx)->env_count, 3);
	ck_assert_str_eq(now(ctx)->env[0].value, "2");
	ck_assert_str_eq(now(ctx)->env[1].value, "");
	ck_assert_ptr_null(now(ctx)->env[2].value);
	ck_assert_int_eq(agentd_context_set_env(ctx, "A", NULL, NULL), 0);
	ck_assert_ptr_null(now(ctx)->env[0].value);

	ck_assert_int_eq(agentd_context_add_mount(ctx, "/a", "/b", 1, NULL), 0);
	ck_assert_int_eq(agentd_context_add_mount(ctx, "/a", "/c", 7, NULL), 0);
	ck_assert_uint_eq(now(ctx)->mount_count, 2);
	ck_assert_str_eq(now(ctx)->mounts[1].source, "/a");
	ck_assert_str_eq(now(ctx)->mounts[1].target, "/c");
	ck_assert_uint_eq(now(ctx)->mounts[1].access, 7);

	ck_assert_int_eq(agentd_context_set_label(ctx, "k", "v", NULL), 0);
	ck_assert_int_eq(agentd_context_set_label(ctx, "l", "", NULL), 0);
	ck_assert_int_eq(agentd_context_set_label(ctx, "m", "w", NULL), 0);
	ck_assert_int_eq(agentd_context_set_label(ctx, "k", "u", NULL), 0);
	ck_assert_str_eq(now(ctx)->labels[0].value, "u");
	ck_assert_int_eq(agentd_context_set_label(ctx, "l", NULL, NULL), 0);
	ck_assert_int_eq(agentd_context_set_label(ctx, "nonesuch", NULL, NULL), 0);
	ck_assert_uint_eq(now(ctx)->label_count, 2);
	ck_assert_str_eq(now(ctx)->labels[1].key, "m");

	ck_assert_int_eq(agentd_context_set_shell(ctx, shell, NULL), 0);
	ck_assert_str_eq(now(ctx)->shell[1], "-c");
	ck_assert_int_eq(agentd_context_set_shell(ctx, NULL, NULL), 0);
	ck_assert_ptr_null(now(ctx)->shell);
	agentd_context_unref(ctx);
}
END_TEST

START_TEST(test_netns)
{
	agentd_context *ctx = new_context();
	int fd = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), first;
	const struct ad_context_state *old;
	struct stat given, kept;

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(agentd_context_set_netns(ctx, fd, NULL), 0);
	ck_assert_int_eq(fstat(fd, &given), 0);
	close(fd);
	first = now(ctx)->netns;
	ck_assert_int_ge(first, 3);
	ck_assert_int_eq(fcntl(first, F_GETFD), FD_CLOEXEC);
	ck_assert_int_eq(fstat(first, &kept), 0);
	ck_assert_uint_eq(given.st_ino, kept.st_ino);
	old = ad_context_snapshot(ctx);
	ck_assert_int_eq(agentd_context_set_workdir(ctx, "/", NULL), 0); /* a copy */
	ck_assert_int_ne(now(ctx)->netns, first);
	ck_assert_int_eq(agentd_context_set_netns(ctx, -1, NULL), 0);
	ck_assert_int_eq(now(ctx)->netns, -1);
	ck_assert_int_eq(fstat(old->netns, &kept), 0);
	ad_context_state_unref(old);
	ck_assert_int_eq(fcntl(first, F_GETFD), -1);
	errno = EDOM;
	ck_refused(agentd_context_set_netns(ctx, first, &refused), AGENTD_ERR_SYSTEM, "",
		   "Bad file descriptor (os error 9)");
	ck_refused(agentd_context_set_netns(ctx, -2, &refused), AGENTD_ERR_INVALID, "",
		   "descriptor -2 is not valid");
	ck_assert_int_eq(errno, EDOM);
	agentd_context_unref(ctx);
}
END_TEST

/* Also with descriptors 0 to 2 closed. */
START_TEST(test_netns_standard)
{
	agentd_context *ctx = new_context();
	int fd = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);

	close(0);
	ck_assert_int_eq(agentd_context_set_netns(ctx, fd, NULL), 0);
	ck_assert_int_ge(now(ctx)->netns, 3);
	close(fd);
	agentd_context_unref(ctx);
}
END_TEST

/* ---- snapshots */

static const char whole[] =
	"{\"workdir\":\"/srv\",\"backend\":\"host\",\"policy\":{\"min_isolation\":\"none\"},"
	"\"limits\":{\"pids_max\":5},\"env\":{\"NAME\":\"value\",\"GONE\":null},"
	"\"shell\":[\"bash\",\"-lc\"],\"trace_id\":\"t1\",\"rootfs\":\"/images/a\","
	"\"mounts\":[{\"source\":\"/a\",\"target\":\"/b\",\"access\":[\"read\",\"exec\"]}],"
	"\"labels\":{\"k\":\"v\"},\"credentials\":{\"token\":\"abc\",\"expires_unix_ms\":77}}";

static agentd_context *from_json(const char *json)
{
	agentd_context *ctx = NULL;
	agentd_error *err = NULL;

	ck_assert_msg(agentd_context_from_json(json, strlen(json), &ctx, &err) == 0, "%s: %s", json,
		      agentd_error_message(err));
	ck_assert_ptr_null(err);
	return ctx;
}

static void check_whole(const struct ad_context_state *state)
{
	ck_assert_str_eq(state->workdir, "/srv");
	ck_assert_str_eq(state->backend, "host");
	ck_assert_int_eq(ad_policy_min_isolation(state->policy), AGENTD_ISOLATION_NONE);
	ck_assert_uint_eq(state->limits.pids_max, 5);
	ck_assert_uint_eq(state->env_count, 2);
	ck_assert_str_eq(state->env[0].name, "NAME");
	ck_assert_str_eq(state->env[0].value, "value");
	ck_assert_str_eq(state->env[1].name, "GONE");
	ck_assert_ptr_null(state->env[1].value);
	ck_assert_str_eq(state->shell[0], "bash");
	ck_assert_str_eq(state->shell[1], "-lc");
	ck_assert_ptr_null(state->shell[2]);
	ck_assert_str_eq(state->trace_id, "t1");
	ck_assert_str_eq(state->rootfs, "/images/a");
	ck_assert_uint_eq(state->mount_count, 1);
	ck_assert_str_eq(state->mounts[0].source, "/a");
	ck_assert_str_eq(state->mounts[0].target, "/b");
	ck_assert_uint_eq(state->mounts[0].access, AGENTD_ACCESS_READ | AGENTD_ACCESS_EXEC);
	ck_assert_uint_eq(state->label_count, 1);
	ck_assert_str_eq(state->labels[0].key, "k");
	ck_assert_str_eq(state->labels[0].value, "v");
	ck_assert_str_eq(state->token, "abc");
	ck_assert_uint_eq(state->expires_unix_ms, 77);
}

START_TEST(test_snapshot)
{
	agentd_context *ctx = from_json(whole);
	const struct ad_context_state *taken = ad_context_snapshot(ctx);
	const char *shell[] = { "sh", NULL };
	struct agentd_limits limits;

	check_whole(taken);
	agentd_limits_init(&limits, sizeof(limits));
	/* Each setter for itself copies; the snapshot never changes. */
	for (int i = 0; i < 11; i++) {
		const struct ad_context_state *before = ad_context_snapshot(ctx);
		int r = -1;

		switch (i) {
		case 0:
			r = agentd_context_set_env(ctx, "NAME", NULL, NULL);
			break;
		case 1:
			r = agentd_context_set_env(ctx, "MORE", "x", NULL);
			break;
		case 2:
			r = agentd_context_set_label(ctx, "k", NULL, NULL);
			break;
		case 3:
			r = agentd_context_add_mount(ctx, "/x", "/y", 1, NULL);
			break;
		case 4:
			r = agentd_context_set_shell(ctx, shell, NULL);
			break;
		case 5:
			r = agentd_context_set_credentials(ctx, "other", 1, NULL);
			break;
		case 6:
			r = agentd_context_set_policy(ctx, NULL, NULL);
			break;
		case 7:
			r = agentd_context_set_limits(ctx, &limits, NULL);
			break;
		case 8:
			r = agentd_context_set_backend(ctx, "sandbox", NULL);
			break;
		case 9:
			r = agentd_context_set_rootfs(ctx, "/r", NULL);
			break;
		case 10:
			r = agentd_context_set_trace_id(ctx, "t2", NULL);
			break;
		}
		ck_assert_int_eq(r, 0);
		ck_assert_ptr_ne(now(ctx), before);
		ad_context_state_unref(before);
	}
	check_whole(taken);
	ck_assert_uint_eq(now(ctx)->env_count, 3);
	ck_assert_uint_eq(now(ctx)->mount_count, 2);
	ck_assert_uint_eq(now(ctx)->label_count, 0);
	/* Not shared: changed in place. */
	{
		const struct ad_context_state *mine = now(ctx);

		ck_assert_int_eq(agentd_context_set_workdir(ctx, "/w", NULL), 0);
		ck_assert_ptr_eq(now(ctx), mine);
	}
	agentd_context_unref(ctx);
	check_whole(taken); /* outlives its context */
	ck_assert_ptr_eq(ad_context_state_ref(taken), taken);
	ad_context_state_unref(taken);
	ad_context_state_unref(taken);
}
END_TEST

/* ---- refusals */

START_TEST(test_bad_setters)
{
	const char *none[] = { NULL }, *empty[] = { "", NULL }, *many[66];
	agentd_context *ctx = new_context();
	ad_autofree char *longest = malloc(200000);
	struct agentd_limits limits;

	agentd_limits_init(&limits, sizeof(limits));
	memset(longest, 'x', 199999);
	longest[199999] = '\0';
	for (size_t i = 0; i < 65; i++)
		many[i] = "x";
	many[65] = NULL;
	errno = EDOM;
#define BAD(call, message) ck_refused(call, AGENTD_ERR_INVALID, "", message)
	BAD(agentd_context_set_workdir(ctx, "../../etc", &refused),
	    "workdir must be an absolute path: \"../../etc\"");
	BAD(agentd_context_set_workdir(ctx, "/tmp/../etc", &refused), "\"/tmp/../etc\"");
	BAD(agentd_context_set_workdir(ctx, "", &refused), "workdir must not be empty");
	longest[0] = '/';
	BAD(agentd_context_set_workdir(ctx, longest, &refused), "workdir is longer than a path");
	BAD(agentd_context_set_rootfs(ctx, "image", &refused), "rootfs must be an absolute path");
	BAD(agentd_context_set_backend(ctx, "", &refused), "backend name must be");
	BAD(agentd_context_set_backend(ctx, "  ", &refused), "backend name must be");
	BAD(agentd_context_set_backend(ctx, "a b", &refused), "\"a b\"");
	BAD(agentd_context_set_backend(ctx, "a/b", &refused), "\"a/b\"");
	longest[0] = 'x';
	BAD(agentd_context_set_backend(ctx, longest, &refused), "backend name must be");
	BAD(agentd_context_set_env(ctx, "", "x", &refused), "environment name must be");
	BAD(agentd_context_set_env(ctx, "A=B", "c", &refused), "\"A=B\"");
	BAD(agentd_context_set_env(ctx, "BASH_FUNC_ls%%", "() { :; }", &refused),
	    "\"BASH_FUNC_ls%%\"");
	BAD(agentd_context_set_env(ctx, "A", longest, &refused), "too long");
	longest[ad_params_arg_max() - 1] = '\0';
	BAD(agentd_context_set_env(ctx, "A", longest, &refused), "too long");
	longest[ad_params_arg_max() - 2] = '\0';
	ck_assert_int_eq(agentd_context_set_env(ctx, "A", longest, NULL), 0);
	ck_assert_int_eq(agentd_context_set_env(ctx, "A", NULL, NULL), 0);
	BAD(agentd_context_add_mount(ctx, "a", "/b", 1, &refused), "source must be an absolute");
	BAD(agentd_context_add_mount(ctx, "/a", "b/..", 1, &refused), "target must be an absolute");
	BAD(agentd_context_add_mount(ctx, "/a", "/b", 0, &refused), "access 0x0");
	BAD(agentd_context_add_mount(ctx, "/a", "/b", 8, &refused), "access 0x8");
	ck_assert_int_eq(agentd_context_add_mount(ctx, "/a", "/b", 1, NULL), 0);
	BAD(agentd_context_add_mount(ctx, "/c", "/b", 1, &refused),
	    "target has a mount already: \"/b\"");
	BAD(agentd_context_set_trace_id(ctx, "", &refused), "trace_id must be 1 to 256 bytes");
	BAD(agentd_context_set_trace_id(ctx, "a\nb", &refused), "without control characters");
	BAD(agentd_context_set_trace_id(ctx, "a\x7f", &refused), "without control characters");
	BAD(agentd_context_set_trace_id(ctx, "a\xc2\x9b", &refused), "without control characters");
	BAD(agentd_context_set_trace_id(ctx, "a\xff", &refused), "UTF-8");
	longest[257] = '\0';
	BAD(agentd_context_set_trace_id(ctx, longest, &refused), "1 to 256 bytes");
	longest[256] = '\0';
	ck_assert_int_eq(agentd_context_set_trace_id(ctx, longest, NULL), 0);
	BAD(agentd_context_set_label(ctx, "", "v", &refused), "label key must be");
	BAD(agentd_context_set_label(ctx, "k", "\x1b[31m", &refused), "label value must be");
	longest[256] = longest[257] = 'x';
	longest[4097] = '\0';
	BAD(agentd_context_set_label(ctx, "k", longest, &refused), "0 to 4096 bytes");
	longest[4096] = '\0';
	ck_assert_int_eq(agentd_context_set_label(ctx, "k", longest, NULL), 0);
	longest[4096] = longest[4097] = 'x';
	BAD(agentd_context_set_credentials(ctx, "", 0, &refused), "token must be 1 to 65536 bytes");
	BAD(agentd_context_set_credentials(ctx, longest, 0, &refused), "token must be");
	BAD(agentd_context_set_shell(ctx, none, &refused), "shell must not be empty");
	BAD(agentd_context_set_shell(ctx, empty, &refused), "shell must not be empty");
	BAD(agentd_context_set_shell(ctx, many, &refused), "more than 64 arguments");
	longest[ad_params_arg_max() - 1] = 'x';
	longest[ad_params_arg_max() - 2] = 'x';
	many[1] = longest;
	many[2] = NULL;
	BAD(agentd_context_set_shell(ctx, many, &refused), "shell argument 1 is too long");

	BAD(agentd_context_new(NULL, &refused), "ret must not be NULL");
	BAD(agentd_context_from_json(NULL, 0, &ctx, &refused), "json must not be NULL");
	BAD(agentd_context_from_json("{}", 2, NULL, &refused), "ret must not be NULL");
	BAD(agentd_context_set_policy(NULL, NULL, &refused), "ctx must not be NULL");
	BAD(agentd_context_set_limits(NULL, &limits, &refused), "ctx must not be NULL");
	BAD(agentd_context_set_limits(ctx, NULL, &refused), "limits must not be NULL");
	BAD(agentd_context_set_backend(NULL, "host", &refused), "ctx must not be NULL");
	BAD(agentd_context_set_rootfs(NULL, "/", &refused), "ctx must not be NULL");
	BAD(agentd_context_set_workdir(NULL, "/", &refused), "ctx must not be NULL");
	BAD(agentd_context_set_workdir(ctx, NULL, &refused), "path must not be NULL");
	BAD(agentd_context_set_env(NULL, "A", "", &refused), "ctx must not be NULL");
	BAD(agentd_context_set_env(ctx, NULL, "", &refused), "name must not be NULL");
	BAD(agentd_context_add_mount(NULL, "/a", "/b", 1, &refused), "ctx must not be NULL");
	BAD(agentd_context_add_mount(ctx, NULL, "/b", 1, &refused), "source must not be NULL");
	BAD(agentd_context_add_mount(ctx, "/a", NULL, 1, &refused), "target must not be NULL");
	BAD(agentd_context_set_trace_id(NULL, "x", &refused), "ctx must not be NULL");
	BAD(agentd_context_set_credentials(NULL, "x", 0, &refused), "ctx must not be NULL");
	BAD(agentd_context_set_netns(NULL, -1, &refused), "ctx must not be NULL");
	BAD(agentd_context_set_shell(NULL, NULL, &refused), "ctx must not be NULL");
	BAD(agentd_context_set_label(NULL, "k", "v", &refused), "ctx must not be NULL");
	BAD(agentd_context_set_label(ctx, NULL, "v", &refused), "key must not be NULL");
#undef BAD
	ck_assert_int_eq(errno, EDOM);
	ck_assert_ptr_null(now(ctx)->workdir);
	ck_assert_uint_eq(now(ctx)->mount_count, 1);
	agentd_context_unref(ctx);
}
END_TEST

START_TEST(test_too_many)
{
	agentd_context *ctx = new_context();
	char text[32];

	for (int i = 0; i < 4096; i++) {
		snprintf(text, sizeof(text), "/N%d", i);
		ck_assert_int_eq(agentd_context_set_env(ctx, text + 1, "", NULL), 0);
		ck_assert_int_eq(agentd_context_set_label(ctx, text, "", NULL), 0);
		ck_assert_int_eq(agentd_context_add_mount(ctx, "/a", text, 1, NULL), 0);
	}
	ck_refused(agentd_context_set_env(ctx, "X", "", &refused), AGENTD_ERR_LIMIT, "",
		   "more than 4096 variables");
	ck_refused(agentd_context_set_label(ctx, "X", "", &refused), AGENTD_ERR_LIMIT, "",
		   "more than 4096 labels");
	ck_refused(agentd_context_add_mount(ctx, "/a", "/X", 1, &refused), AGENTD_ERR_LIMIT, "",
		   "more than 4096 mounts");
	agentd_context_unref(ctx);
}
END_TEST

/* ---- JSON */

static const struct {
	const char *json, *pointer, *message;
} bad[] = {
	{ "null", "", "invalid type: null, expected an object" },
	{ "{\"command\":\"true\"}", "/command", "unknown key \"command\"" },
	{ "{\"workdir\":\"/a\",\"workdir\":\"/b\"}", "/workdir", "duplicate field `workdir`" },
	{ "{\"workdir\":\"../../etc\"}", "/workdir", "must be an absolute path: \"../../etc\"" },
	{ "{\"workdir\":\"/tmp/../etc\"}", "/workdir", "\"/tmp/../etc\"" },
	{ "{\"workdir\":\"/tmp\\u0000/../etc\"}", "/workdir", "without NUL" },
	{ "{\"workdir\":null}", "/workdir", "invalid type: null, expected a string" },
	{ "{\"backend\":\"a b\"}", "/backend", "\"a b\"" },
	{ "{\"policy\":[]}", "/policy", "expected an object" },
	{ "{\"policy\":{\"paths\":{\"read\":[\"x\"]}}}", "/policy/paths/read/0", "absolute path" },
	{ "{\"policy\":{\"net\":{\"deny\":[\"*\"]}}}", "/policy/net/deny/0", "matches everything" },
	{ "{\"policy\":{\"net\":{\"allow\":[\"a\"]}}}", "/policy/net/allow", "need the mode" },
	{ "{\"limits\":{\"memory_bytes\":-1}}", "/limits/memory_bytes", "unknown key" },
	{ "{\"limits\":{\"mem_bytes\":-1}}", "/limits/mem_bytes", "integer `-1`" },
	{ "{\"limits\":{\"mem_bytes\":18446744073709551616}}", "/limits/mem_bytes",
	  "invalid type: floating point `18446744073709552000.0`" },
	{ "{\"limits\":{\"pids_max\":0}}", "/limits/pids_max", "integer `0`" },
	{ "{\"env\":[]}", "/env", "expected an object" },
	{ "{\"env\":{\"A=B\":\"c\"}}", "/env/A=B", "\"A=B\"" },
	{ "{\"env\":{\"\":\"x\"}}", "/env/", "environment name must be" },
	{ "{\"env\":{\"A\":\"secret\\u0000C=d\"}}", "/env/A",
	  "invalid value, expected a string without NUL" },
	{ "{\"env\":{\"BASH_FUNC_ls%%\":\"() { echo EVIL; }\"}}", "/env/BASH_FUNC_ls%%",
	  "\"BASH_FUNC_ls%%\"" },
	{ "{\"env\":{\"A\":5}}", "/env/A", "expected a string" },
	{ "{\"shell\":\"bash\"}", "/shell", "expected an array" },
	{ "{\"shell\":[]}", "/shell", "shell must not be empty" },
	{ "{\"shell\":[\"bash\",7]}", "/shell/1", "expected a string" },
	{ "{\"trace_id\":\"a\\nb\"}", "/trace_id", "without control characters" },
	{ "{\"rootfs\":\"x\"}", "/rootfs", "rootfs must be an absolute path" },
	{ "{\"mounts\":{}}", "/mounts", "expected an array" },
	{ "{\"mounts\":[{}]}", "/mounts/0", "missing field `source`" },
	{ "{\"mounts\":[{\"source\":\"/a\"}]}", "/mounts/0", "missing field `target`" },
	{ "{\"mounts\":[{\"source\":\"/a\",\"target\":\"/b\"}]}", "/mounts/0",
	  "missing field `access`" },
	{ "{\"mounts\":[{\"source\":\"/a\",\"target\":\"/b\",\"access\":[]}]}", "/mounts/0",
	  "missing field `access`" },
	{ "{\"mounts\":[{\"source\":\"/a\",\"target\":\"/b\",\"access\":[\"rw\"]}]}",
	  "/mounts/0/access/0", "expected \"read\", \"write\" or \"exec\"" },
	{ "{\"mounts\":[{\"source\":\"/a\",\"target\":\"/b\",\"access\":[5]}]}",
	  "/mounts/0/access/0", "expected a string" },
	{ "{\"mounts\":[{\"source\":\"a\",\"target\":\"/b\",\"access\":[\"read\"]}]}", "/mounts/0",
	  "source must be an absolute path: \"a\"" },
	{ "{\"mounts\":[{\"x\":1}]}", "/mounts/0/x", "unknown key \"x\"" },
	{ "{\"mounts\":[{\"source\":1}]}", "/mounts/0/source", "expected a string" },
	{ "{\"labels\":{\"k\":null}}", "/labels/k", "expected a string" },
	{ "{\"labels\":{\"\":\"v\"}}", "/labels/", "label key must be" },
	{ "{\"credentials\":\"secret\"}", "/credentials", "invalid type, expected an object" },
	{ "{\"credentials\":{}}", "/credentials", "missing field `token`" },
	{ "{\"credentials\":{\"token\":\"\"}}", "/credentials", "token must be" },
	{ "{\"credentials\":{\"token\":\"a\\u0000\"}}", "/credentials/token", "without NUL" },
	{ "{\"credentials\":{\"token\":\"a\",\"expires_unix_ms\":-1}}",
	  "/credentials/expires_unix_ms", "integer `-1`" },
	{ "{\"credentials\":{\"token\":\"a\",\"x\":1}}", "/credentials/x", "unknown key" },
	{ "{\"netns\":3}", "/netns", "unknown key \"netns\"" },
};

START_TEST(test_bad)
{
	agentd_context *ctx = NULL;
	agentd_error *err = NULL;

	ck_refused(agentd_context_from_json(bad[_i].json, strlen(bad[_i].json), &ctx, &refused),
		   AGENTD_ERR_INVALID, bad[_i].pointer, bad[_i].message);
	ck_assert_int_eq(agentd_context_from_json(bad[_i].json, strlen(bad[_i].json), &ctx, &err),
			 AGENTD_ERR_INVALID);
	ck_assert_ptr_null(strstr(agentd_error_message(err), "secret"));
	agentd_error_unref(err);
	ck_assert_ptr_null(ctx);
}
END_TEST

START_TEST(test_good)
{
	static const char *const good[] = {
		"{}",
		"{\"workdir\":\"/proc/self/fd/7\"}",
		"{\"workdir\":\"/nonexistent/x\"}",
		"{\"env\":{\"LD_PRELOAD\":\"/srv/x.so\"}}",
		"{\"credentials\":{\"token\":\"a\"}}",
	};

	for (size_t i = 0; i < AD_COUNT(good); i++)
		agentd_context_unref(from_json(good[i]));
}
END_TEST

/* ---- the corpus: as context and as policy, everything but {} is refused */

static const struct {
	const char *name;
	const char *pointer; /* NULL: not looked at */
} corpus[] = {
	{ "01_empty", "" },
	{ "02_ws", "" },
	{ "03_truncated", NULL },
	{ "04_trailing", "" },
	{ "05_array_top", "" },
	{ "06_null", "" },
	{ "07_dup_keys", "/command" },
	{ "08_dup_escaped_key", "/command" },
	{ "09_deep_array", NULL },
	{ "10_deep_object", NULL },
	{ "11_command_5mib", "" },
	{ "12_argmax", "/command" },
	{ "13_nul_escape", "/command" },
	{ "14_raw_nul", "/command" },
	{ "15_bad_utf8", "/command" },
	{ "16_lone_surrogate", "/command" },
	{ "17_overlong", "/command" },
	{ "18_neg_timeout", "/command" },
	{ "19_zero_timeout", "/command" },
	{ "20_frac_timeout", "/command" },
	{ "21_exp_timeout", "/timeout_ms" },
	{ "22_over_timeout", "/command" },
	{ "23_u32wrap", "/command" },
	{ "24_str_timeout", "/command" },
	{ "25_bool_timeout", "/command" },
	{ "26_cmd_number", "/command" },
	{ "27_cmd_null", "/command" },
	{ "28_cmd_empty", "/command" },
	{ "30_unknown_field", "/command" },
	{ "31_args_type", "/command" },
	{ "32_workdir_missing", "/command" },
	{ "33_workdir_file", "/command" },
	{ "34_workdir_rel", "/command" },
	{ "35_workdir_procfd", "/command" },
	{ "36_workdir_dotdot", "/command" },
	{ "37_workdir_nul", "/command" },
	{ "38_workdir_4097", "/command" },
	{ "39_env_ld", "/command" },
	{ "40_env_eq", "/command" },
	{ "41_env_nul", "/command" },
	{ "42_env_empty", "/command" },
	{ "43_env_bashfunc", "/command" },
	{ "44_lim_neg", "/command" },
	{ "45_lim_huge", "/command" },
	{ "46_lim_pids0", "/command" },
	{ "47_scope_escape", "/command" },
	{ "48_scope_root", "/command" },
	{ "49_allow_ip", "/command" },
	{ "50_bom", "" },
	{ "51_nan", "/timeout_ms" },
	{ "52_comment", "" },
	{ "53_key_1mib", "" },
	{ "53_key_short_of_1mib", "" },
	{ "54_keys_100000", "" },
	{ "54_keys_short_of_1mib", "" },
	{ "55_proto", "/command" },
};

START_TEST(test_corpus)
{
	size_t len = 0;
	ad_autofree char *text = corpus_text(corpus[_i].name, &len);
	struct corpus_cost before = corpus_cost();
	agentd_error *err = NULL, *policy_err = NULL;
	agentd_context *ctx = NULL;
	agentd_policy *policy = NULL;

	ck_assert_int_eq(agentd_context_from_json(text, len, &ctx, &err), AGENTD_ERR_INVALID);
	corpus_check_cost(before);
	ck_assert_int_eq(agentd_policy_from_json(text, len, &policy, &policy_err),
			 AGENTD_ERR_INVALID);
	ck_assert_ptr_null(ctx);
	ck_assert_ptr_null(policy);
	if (corpus[_i].pointer) {
		ck_assert_str_eq(agentd_error_pointer(err), corpus[_i].pointer);
		ck_assert_str_eq(agentd_error_pointer(policy_err), corpus[_i].pointer);
	}
	agentd_error_unref(err);
	agentd_error_unref(policy_err);
}
END_TEST

/* The same without its first member: what it says beside the command is judged. */
static const struct {
	const char *name, *pointer, *message; /* message NULL: good as a context */
} members[] = {
	{ "30_unknown_field", "/extra", "unknown key" },
	{ "31_args_type", "/args", "unknown key" },
	{ "32_workdir_missing", NULL, NULL },
	{ "33_workdir_file", NULL, NULL },
	{ "34_workdir_rel", "/workdir", "absolute path" },
	{ "35_workdir_procfd", NULL, NULL },
	{ "36_workdir_dotdot", "/workdir", "\"..\" component" },
	{ "37_workdir_nul", "/workdir", "without NUL" },
	{ "38_workdir_4097", "/workdir", "longer than a path can be" },
	{ "39_env_ld", NULL, NULL },
	{ "40_env_eq", "/env/A=B", "environment name" },
	{ "41_env_nul", "/env/A", "without NUL" },
	{ "42_env_empty", "/env/", "environment name" },
	{ "43_env_bashfunc", "/env/BASH_FUNC_ls%%", "environment name" },
	{ "44_lim_neg", "/limits/memory_bytes", "unknown key" },
	{ "45_lim_huge", "/limits/memory_bytes", "unknown key" },
	{ "46_lim_pids0", "/limits/pids", "unknown key" },
	{ "47_scope_escape", "/scope", "unknown key" },
	{ "48_scope_root", "/scope", "unknown key" },
	{ "49_allow_ip", "/network", "unknown key" },
	{ "55_proto", "/__proto__", "unknown key" },
};

START_TEST(test_corpus_members)
{
	size_t len = 0;
	ad_autofree char *text = corpus_text(members[_i].name, &len);
	char *rest = strstr(text, "\",\"");
	agentd_context *ctx = NULL;

	ck_assert_ptr_nonnull(rest);
	rest[1] = '{';
	len -= (size_t)(rest + 1 - text);
	if (members[_i].message) {
		ck_refused(agentd_context_from_json(rest + 1, len, &ctx, &refused),
			   AGENTD_ERR_INVALID, members[_i].pointer, members[_i].message);
	} else {
		ck_assert_int_eq(agentd_context_from_json(rest + 1, len, &ctx, NULL), 0);
		agentd_context_unref(ctx);
	}
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("context");

	tcase_add_test(tc, test_empty);
	tcase_add_test(tc, test_texts);
	tcase_add_test(tc, test_policy);
	tcase_add_test(tc, test_limits);
	tcase_add_test(tc, test_lists);
	tcase_add_test(tc, test_netns);
	tcase_add_test(tc, test_netns_standard);
	tcase_add_test(tc, test_snapshot);
	tcase_add_test(tc, test_bad_setters);
	tcase_add_test(tc, test_too_many);
	tcase_add_loop_test(tc, test_bad, 0, (int)AD_COUNT(bad));
	tcase_add_test(tc, test_good);
	tcase_add_loop_test(tc, test_corpus, 0, (int)AD_COUNT(corpus));
	tcase_add_loop_test(tc, test_corpus_members, 0, (int)AD_COUNT(members));
	return unit_run("context", tc);
}
