/* SPDX-License-Identifier: MIT */
/* Every allocation fails in turn, once and from then on: no crash, no leak, no
 * success that is none. */
#include "unit.h"

#include <agentd/backend.h>
#include <agentd/params.h>

#include "core/context.h"
#include "fault.h"
#include "policy/policy.h"
#include "proto/guest.h"
#include "util/util.h"

static struct fault fault;
static const char *broken; /* an expectation */

/* ---- what is done; each returns its result and leaves nothing behind. */

/* libcheck's own assertions allocate. */
#define EXPECT(condition)                                                                          \
	do {                                                                                       \
		if (!(condition))                                                                  \
			broken = #condition;                                                       \
	} while (0)

static const char policy_json[] =
	"{\"min_isolation\":\"vm\",\"paths\":{\"deny\":[\"/usr/private\"],\"read\":[\"/usr\","
	"\"/etc\",\"/opt\"]},\"net\":{\"mode\":\"allow\",\"allow\":[\"example.org\",\"*.test:1-5\","
	"\"[2001:db8::1]:443\"],\"deny\":[\"::1\"]},\"env\":[\"LC_*\"],\"limits\":{\"pids_max\":5,"
	"\"mem_bytes\":\"unlimited\"},\"protections\":{\"idmap\":\"off\"},\"require_kvm\":true}";

static int do_params(agentd_error **reterr)
{
	static const char json[] = "{\"u\":[{\"a\":1,\"b\":[1.5]}],\"command\":\"echo \\u00e4\"}";
	agentd_params *params = NULL;
	char *text = NULL;
	int r = agentd_params_parse(json, sizeof(json) - 1, &params, reterr);

	if (r == 0) {
		r = agentd_params_to_json(params, &text, NULL, reterr);
		if (r == 0)
			EXPECT(strcmp(text,
				      "{\"command\":\"echo \xc3\xa4\",\"timeout_ms\":30000}") == 0);
		agentd_free(text);
	}
	agentd_params_unref(params);
	return r;
}

static int do_argv(agentd_error **reterr)
{
	const char *argv[] = { "printf", "%s", "x", NULL };
	agentd_params *params = NULL;
	char *text = NULL;
	int r = agentd_params_new_argv(argv, 0, &params, reterr);

	if (r == 0) {
		r = agentd_params_to_json(params, &text, NULL, reterr);
		if (r == 0)
			EXPECT(strcmp(text,
				      "{\"argv\":[\"printf\",\"%s\",\"x\"],\"timeout_ms\":30000}") ==
			       0);
		agentd_free(text);
	}
	agentd_params_unref(params);
	return r;
}

/* Keys enough for the table to grow. */
static int do_many_keys(agentd_error **reterr)
{
	ad_autobuf struct ad_buf json = { 0 };
	agentd_params *params = NULL;
	bool was = fault.armed;
	int r;

	fault.armed = false;
	ad_buf_puts(&json, "{\"command\":\"x\"");
	for (int i = 0; i < 40; i++)
		ad_buf_printf(&json, ",\"k%d\":%d", i, i);
	ad_buf_puts(&json, "}");
	fault.armed = was;
	r = agentd_params_parse(json.data, json.len, &params, reterr);
	agentd_params_unref(params);
	fault.armed = false;
	ad_buf_free(&json);
	fault.armed = was;
	return r;
}

static int do_policy(agentd_error **reterr)
{
	agentd_policy *policy = NULL;
	char *text = NULL;
	int r = agentd_policy_from_json(policy_json, sizeof(policy_json) - 1, &policy, reterr);

	if (r == 0) {
		r = ad_policy_within(policy, policy, reterr);
		EXPECT(r == 0 || fault.hits);
		r = agentd_policy_to_json(policy, &text, NULL, reterr);
		if (r == 0) {
			EXPECT(strncmp(text, policy_json, 90) == 0);
			EXPECT(text[strlen(text) - 1] == '}');
		}
		agentd_free(text);
	}
	agentd_policy_unref(policy);
	return r;
}

static int change_context(agentd_context *ctx, agentd_error **reterr)
{
	const char *shell[] = { "sh", "-c", NULL };
	int r;

	r = agentd_context_set_workdir(ctx, "/w", reterr);
	if (r == 0)
		r = agentd_context_set_env(ctx, "B", "2", reterr);
	if (r == 0)
		r = agentd_context_set_env(ctx, "B", "3", reterr);
	if (r == 0)
		r = agentd_context_set_label(ctx, "l", "2", reterr);
	if (r == 0)
		r = agentd_context_add_mount(ctx, "/p", "/q", 1, reterr);
	if (r == 0)
		r = agentd_context_set_shell(ctx, shell, reterr);
	if (r == 0)
		r = agentd_context_set_credentials(ctx, "new", 0, reterr);
	return r;
}

static int do_context(agentd_error **reterr)
{
	static const char json[] =
		"{\"workdir\":\"/srv\",\"backend\":\"host\",\"policy\":{\"env\":[\"A\"]},\"env\":"
		"{\"A\":\"1\",\"N\":null},\"shell\":[\"bash\"],\"trace_id\":\"t\",\"rootfs\":\"/r\","
		"\"mounts\":[{\"source\":\"/a\",\"target\":\"/b\",\"access\":[\"read\"]}],\"labels\":"
		"{\"k\":\"v\"},\"credentials\":{\"token\":\"abc\"},\"limits\":{\"pids_max\":1}}";
	const struct ad_context_state *taken = NULL;
	agentd_context *ctx = NULL;
	int r = agentd_context_from_json(json, sizeof(json) - 1, &ctx, reterr);

	if (r == 0) {
		taken = ad_context_snapshot(ctx);
		r = change_context(ctx, reterr);
		EXPECT(strcmp(taken->workdir, "/srv") == 0);
		EXPECT(taken->env_count == 2);
		EXPECT(strcmp(taken->token, "abc") == 0);
	}
	ad_context_state_unref(taken);
	agentd_context_unref(ctx);
	return r;
}

/* Errors while there is no memory for them. */
static int do_refusals(agentd_error **reterr)
{
	static const char *const json[] = {
		"{\"paths\":{\"read\":[\"/a/..\"]}}", "{\"net\":{\"deny\":[\"*\"]}}",
		"{\"limits\":{\"pids_max\":\"x\"}}",  "{\"env\":[1.5]}",
		"{\"a\":{\"b\":1,\"b\":2}}",          "{\"require_kvm\":\"\\u0000\"}",
	};
	agentd_policy *policy = NULL;

	(void)reterr;
	for (size_t i = 0; i < AD_COUNT(json); i++) {
		agentd_error *err = NULL;
		int r = agentd_policy_from_json(json[i], strlen(json[i]), &policy, &err);

		EXPECT(r == AGENTD_ERR_INVALID || r == AGENTD_ERR_NOMEM);
		EXPECT(err != NULL);
		EXPECT(agentd_error_code(err) == r || agentd_error_code(err) == AGENTD_ERR_NOMEM);
		EXPECT(*agentd_error_message(err));
		agentd_error_unref(err);
		EXPECT(policy == NULL);
	}
	return fault.hits ? AGENTD_ERR_NOMEM : 0;
}

static int do_errors(agentd_error **reterr)
{
	agentd_error *err = NULL;

	(void)reterr;
	EXPECT(ad_fail(&err, AGENTD_ERR_STATE, "/p", "text %d", 1) == AGENTD_ERR_STATE);
	ad_error_prefix(&err, "before: ");
	ad_error_prefix_pointer(&err, "/q");
	EXPECT(agentd_error_code(err) == AGENTD_ERR_STATE ||
	       agentd_error_code(err) == AGENTD_ERR_NOMEM);
	agentd_error_unref(err);
	EXPECT(ad_fail_errno(&err, ENOENT, "x") == AGENTD_ERR_SYSTEM);
	agentd_error_unref(err);
	err = agentd_error_create(AGENTD_ERR_USER, 0, "x");
	EXPECT(err != NULL);
	agentd_error_unref(err);
	return fault.hits ? AGENTD_ERR_NOMEM : 0;
}

static void guest_writable(uint32_t id, enum ad_guest_stream stream, void *userdata)
{
	(void)id;
	(void)stream;
	(void)userdata;
}

static void guest_message(const struct ad_guest_msg *msg, void *userdata)
{
	static const uint8_t data[50000];
	static const char *const argv[] = { "sh", NULL };
	struct ad_guest_link *link = *(struct ad_guest_link **)userdata;
	struct ad_guest_msg answer = { .id = msg->id };

	switch (msg->type) {
	case AD_GUEST_HELLO:
		answer.type = AD_GUEST_SETUP;
		break;
	case AD_GUEST_SETUP:
		answer.type = AD_GUEST_READY;
		break;
	case AD_GUEST_READY:
		answer.type = AD_GUEST_RUN;
		answer.id = 1;
		answer.u.run.workdir = "/";
		answer.u.run.argv = argv;
		answer.u.run.env = argv + 1;
		break;
	case AD_GUEST_RUN:
		EXPECT(strcmp(msg->u.run.argv[0], "sh") == 0);
		answer.type = AD_GUEST_STARTED;
		answer.u.started.pid = 2;
		if (ad_guest_link_send(link, &answer))
			ad_guest_link_data(link, 1, AD_GUEST_STDOUT, data, sizeof(data));
		return;
	default:
		return;
	}
	EXPECT(ad_guest_link_send(link, &answer) || ad_guest_link_error(link));
}

/* A host and a guest, until nothing is left to be said; each frame comes in two parts. */
static int do_guest(agentd_error **reterr)
{
	static const struct ad_guest_link_events events = { .message = guest_message,
							    .writable = guest_writable };
	struct ad_guest_msg hello = { .type = AD_GUEST_HELLO };
	struct ad_guest_link *links[2];
	size_t moved;
	bool ok;

	(void)reterr;
	for (enum ad_guest_role i = 0; i < 2; i++)
		links[i] = ad_guest_link_new(i, &events, &links[i]);
	ok = links[AD_GUEST_HOST] && links[AD_GUEST_AGENT];
	hello.u.hello.version = AD_GUEST_VERSION;
	ok = ok && ad_guest_link_send(links[AD_GUEST_AGENT], &hello);
	do {
		moved = 0;
		for (int i = 0; ok && i < 2; i++) {
			size_t len;
			const uint8_t *at = ad_guest_link_peek(links[i], &len);

			ok = ad_guest_link_feed(links[1 - i], at, len / 2) &&
			     ad_guest_link_feed(links[1 - i], at + len / 2, len - len / 2);
			ad_guest_link_sent(links[i], len);
			moved += len;
		}
	} while (moved > 0);
	for (int i = 0; i < 2; i++) {
		const char *error = links[i] ? ad_guest_link_error(links[i]) : NULL;

		EXPECT(!error || strcmp(error, "out of memory") == 0);
		ok = ok && !error;
	}
	for (int i = 0; i < 2; i++)
		ad_guest_link_free(links[i]);
	return ok ? 0 : AGENTD_ERR_NOMEM;
}

static int (*const works[])(agentd_error **reterr) = {
	do_params, do_argv, do_many_keys, do_policy, do_context, do_refusals, do_errors, do_guest,
};

START_TEST(test_oom)
{
	int (*work)(agentd_error * *reterr) = works[_i / 2];
	agentd_error *err = NULL;
	size_t survived = 0;
	int r, code;

	alloc_fault = &fault;
	ck_assert_int_eq(work(&err), 0); /* once at rest: what others keep for good */
	ck_assert_ptr_null(err);
	fault.for_good = _i % 2;
	for (fault.at = 1;; fault.at++) {
		long alive = alloc_blocks_alive;

		fault.seen = fault.hits = 0;
		fault.armed = true;
		r = work(&err);
		code = agentd_error_code(err);
		agentd_error_unref(err);
		err = NULL;
		fault.armed = false;
		alive = alloc_blocks_alive - alive;
		ck_assert_msg(!broken, "allocation %u failed: not %s", fault.at, broken);
		ck_assert_msg(alive == 0, "allocation %u failed: %ld blocks left", fault.at, alive);
		if (fault.hits == 0)
			break;
		ck_assert_int_eq(r, AGENTD_ERR_NOMEM);
		ck_assert(code == AGENTD_ERR_NOMEM || code == 0);
		survived++;
	}
	ck_assert_int_eq(r, 0);
	ck_assert_uint_gt(survived, 5);
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("oom");

	if (unit_instrumented()) {
		fputs("SKIP-CANNOT: the allocator belongs to the instrumentation\n", stderr);
		return 77;
	}
	tcase_add_loop_test(tc, test_oom, 0, 2 * (int)AD_COUNT(works));
	return unit_run("oom", tc);
}
