/* SPDX-License-Identifier: MIT */
/* agentd/probe.h: what it says is what the machine does, it is said once, kept only where
 * nobody else can write, and nothing of the trying is left. */
#include <errno.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"

struct heard {
	int count;
	agentd_probe *probe;
	int code;
	char *message;
};

static char *dir; /* for each test to keep things in */

static void make_dir(void)
{
	dir = t_format("/tmp/agentd-test-probe-%d.XXXXXX", getpid());
	ck_assert_ptr_nonnull(mkdtemp(dir));
}

/* Nothing of ours is left where the trying takes place. */
static void check_left(void)
{
	char *pattern = t_format("/tmp/agentd-probe-%d.*", getpid());
	glob_t found;
	int rc = glob(pattern, 0, NULL, &found);

	ck_assert_msg(rc == GLOB_NOMATCH, "left: %s", rc == 0 ? found.gl_pathv[0] : "?");
	free(pattern);
	t_remove_tree(dir);
	free(dir);
}

static void hear(agentd_probe *probe, const agentd_error *err, void *userdata)
{
	struct heard *heard = userdata;

	heard->count++;
	heard->probe = agentd_probe_ref(probe);
	heard->code = agentd_error_code(err);
	heard->message = err ? strdup(agentd_error_message(err)) : NULL;
}

static void forget(struct heard *heard)
{
	agentd_probe_unref(heard->probe);
	free(heard->message);
	*heard = (struct heard){ 0 };
}

static struct agentd_probe_opts opts_of(uint32_t flags)
{
	return (struct agentd_probe_opts){ .size = sizeof(struct agentd_probe_opts),
					   .flags = flags,
					   .helper_path = t_helper_source(),
					   .cache_dir = dir };
}

/* Blocking. */
static void probe_now(struct heard *heard, const struct agentd_probe_opts *opts)
{
	agentd_error *err = NULL;
	int code = agentd_probe_start(opts, hear, heard, &err);

	ck_assert_msg(code == 0, "%d: %s", code, err ? agentd_error_message(err) : "");
	ck_assert_int_eq(heard->count, 1);
	ck_assert_msg(heard->probe, "%s", heard->message);
}

/* What came of an act, by a part of its name. */
static int32_t act(const agentd_probe *probe, const char *part, int32_t *ret_outside,
		   const char **ret_how)
{
	const char *name;
	int32_t inside;

	for (size_t i = 0; agentd_probe_act_at(probe, i, &name, ret_outside, &inside, ret_how) == 0;
	     i++) {
		if (strstr(name, part))
			return inside;
	}
	ck_abort_msg("no act \"%s\"", part);
}

START_TEST(says_what_is)
{
	struct agentd_probe_opts opts = opts_of(0);
	struct heard heard = { 0 };
	int32_t outside;
	const char *how;
	char *json = NULL;
	size_t len = 0;
	size_t count;

	probe_now(&heard, &opts);
	ck_assert_int_eq(agentd_probe_cached(heard.probe), 0);
	/* What any user may do and no command in a sandbox. */
	ck_assert_int_eq(act(heard.probe, "read a file", &outside, &how), AGENTD_ACT_REFUSED);
	ck_assert_int_eq(outside, AGENTD_ACT_POSSIBLE);
	ck_assert_str_ne(how, "");
	ck_assert_int_eq(act(heard.probe, "write to a file", &outside, &how), AGENTD_ACT_REFUSED);
	ck_assert_int_eq(outside, AGENTD_ACT_POSSIBLE);
	ck_assert_int_eq(act(heard.probe, "signal the host", &outside, &how), AGENTD_ACT_REFUSED);
	ck_assert_int_eq(outside, AGENTD_ACT_POSSIBLE);
	ck_assert_int_eq(act(heard.probe, "abstract socket", &outside, &how), AGENTD_ACT_REFUSED);
	ck_assert_int_eq(outside, AGENTD_ACT_POSSIBLE);
	ck_assert_int_eq(act(heard.probe, "on processes", &outside, &how), AGENTD_ACT_REFUSED);
	ck_assert_int_eq(outside, AGENTD_ACT_POSSIBLE);
	ck_assert_int_eq(act(heard.probe, "on memory", &outside, &how), AGENTD_ACT_REFUSED);
	ck_assert_int_eq(outside, AGENTD_ACT_POSSIBLE);
	/* Not so for others; what is said of it depends on who asks. */
	act(heard.probe, "make a file in /usr", &outside, &how);
	ck_assert_int_eq(outside,
			 access("/usr", W_OK) == 0 ? AGENTD_ACT_POSSIBLE : AGENTD_ACT_REFUSED);

	ck_assert_msg(agentd_probe_level(heard.probe, AGENTD_CAP_SANDBOX) == 1, "%s",
		      agentd_probe_reason(heard.probe, AGENTD_CAP_SANDBOX));
	for (int32_t cap = 1; cap <= AGENTD_CAP_IDMAP; cap++) {
		bool present = agentd_probe_level(heard.probe, cap) > 0;
		const char *reason = agentd_probe_reason(heard.probe, cap);

		ck_assert_str_ne(agentd_cap_name(cap), "unknown");
		ck_assert_msg(present == (*reason == '\0'), "%s: %s", agentd_cap_name(cap), reason);
	}

	count = agentd_probe_act_count(heard.probe);
	ck_assert_int_eq(agentd_probe_act_at(heard.probe, count, NULL, NULL, NULL, NULL),
			 AGENTD_ERR_NOTFOUND);
	ck_assert_int_eq(agentd_probe_act_at(heard.probe, count - 1, NULL, NULL, NULL, NULL), 0);
	count = agentd_probe_layer_count(heard.probe);
	ck_assert_uint_gt(count, 10);
	ck_assert_int_eq(agentd_probe_layer_at(heard.probe, count, NULL, NULL, NULL),
			 AGENTD_ERR_NOTFOUND);
	ck_assert_int_eq(agentd_probe_layer_at(heard.probe, count - 1, NULL, NULL, NULL), 0);
	ck_assert_int_eq(agentd_probe_level(heard.probe, 0), 0);
	ck_assert_int_eq(agentd_probe_level(heard.probe, 4711), 0);
	ck_assert_str_ne(agentd_probe_reason(heard.probe, 4711), "");
	ck_assert_str_eq(agentd_cap_name(4711), "unknown");
	ck_assert_int_eq(agentd_probe_to_json(heard.probe, &json, &len, NULL), 0);
	ck_assert_uint_eq(strlen(json), len);
	agentd_free(json);
	forget(&heard);
}
END_TEST

/* A receipt of a command and the probe tell the same of a layer. */
START_TEST(agrees_with_a_command)
{
	struct t_world *world = t_world_new(&(struct t_world_opts){ .backend = "sandbox" });
	struct agentd_probe_opts opts = opts_of(0);
	struct heard heard = { 0 };
	size_t same = 0;
	struct t_run run;
	const char *name;
	int32_t state, in_receipt;

	t_run(&run, world, "true", 20000);
	t_expect_status(&run, AGENTD_STATUS_OK);
	probe_now(&heard, &opts);
	for (size_t i = 0; agentd_probe_layer_at(heard.probe, i, &name, &state, NULL) == 0; i++) {
		if (t_run_layer(&run, name, &in_receipt)) {
			ck_assert_msg(state == in_receipt, "%s: %d, %d", name, state, in_receipt);
			same++;
		}
	}
	ck_assert_uint_gt(same, 14);
	forget(&heard);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(on_own_base)
{
	struct event_base *base = event_base_new();
	struct agentd_probe_opts opts = opts_of(0);
	struct heard heard = { 0 };
	struct t_fds before;
	agentd_error *err = NULL;

	t_fds_take(&before);
	opts.event_base = base;
	for (int kept = 0; kept <= 1; kept++) {
		ck_assert_int_eq(agentd_probe_start(&opts, hear, &heard, &err), 0);
		ck_assert_int_eq(heard.count, 0);
		t_base_loop(base, t_slack(30000), &heard.count);
		ck_assert_int_eq(heard.count, 1);
		ck_assert_msg(heard.probe, "%s", heard.message);
		ck_assert_int_eq(agentd_probe_cached(heard.probe), kept);
		ck_assert_int_eq(event_base_get_num_events(base, EVENT_BASE_COUNT_ADDED), 0);
		forget(&heard);
	}
	t_fds_expect_same(&before, "after two probes");
	t_fds_free(&before);
	event_base_free(base);
}
END_TEST

/* ---- without descriptors */

static int new_loop(void)
{
	agentd_loop *loop = NULL;
	int code = agentd_loop_new(&loop, NULL);

	agentd_loop_unref(loop);
	return code;
}

static int probe_once(void)
{
	struct agentd_probe_opts opts = opts_of(AGENTD_PROBE_NO_CACHE);
	struct heard heard = { 0 };
	int code = agentd_probe_start(&opts, hear, &heard, NULL);

	code = heard.count ? heard.code : code;
	forget(&heard);
	return code;
}

/* In a child of fork(), with so many descriptors left: 0 if call returned what it should, and
 * printed nothing. libevent exits with 1. */
static int call_with(int left, int (*call)(void), int output)
{
	struct rlimit limit = { .rlim_cur = 64, .rlim_max = 64 };
	struct stat st;
	int code, last = -1;

	if (dup2(output, 1) < 0 || dup2(output, 2) < 0 || setrlimit(RLIMIT_NOFILE, &limit) < 0)
		return 2;
	for (int fd; (fd = dup(0)) >= 0;)
		last = fd;
	for (int i = 0; i < left; i++)
		close(last - i);
	code = call();
	if (fstat(1, &st) < 0 || st.st_size != 0)
		return 3;
	/* Later ones are the helper's, which then cannot start. */
	return code == AGENTD_ERR_SYSTEM || left > 2 ? 0 : 4;
}

START_TEST(few_descriptors)
{
	int (*const calls[])(void) = { new_loop, probe_once };
	FILE *output = tmpfile();
	char said[256] = "";
	int status = 0;

	ck_assert_ptr_nonnull(output);
	for (size_t i = 0; i < T_COUNT(calls); i++) {
		for (int left = 0; left <= 12; left++) {
			pid_t child = fork();

			if (child == 0)
				_exit(call_with(left, calls[i], fileno(output)));
			ck_assert_int_eq(waitpid(child, &status, 0), child);
			ck_assert_int_ge(pread(fileno(output), said, sizeof(said) - 1, 0), 0);
			ck_assert_msg(status == 0 && !*said, "call %zu, %d left: status %x, \"%s\"",
				      i, left, (unsigned)status, said);
		}
	}
	fclose(output);
}
END_TEST

/* ---- what is kept */

START_TEST(is_kept)
{
	struct agentd_probe_opts opts = opts_of(0);
	struct heard first = { 0 }, second = { 0 }, third = { 0 };
	char *a, *b, *mark, *file = t_format("%s/probe.json", dir);
	struct stat st;

	probe_now(&first, &opts);
	ck_assert_int_eq(stat(file, &st), 0);
	ck_assert_uint_eq(st.st_mode & 0777, 0600);
	probe_now(&second, &opts);
	ck_assert_int_eq(agentd_probe_cached(second.probe), 1);
	ck_assert_int_eq(agentd_probe_to_json(first.probe, &a, NULL, NULL), 0);
	ck_assert_int_eq(agentd_probe_to_json(second.probe, &b, NULL, NULL), 0);
	mark = strstr(b, "\"cached\":true");
	ck_assert_ptr_nonnull(mark);
	ck_assert_int_eq(strncmp(a, b, (size_t)(mark - b)), 0);
	ck_assert_str_eq(strstr(a, "\"cached\":false") + strlen("\"cached\":false"),
			 mark + strlen("\"cached\":true"));
	agentd_free(a);
	agentd_free(b);

	opts.flags = AGENTD_PROBE_NO_CACHE;
	probe_now(&third, &opts);
	ck_assert_int_eq(agentd_probe_cached(third.probe), 0);
	forget(&first);
	forget(&second);
	forget(&third);
	free(file);
}
END_TEST

static void expect_tried(const char *why)
{
	struct agentd_probe_opts opts = opts_of(0);
	struct heard heard = { 0 };

	probe_now(&heard, &opts);
	ck_assert_msg(agentd_probe_cached(heard.probe) == 0, "%s", why);
	forget(&heard);
}

START_TEST(nothing_doubtful_is_used)
{
	static const char *const parts[] = { "boot_id: ", "Uid:\\t",
					     "max_net_namespaces: ", "perf_event_paranoid: " };
	char *file = t_format("%s/probe.json", dir), *other = t_format("%s/other", dir), *text;
	struct agentd_probe_opts opts = opts_of(0);
	struct heard heard = { 0 };
	char *at;

	expect_tried("it is the first");
	text = t_read_file(file, NULL);
	ck_assert_ptr_nonnull(text);

	/* Of another boot, of somebody with other rights, or when the kernel was set otherwise. */
	for (size_t i = 0; i < T_COUNT(parts); i++) {
		at = strstr(text, parts[i]);
		ck_assert_msg(at, "no %s in the key", parts[i]);
		at[strlen(parts[i])] ^= 1;
		t_write_file(file, text);
		expect_tried(parts[i]);
		at[strlen(parts[i])] ^= 1;
	}
	t_write_file(file, "{\"key\": \"");
	expect_tried("cut short");
	free(text);

	/* The text is right and its place is not. */
	text = t_read_file(file, NULL);
	t_write_file(other, text);
	ck_assert_int_eq(unlink(file), 0);
	ck_assert_int_eq(symlink(other, file), 0);
	t_write_file(other, text);
	expect_tried("a link");
	free(text);

	/* Now it is a file again; a control, and then others may write beside it. */
	probe_now(&heard, &opts);
	ck_assert_int_eq(agentd_probe_cached(heard.probe), 1);
	forget(&heard);
	ck_assert_int_eq(chmod(dir, 0777), 0);
	expect_tried("a directory of others");
	ck_assert_int_eq(chmod(dir, 0700), 0);
	free(file);
	free(other);
}
END_TEST

START_TEST(goes_without_a_place)
{
	struct agentd_probe_opts opts = opts_of(0);
	char *missing = t_format("%s/a/b", dir);
	struct heard heard = { 0 };

	opts.cache_dir = missing;
	probe_now(&heard, &opts);
	ck_assert_int_eq(access(missing, F_OK), -1);
	forget(&heard);
	free(missing);
}
END_TEST

/* With so many descriptors left: whether a sandbox can be had, or -1 for no probe at all. */
static int level_with(int left)
{
	struct rlimit limit = { .rlim_cur = (rlim_t)dup(0) + (rlim_t)left, .rlim_max = 0 };
	struct agentd_probe_opts opts = opts_of(0);
	struct heard heard = { 0 };

	limit.rlim_max = limit.rlim_cur;
	if (setrlimit(RLIMIT_NOFILE, &limit) < 0 ||
	    agentd_probe_start(&opts, hear, &heard, NULL) < 0 || !heard.probe)
		return -1;
	return agentd_probe_level(heard.probe, AGENTD_CAP_SANDBOX);
}

/* What one process lacked for a moment is not what there is until the machine restarts. */
START_TEST(a_lack_is_not_kept)
{
	struct agentd_probe_opts opts = opts_of(0);
	char *file = t_format("%s/probe.json", dir);
	struct heard heard = { 0 };
	int status = 0, said = 1;

	for (int left = 8; left < 64 && said == 1; left += 2) {
		pid_t child = fork();

		if (child == 0)
			_exit(level_with(left) + 2);
		ck_assert_int_eq(waitpid(child, &status, 0), child);
		ck_assert(WIFEXITED(status));
		said = WEXITSTATUS(status);
	}
	/* It began, and said that there is no sandbox. */
	ck_assert_int_eq(said, 2);
	ck_assert_int_eq(access(file, F_OK), -1);
	probe_now(&heard, &opts);
	ck_assert_int_eq(agentd_probe_cached(heard.probe), 0);
	ck_assert_int_eq(agentd_probe_level(heard.probe, AGENTD_CAP_SANDBOX), 1);
	ck_assert_int_eq(access(file, F_OK), 0);
	forget(&heard);
	free(file);
}
END_TEST

/* Not even the signal of a file that grows too large comes to the host program. */
START_TEST(goes_without_room)
{
	char *pattern = t_format("%s/*", dir);
	int status;
	glob_t found;
	pid_t child = fork();

	if (child == 0) {
		struct rlimit limit = { .rlim_cur = 0, .rlim_max = 0 };
		struct agentd_probe_opts opts = opts_of(0);
		struct heard heard = { 0 };

		if (setrlimit(RLIMIT_FSIZE, &limit) < 0 ||
		    agentd_probe_start(&opts, hear, &heard, NULL) < 0)
			_exit(1);
		_exit(heard.probe ? 0 : 2);
	}
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert_int_eq(status, 0);
	ck_assert_int_eq(glob(pattern, 0, NULL, &found), GLOB_NOMATCH);
	free(pattern);
}
END_TEST

/* ---- what goes wrong */

static void refused(const struct agentd_probe_opts *opts, agentd_probe_fn fn, int want,
		    const char *text)
{
	struct heard heard = { 0 };
	agentd_error *err = NULL;
	int code = agentd_probe_start(opts, fn, &heard, &err);

	t_expect_error(code, want, err, text, NULL);
	ck_assert_int_eq(heard.count, 0);
}

START_TEST(bad_arguments)
{
	struct agentd_probe_opts opts = opts_of(0);

	refused(&opts, NULL, AGENTD_ERR_INVALID, "fn");
	opts.flags = 0x40;
	refused(&opts, hear, AGENTD_ERR_INVALID, "0x40");
	opts = opts_of(0);
	opts.size = 3;
	refused(&opts, hear, AGENTD_ERR_ABI, "agentd_probe_opts");
	opts = opts_of(0);
	opts.cache_dir = "some/where";
	refused(&opts, hear, AGENTD_ERR_INVALID, "some/where");
	opts = opts_of(AGENTD_PROBE_NO_CACHE);
	opts.helper_path = "/usr/no/such/helper";
	refused(&opts, hear, AGENTD_ERR_NOTFOUND, "/usr/no/such/helper");
	ck_assert_int_eq(agentd_probe_to_json(NULL, NULL, NULL, NULL), AGENTD_ERR_INVALID);
	ck_assert_uint_eq(agentd_probe_act_count(NULL), 0);
	ck_assert_uint_eq(agentd_probe_layer_count(NULL), 0);
	ck_assert_int_eq(agentd_probe_level(NULL, AGENTD_CAP_SANDBOX), 0);
	ck_assert_ptr_null(agentd_probe_ref(NULL));
	agentd_probe_unref(NULL);
}
END_TEST

START_TEST(no_helper_of_ours)
{
	struct agentd_probe_opts opts = opts_of(AGENTD_PROBE_NO_CACHE);
	struct heard heard = { 0 };

	opts.helper_path = "/bin/true";
	ck_assert_int_eq(agentd_probe_start(&opts, hear, &heard, NULL), 0);
	ck_assert_int_eq(heard.count, 1);
	ck_assert_ptr_null(heard.probe);
	ck_assert_int_eq(heard.code, AGENTD_ERR_BACKEND);
	ck_assert_ptr_nonnull(strstr(heard.message, "without a sandbox"));
	forget(&heard);
}
END_TEST

int main(void)
{
	TCase *cases[] = { t_case("probe", 60), t_case("kept", 120), t_case("wrong", 60) };

	for (size_t i = 0; i < T_COUNT(cases); i++)
		tcase_add_checked_fixture(cases[i], make_dir, check_left);
	tcase_add_test(cases[0], says_what_is);
	tcase_add_test(cases[0], agrees_with_a_command);
	tcase_add_test(cases[0], on_own_base);
	tcase_add_test(cases[0], few_descriptors);
	tcase_add_test(cases[1], is_kept);
	tcase_add_test(cases[1], nothing_doubtful_is_used);
	tcase_add_test(cases[1], goes_without_a_place);
	tcase_add_test(cases[1], goes_without_room);
	tcase_add_test(cases[1], a_lack_is_not_kept);
	tcase_add_test(cases[2], bad_arguments);
	tcase_add_test(cases[2], no_helper_of_ours);
	return t_main("probe", cases, T_COUNT(cases));
}
