/* SPDX-License-Identifier: MIT */
#include "unit.h"

#include <stdint.h>

#include "proto/helper_msg.h"

enum { TEXTS_MAX = 64 };

/* Each finds what it can find in one run or another. */
static size_t mutation_count(void)
{
	return unit_instrumented() ? 10000 : 100000;
}

/* Bytes in a block of exactly their size, so that a sanitizer sees every step
 * beyond. */
static uint8_t *exact(const uint8_t *data, size_t len)
{
	uint8_t *ret = malloc(len ? len : 1);

	ck_assert_ptr_nonnull(ret);
	memcpy(ret, data, len);
	return ret;
}

static uint64_t random_state = 0x9e3779b97f4a7c15u;

static uint64_t random_next(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

/* ---- one of each */

static struct ad_msg_receipt receipt(void)
{
	struct ad_msg_receipt ret = {
		.memory = AD_MSG_MEANS_CGROUP1,
		.pids = AD_MSG_MEANS_WATCHDOG,
		.cpu = AD_MSG_MEANS_NONE,
		.cpu_time = AD_MSG_MEANS_RLIMIT,
		.io = AD_MSG_MEANS_WATCHDOG,
		.tree_kill = AD_MSG_MEANS_PIDNS,
		.landlock_abi = 255,
		.uid = 65534,
		.gid = 0xfffffffe,
	};

	for (int i = 0; i < AD_LAYER_COUNT; i++) {
		ret.layers[i] = (uint8_t)(i % AD_MSG_LAYER_STATES);
		ret.layer_errno[i] = (uint16_t)(4095 - i);
	}
	return ret;
}

static void check_receipt(const struct ad_msg_receipt *a, const struct ad_msg_receipt *b)
{
	ck_assert_uint_eq(a->memory, b->memory);
	ck_assert_uint_eq(a->pids, b->pids);
	ck_assert_uint_eq(a->cpu, b->cpu);
	ck_assert_uint_eq(a->cpu_time, b->cpu_time);
	ck_assert_uint_eq(a->io, b->io);
	ck_assert_uint_eq(a->tree_kill, b->tree_kill);
	ck_assert_uint_eq(a->landlock_abi, b->landlock_abi);
	ck_assert_mem_eq(a->layers, b->layers, sizeof(a->layers));
	ck_assert_mem_eq(a->layer_errno, b->layer_errno, sizeof(a->layer_errno));
	ck_assert_uint_eq(a->uid, b->uid);
	ck_assert_uint_eq(a->gid, b->gid);
}

static size_t all_messages(struct ad_msg *ret)
{
	static const enum ad_msg_type types[] = {
		AD_MSG_SPAWN_FD, AD_MSG_KILL,   AD_MSG_SIGNAL, AD_MSG_HELLO,
		AD_MSG_STARTED,  AD_MSG_FAILED, AD_MSG_LIMIT,  AD_MSG_EXITED,
		AD_MSG_CLOSED,   AD_MSG_ENDED,  AD_MSG_DENIED,
	};
	const size_t count = sizeof(types) / sizeof(types[0]);

	for (size_t i = 0; i < count; i++) {
		struct ad_msg *msg = &ret[i];

		memset(msg, 0, sizeof(*msg));
		msg->type = types[i];
		msg->job = types[i] == AD_MSG_HELLO ? 0 : 0xf0e0d0c0u + (uint32_t)i;
		switch (types[i]) {
		case AD_MSG_SIGNAL:
			msg->u.signal.signo = 64;
			break;
		case AD_MSG_HELLO:
			msg->u.hello.pid = 4194303;
			msg->u.hello.best = receipt();
			strcpy(msg->u.hello.version, "0.1.0");
			break;
		case AD_MSG_STARTED:
			msg->u.started.pid = 12345;
			msg->u.started.flags = AD_STARTED_FLAGS;
			msg->u.started.receipt = receipt();
			break;
		case AD_MSG_FAILED:
			msg->u.failed.stage = AD_STAGE_COUNT - 1;
			msg->u.failed.index = AD_PROFILE_PATHS_MAX - 1;
			msg->u.failed.os_errno = 133;
			memset(msg->u.failed.text, 'x', AD_MSG_TEXT_MAX - 1);
			break;
		case AD_MSG_LIMIT:
			msg->u.limit.limit = AD_MSG_LIMIT_SYSCALL;
			msg->u.limit.fatal = true;
			break;
		case AD_MSG_DENIED:
			msg->u.denied.kind = AD_MSG_DENIED_PATH;
			strcpy(msg->u.denied.target, "/some/where/.git/hooks");
			break;
		case AD_MSG_EXITED:
		case AD_MSG_CLOSED:
		case AD_MSG_ENDED:
			if (types[i] != AD_MSG_CLOSED) {
				msg->u.ended.wait_status = -1;
				msg->u.ended.at_ns = UINT64_MAX;
			}
			if (types[i] != AD_MSG_EXITED)
				msg->u.ended.usage = (struct ad_msg_usage){
					.cpu_ns = 1,
					.memory_peak = UINT64_MAX - 1,
					.survivors = UINT32_MAX,
					.peak_is_tree = true,
				};
			break;
		default:
			break;
		}
	}
	return count;
}

START_TEST(messages_round_trip)
{
	struct ad_msg sent[TEXTS_MAX];
	size_t count = all_messages(sent);

	for (size_t i = 0; i < count; i++) {
		uint8_t buf[AD_MSG_FIXED_MAX], again[AD_MSG_FIXED_MAX];
		size_t len = ad_msg_encode(&sent[i], buf);
		struct ad_msg got;

		ck_assert_uint_gt(len, 0);
		ck_assert_uint_le(len, AD_MSG_FIXED_MAX);
		ck_assert_uint_eq(ad_msg_peek(buf, len), sent[i].type);
		ck_assert(ad_msg_decode(&got, buf, len));
		ck_assert_int_eq(got.type, sent[i].type);
		ck_assert_uint_eq(got.job, sent[i].job);
		ck_assert_uint_eq(ad_msg_encode(&got, again), len);
		ck_assert_mem_eq(again, buf, len);
	}
}
END_TEST

START_TEST(fields_survive)
{
	struct ad_msg sent[TEXTS_MAX], got;
	size_t count = all_messages(sent);
	uint8_t buf[AD_MSG_FIXED_MAX];

	for (size_t i = 0; i < count; i++) {
		ck_assert(ad_msg_decode(&got, buf, ad_msg_encode(&sent[i], buf)));
		switch (got.type) {
		case AD_MSG_SIGNAL:
			ck_assert_int_eq(got.u.signal.signo, 64);
			break;
		case AD_MSG_HELLO:
			ck_assert_int_eq(got.u.hello.pid, 4194303);
			check_receipt(&got.u.hello.best, &sent[i].u.hello.best);
			ck_assert_str_eq(got.u.hello.version, "0.1.0");
			break;
		case AD_MSG_STARTED:
			ck_assert_int_eq(got.u.started.pid, 12345);
			ck_assert_uint_eq(got.u.started.flags, AD_STARTED_FLAGS);
			check_receipt(&got.u.started.receipt, &sent[i].u.started.receipt);
			break;
		case AD_MSG_FAILED:
			ck_assert_uint_eq(got.u.failed.stage, AD_STAGE_COUNT - 1);
			ck_assert_uint_eq(got.u.failed.index, AD_PROFILE_PATHS_MAX - 1);
			ck_assert_int_eq(got.u.failed.os_errno, 133);
			ck_assert_uint_eq(strlen(got.u.failed.text), AD_MSG_TEXT_MAX - 1);
			break;
		case AD_MSG_LIMIT:
			ck_assert_uint_eq(got.u.limit.limit, AD_MSG_LIMIT_SYSCALL);
			ck_assert(got.u.limit.fatal);
			break;
		case AD_MSG_DENIED:
			ck_assert_uint_eq(got.u.denied.kind, AD_MSG_DENIED_PATH);
			ck_assert_str_eq(got.u.denied.target, "/some/where/.git/hooks");
			break;
		case AD_MSG_ENDED:
			ck_assert_int_eq(got.u.ended.wait_status, -1);
			ck_assert_uint_eq(got.u.ended.at_ns, UINT64_MAX);
			ck_assert_uint_eq(got.u.ended.usage.cpu_ns, 1);
			ck_assert_uint_eq(got.u.ended.usage.memory_peak, UINT64_MAX - 1);
			ck_assert_uint_eq(got.u.ended.usage.survivors, UINT32_MAX);
			ck_assert(got.u.ended.usage.peak_is_tree);
			break;
		case AD_MSG_CLOSED:
			ck_assert_int_eq(got.u.ended.wait_status, 0);
			ck_assert_uint_eq(got.u.ended.usage.survivors, UINT32_MAX);
			break;
		case AD_MSG_EXITED:
			ck_assert_int_eq(got.u.ended.wait_status, -1);
			ck_assert_uint_eq(got.u.ended.usage.survivors, 0);
			break;
		default:
			break;
		}
	}
}
END_TEST

/* A byte less or more than there should be is refused. */
START_TEST(messages_of_other_lengths)
{
	struct ad_msg sent[TEXTS_MAX], got;
	size_t count = all_messages(sent);

	for (size_t i = 0; i < count; i++) {
		uint8_t buf[AD_MSG_FIXED_MAX + 1];
		size_t len = ad_msg_encode(&sent[i], buf);
		uint8_t *copy;

		for (size_t cut = 0; cut < len; cut++) {
			copy = exact(buf, cut);
			ck_assert_msg(!ad_msg_decode(&got, copy, cut), "type %d cut to %zu of %zu",
				      sent[i].type, cut, len);
			free(copy);
		}
		buf[len] = 0;
		copy = exact(buf, len + 1);
		ck_assert(!ad_msg_decode(&got, copy, len + 1));
		free(copy);
	}
}
END_TEST

static void refuse_with(const struct ad_msg *msg, size_t at, uint8_t value)
{
	uint8_t buf[AD_MSG_FIXED_MAX];
	size_t len = ad_msg_encode(msg, buf);
	struct ad_msg got;

	ck_assert_uint_lt(at, len);
	ck_assert(ad_msg_decode(&got, buf, len));
	buf[at] = value;
	ck_assert_msg(!ad_msg_decode(&got, buf, len), "type %d with %d at %zu", msg->type, value,
		      at);
}

/* Offsets in a receipt, and what it takes. */
enum { RECEIPT_LAYERS = 7, RECEIPT_SIZE = RECEIPT_LAYERS + 3 * AD_LAYER_COUNT + 2 * 4 };

/* Every byte of the receipt that has a bound. */
static void refuse_receipts(const struct ad_msg *msg, size_t at)
{
	for (size_t i = 0; i < 6; i++)
		refuse_with(msg, at + i, AD_MSG_MEANS_COUNT);
	for (size_t i = 0; i < AD_LAYER_COUNT; i++) {
		refuse_with(msg, at + RECEIPT_LAYERS + 3 * i, AD_MSG_LAYER_STATES);
		refuse_with(msg, at + RECEIPT_LAYERS + 3 * i + 2, 0x10); /* errno 4096 */
	}
}

START_TEST(values_out_of_range)
{
	struct ad_msg sent[TEXTS_MAX];
	size_t count = all_messages(sent);

	for (size_t i = 0; i < count; i++) {
		refuse_with(&sent[i], 0, AD_MSG_VERSION + 1);
		refuse_with(&sent[i], 1, 0);
		refuse_with(&sent[i], 1, AD_MSG_SPAWN);
		refuse_with(&sent[i], 1, 0xff);
		refuse_with(&sent[i], 2, 1);
		refuse_with(&sent[i], 3, 1);
		switch (sent[i].type) {
		case AD_MSG_SIGNAL:
			refuse_with(&sent[i], 8, 65);
			refuse_with(&sent[i], 11, 0x80);
			break;
		case AD_MSG_HELLO:
			refuse_with(&sent[i], 4, 1);     /* a job */
			refuse_with(&sent[i], 11, 0x80); /* pid below 0 */
			refuse_receipts(&sent[i], 12);
			refuse_with(&sent[i], 12 + RECEIPT_SIZE + 2, 0); /* NUL in the text */
			break;
		case AD_MSG_STARTED:
			refuse_with(&sent[i], 12, AD_STARTED_FLAGS + 1);
			refuse_receipts(&sent[i], 16);
			break;
		case AD_MSG_FAILED:
			refuse_with(&sent[i], 8, AD_STAGE_COUNT);
			refuse_with(&sent[i], 13, AD_PROFILE_PATHS_MAX >> 8);
			refuse_with(&sent[i], 15, 0xff);
			refuse_with(&sent[i], 17, 0x10); /* errno 4096 */
			break;
		case AD_MSG_DENIED:
			refuse_with(&sent[i], 8, AD_MSG_DENIED_KINDS);
			refuse_with(&sent[i], 14, 0); /* NUL in the text */
			break;
		case AD_MSG_LIMIT:
			refuse_with(&sent[i], 8, AD_MSG_LIMIT_COUNT);
			refuse_with(&sent[i], 12, 2);
			break;
		case AD_MSG_CLOSED:
			refuse_with(&sent[i], 28, 2);
			break;
		default:
			break;
		}
		/* Everything but HELLO is about a job. */
		if (sent[i].type != AD_MSG_HELLO) {
			struct ad_msg got;
			uint8_t buf[AD_MSG_FIXED_MAX];
			size_t len;

			sent[i].job = 0;
			len = ad_msg_encode(&sent[i], buf);
			ck_assert(!ad_msg_decode(&got, buf, len));
		}
	}
}
END_TEST

/* Whatever is accepted can be written again as it was. */
START_TEST(random_messages)
{
	struct ad_msg sent[TEXTS_MAX];
	size_t count = all_messages(sent), accepted = 0;

	for (size_t i = 0, mutations = mutation_count(); i < mutations; i++) {
		uint8_t buf[AD_MSG_FIXED_MAX], again[AD_MSG_FIXED_MAX];
		size_t len = ad_msg_encode(&sent[random_next() % count], buf), changes;
		struct ad_msg got;
		uint8_t *copy;

		for (changes = random_next() % 4; changes > 0; changes--)
			buf[random_next() % len] = (uint8_t)random_next();
		if (random_next() % 4 == 0)
			len = random_next() % (len + 1);
		copy = exact(buf, len);
		if (ad_msg_decode(&got, copy, len)) {
			accepted++;
			ck_assert_uint_eq(ad_msg_encode(&got, again), len);
			ck_assert_mem_eq(again, copy, len);
		}
		free(copy);
	}
	ck_assert_uint_gt(accepted, mutation_count() / 10);
}
END_TEST

/* ---- profiles */

static struct ad_profile_path some_paths[] = {
	{ "/usr", "/usr", AD_ACCESS_READ | AD_ACCESS_EXEC },
	{ "/some/\xff", "/", AD_ACCESS_ALL },
	{ "/usr/local", "/usr/local", 0 },
};
static const char *const some_names[] = { ".git/hooks", "x" };

static struct ad_profile some_profile(void)
{
	struct ad_profile profile = {
		.uid = 65530,
		.gid = 0xfffffffe,
		.prewarm = UINT32_MAX,
		.tmp_bytes = UINT64_MAX,
		.host_net = true,
		.proxy_port = 911,
		.workdir_access = AD_ACCESS_ALL,
		.path_count = sizeof(some_paths) / sizeof(some_paths[0]),
		.name_count = sizeof(some_names) / sizeof(some_names[0]),
		.paths = some_paths,
		.names = some_names,
	};

	for (int i = 0; i < AD_LAYER_COUNT; i++)
		profile.strict[i] = (uint8_t)(i % AD_STRICT_COUNT);
	return profile;
}

static uint8_t *encode_profile(const struct ad_profile *profile, size_t *ret_len)
{
	size_t size = ad_profile_size(profile);
	uint8_t *buf = malloc(size);

	ck_assert_ptr_nonnull(buf);
	*ret_len = ad_profile_encode(profile, buf);
	ck_assert_uint_eq(*ret_len, size);
	return buf;
}

static void check_profile(const struct ad_profile *sent)
{
	struct ad_profile_path *paths = calloc(sent->path_count + 1, sizeof(*paths));
	const char **names = calloc(sent->name_count + 1, sizeof(*names));
	size_t len, again;
	uint8_t *buf = encode_profile(sent, &len), *copy;
	struct ad_profile got;

	ck_assert(paths && names);
	ck_assert(ad_profile_decode(&got, buf, len));
	ck_assert_ptr_null(got.paths);
	ck_assert_ptr_null(got.names);
	ck_assert_uint_eq(got.path_count, sent->path_count);
	ck_assert_uint_eq(got.name_count, sent->name_count);
	ad_profile_fill(&got, paths, names);
	ck_assert_uint_eq(got.uid, sent->uid);
	ck_assert_uint_eq(got.gid, sent->gid);
	ck_assert_uint_eq(got.prewarm, sent->prewarm);
	ck_assert_uint_eq(got.tmp_bytes, sent->tmp_bytes);
	ck_assert_int_eq(got.host_net, sent->host_net);
	ck_assert_uint_eq(got.proxy_port, sent->proxy_port);
	ck_assert_uint_eq(got.workdir_access, sent->workdir_access);
	ck_assert_mem_eq(got.strict, sent->strict, sizeof(got.strict));
	for (size_t i = 0; i < got.path_count; i++) {
		ck_assert_str_eq(got.paths[i].source, sent->paths[i].source);
		ck_assert_str_eq(got.paths[i].target, sent->paths[i].target);
		ck_assert_uint_eq(got.paths[i].access, sent->paths[i].access);
	}
	for (size_t i = 0; i < got.name_count; i++)
		ck_assert_str_eq(got.names[i], sent->names[i]);
	copy = encode_profile(&got, &again);
	ck_assert_uint_eq(again, len);
	ck_assert_mem_eq(copy, buf, len);
	free(copy);
	free(buf);
	free(paths);
	free(names);
}

START_TEST(profiles_round_trip)
{
	struct ad_profile profile = some_profile();

	check_profile(&profile);
	profile.path_count = 0;
	check_profile(&profile);
	profile.name_count = 0;
	profile.host_net = false;
	check_profile(&profile);
	profile.path_count = 1;
	check_profile(&profile);
}
END_TEST

START_TEST(profiles_of_other_lengths)
{
	struct ad_profile profile = some_profile(), got;
	size_t len;
	uint8_t *buf = encode_profile(&profile, &len), *longer = malloc(len + 1);

	for (size_t cut = 0; cut < len; cut++) {
		uint8_t *copy = exact(buf, cut);

		ck_assert_msg(!ad_profile_decode(&got, copy, cut), "cut to %zu", cut);
		free(copy);
	}
	ck_assert_ptr_nonnull(longer);
	memcpy(longer, buf, len);
	longer[len] = 0;
	ck_assert(!ad_profile_decode(&got, longer, len + 1));
	longer[len] = '/';
	ck_assert(!ad_profile_decode(&got, longer, len + 1));
	free(longer);
	free(buf);
}
END_TEST

/* Offsets in an encoded profile. */
enum {
	PROFILE_HOST_NET = 3 * 4 + 8,
	PROFILE_PROXY_PORT,
	PROFILE_WORKDIR = PROFILE_PROXY_PORT + 2,
	PROFILE_STRICT,
	PROFILE_COUNTS = PROFILE_STRICT + AD_LAYER_COUNT,
	PROFILE_ACCESS = PROFILE_COUNTS + 2 * 4,
	PROFILE_STRINGS = PROFILE_ACCESS + 3,
};

static void refuse_profile(size_t at, uint8_t value)
{
	struct ad_profile profile = some_profile(), got;
	size_t len;
	uint8_t *buf = encode_profile(&profile, &len);

	ck_assert_uint_lt(at, len);
	ck_assert(ad_profile_decode(&got, buf, len));
	buf[at] = value;
	ck_assert_msg(!ad_profile_decode(&got, buf, len), "%d at %zu", value, at);
	free(buf);
}

START_TEST(bad_profiles)
{
	struct ad_profile profile = some_profile();
	size_t len = ad_profile_size(&profile);

	refuse_profile(PROFILE_HOST_NET, 2);
	refuse_profile(PROFILE_WORKDIR, AD_ACCESS_ALL + 1);
	for (size_t i = 0; i < AD_LAYER_COUNT; i++)
		refuse_profile(PROFILE_STRICT + i, AD_STRICT_COUNT);
	for (size_t i = 0; i < 2; i++) {
		static const uint8_t counts[] = { 0, 1, 4, 0xff };
		size_t at = PROFILE_COUNTS + 4 * i;

		for (size_t j = 0; j < sizeof(counts); j++)
			refuse_profile(at, counts[j]);
		refuse_profile(at + 1, AD_PROFILE_PATHS_MAX >> 8);
		refuse_profile(at + 3, 0x80);
	}
	for (size_t i = 0; i < 3; i++)
		refuse_profile(PROFILE_ACCESS + i, AD_ACCESS_ALL + 1);
	/* Sources and targets are absolute, names are not; none is empty. */
	refuse_profile(PROFILE_STRINGS, 'x');
	refuse_profile(PROFILE_STRINGS, 0);
	refuse_profile(PROFILE_STRINGS + sizeof("/usr"), 'x');
	refuse_profile(len - 2, '/');
	refuse_profile(len - 2, 0);
	refuse_profile(len - 1, 'x');
}
END_TEST

START_TEST(random_profiles)
{
	struct ad_profile profile = some_profile(), got;
	size_t full, accepted = 0;
	uint8_t *pattern = encode_profile(&profile, &full);

	for (size_t i = 0, mutations = mutation_count(); i < mutations; i++) {
		size_t len = random_next() % 4 == 0 ? random_next() % (full + 1) : full, again;
		uint8_t *copy = exact(pattern, len);

		for (size_t changes = random_next() % 4; len > 0 && changes > 0; changes--)
			copy[random_next() % len] = (uint8_t)random_next();
		if (ad_profile_decode(&got, copy, len)) {
			struct ad_profile_path *paths = calloc(got.path_count + 1, sizeof(*paths));
			const char **names = calloc(got.name_count + 1, sizeof(*names));
			uint8_t *other;

			accepted++;
			ck_assert(paths && names);
			ad_profile_fill(&got, paths, names);
			other = encode_profile(&got, &again);
			ck_assert_uint_eq(again, len);
			ck_assert_mem_eq(other, copy, len);
			free(other);
			free(paths);
			free(names);
		}
		free(copy);
	}
	ck_assert_uint_gt(accepted, mutation_count() / 10);
	free(pattern);
}
END_TEST

/* ---- spawn */

static uint8_t profile_bytes[512];
static size_t profile_len;

static const char *const some_argv[] = { "bash", "-lc", "", "echo \n\xff", NULL };
static const char *const some_env[] = { "A=1", "", "PATH=/bin", NULL };

static struct ad_msg_spawn some_spawn(void)
{
	struct ad_profile profile = some_profile();

	ck_assert_uint_le(ad_profile_size(&profile), sizeof(profile_bytes));
	profile_len = ad_profile_encode(&profile, profile_bytes);
	return (struct ad_msg_spawn){
		.job = 0xdeadbeef,
		.flags = AD_SPAWN_FLAGS &
			 ~(uint32_t)(AD_SPAWN_MACHINE | AD_SPAWN_SESSION | AD_SPAWN_SMALL_PAGES),
		.requested = (1u << AD_MSG_LIMIT_COUNT) - 1,
		.limits = { UINT64_MAX, 2, 3, 4, 5, 6, UINT64_MAX - 7 },
		.workdir = "/some/where",
		.argv = some_argv,
		.env = some_env,
		.profile = profile_bytes,
		.profile_len = profile_len,
	};
}

static uint8_t *encode_spawn(const struct ad_msg_spawn *spawn, size_t *ret_len)
{
	size_t size = ad_msg_spawn_size(spawn);
	uint8_t *buf;

	ck_assert_uint_ne(size, SIZE_MAX);
	buf = malloc(size);
	ck_assert_ptr_nonnull(buf);
	*ret_len = ad_msg_spawn_encode(spawn, buf);
	ck_assert_uint_eq(*ret_len, size);
	return buf;
}

static void check_strv(const char *const *a, const char *const *b)
{
	size_t i = 0;

	for (; a[i] && b[i]; i++)
		ck_assert_str_eq(a[i], b[i]);
	ck_assert_ptr_null(a[i]);
	ck_assert_ptr_null(b[i]);
}

static void check_spawn(const struct ad_msg_spawn *sent)
{
	size_t len;
	uint8_t *buf = encode_spawn(sent, &len);
	struct ad_msg_spawn got;
	struct ad_msg other;
	const char **argv, **env;

	ck_assert_uint_eq(ad_msg_peek(buf, len), AD_MSG_SPAWN);
	ck_assert(!ad_msg_decode(&other, buf, len));
	ck_assert(ad_msg_spawn_decode(&got, buf, len));
	ck_assert_uint_eq(got.job, sent->job);
	ck_assert_uint_eq(got.flags, sent->flags);
	ck_assert_uint_eq(got.requested, sent->requested);
	ck_assert_mem_eq(&got.limits, &sent->limits, sizeof(got.limits));
	ck_assert_mem_eq(&got.machine, &sent->machine, sizeof(got.machine));
	ck_assert_str_eq(got.workdir, sent->workdir);
	ck_assert_uint_eq(got.profile_len, sent->profile_len);
	if (sent->profile)
		ck_assert_mem_eq(got.profile, sent->profile, sent->profile_len);
	else
		ck_assert_ptr_null(got.profile);
	argv = calloc(got.argc + 1, sizeof(*argv));
	env = calloc(got.envc + 1, sizeof(*env));
	ck_assert(argv && env);
	ad_msg_spawn_vectors(&got, argv, env);
	check_strv(argv, sent->argv);
	check_strv(env, sent->env);
	free(argv);
	free(env);
	free(buf);
}

START_TEST(spawn_round_trips)
{
	static const char *const lonely[] = { "x", NULL }, *const none[] = { NULL };
	struct ad_msg_spawn spawn = some_spawn();

	check_spawn(&spawn);
	spawn.env = none;
	spawn.workdir = "";
	spawn.requested = 0;
	check_spawn(&spawn);
	spawn.flags = 0;
	spawn.profile = NULL;
	spawn.profile_len = 0;
	check_spawn(&spawn);
	spawn.argv = lonely;
	check_spawn(&spawn);
	spawn.argv = some_argv;
	spawn.env = some_env + 1; /* begins with an empty string */
	check_spawn(&spawn);
}
END_TEST

START_TEST(spawn_of_other_lengths)
{
	struct ad_msg_spawn spawn = some_spawn(), got;
	size_t len;
	uint8_t *buf = encode_spawn(&spawn, &len), *longer = malloc(len + 1);

	for (size_t cut = 0; cut < len; cut++) {
		uint8_t *copy = exact(buf, cut);

		ck_assert_msg(!ad_msg_spawn_decode(&got, copy, cut), "cut to %zu", cut);
		free(copy);
	}
	ck_assert_ptr_nonnull(longer);
	memcpy(longer, buf, len);
	longer[len] = 0;
	ck_assert(!ad_msg_spawn_decode(&got, longer, len + 1));
	free(longer);
	free(buf);
}
END_TEST

/* Offsets of what follows the limits: the machine's three numbers, and five counts. */
enum { SPAWN_MACHINE = 8 + 12 + 7 * 8, SPAWN_COUNTS = SPAWN_MACHINE + 3 * 4 };

START_TEST(spawn_with_wrong_counts)
{
	struct ad_msg_spawn spawn = some_spawn(), got;
	size_t len;
	uint8_t *buf = encode_spawn(&spawn, &len);

	for (size_t field = 0; field < 5; field++) {
		static const uint32_t values[] = { 0, 1, 2, 0x7fffffff, 0x80000000, 0xffffffff };
		uint8_t *at = buf + SPAWN_COUNTS + field * 4, was[4];

		memcpy(was, at, sizeof(was));
		for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
			for (unsigned int byte = 0; byte < 4; byte++)
				at[byte] = (uint8_t)(values[i] >> (8 * byte));
			ck_assert_msg(!ad_msg_spawn_decode(&got, buf, len), "%u in count %zu",
				      values[i], field);
		}
		memcpy(at, was, sizeof(was));
	}
	ck_assert(ad_msg_spawn_decode(&got, buf, len));
	/* The end of the last string. */
	buf[len - profile_len - 1] = 'x';
	ck_assert(!ad_msg_spawn_decode(&got, buf, len));
	buf[len - profile_len - 1] = 0;
	/* A bad profile, one without the flag, and descriptors of no sandbox. */
	buf[len - profile_len + PROFILE_HOST_NET] = 2;
	ck_assert(!ad_msg_spawn_decode(&got, buf, len));
	buf[len - profile_len + PROFILE_HOST_NET] = 1;
	ck_assert(ad_msg_spawn_decode(&got, buf, len));
	buf[8] = AD_SPAWN_STDIN;
	ck_assert(!ad_msg_spawn_decode(&got, buf, len));
	buf[8] = (uint8_t)(AD_SPAWN_FLAGS & ~(AD_SPAWN_MACHINE | AD_SPAWN_SESSION));
	/* Flags and requests nobody knows; no job. */
	buf[9] = (AD_SPAWN_FLAGS + 1) >> 8;
	ck_assert(!ad_msg_spawn_decode(&got, buf, len));
	buf[8] = buf[9] = 0;
	buf[12] = 1u << AD_MSG_LIMIT_COUNT;
	ck_assert(!ad_msg_spawn_decode(&got, buf, len));
	buf[12] = 0;
	memset(buf + 4, 0, 4);
	ck_assert(!ad_msg_spawn_decode(&got, buf, len));
	free(buf);
}
END_TEST

START_TEST(spawn_without_sandbox)
{
	static const uint32_t bad[] = { AD_SPAWN_SANDBOX, AD_SPAWN_CREDENTIALS, AD_SPAWN_NETNS };
	struct ad_msg_spawn spawn = some_spawn(), got;

	spawn.profile = NULL;
	spawn.profile_len = 0;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		uint8_t *buf;
		size_t len;

		spawn.flags = bad[i];
		buf = encode_spawn(&spawn, &len);
		ck_assert_msg(!ad_msg_spawn_decode(&got, buf, len), "flags %u", bad[i]);
		free(buf);
	}
}
END_TEST

START_TEST(spawn_of_a_machine)
{
	static const uint32_t right = AD_SPAWN_MACHINE | AD_SPAWN_MERGE_STDERR;
	static const uint32_t wrong[] = { AD_SPAWN_MACHINE, right | AD_SPAWN_STDIN,
					  AD_SPAWN_MERGE_STDERR, 0 };
	struct ad_msg_spawn spawn = some_spawn(), got;
	uint8_t *buf;
	size_t len;

	spawn.profile = NULL;
	spawn.profile_len = 0;
	spawn.flags = AD_SPAWN_MERGE_STDERR;
	check_spawn(&spawn);
	spawn.flags |= AD_SPAWN_SMALL_PAGES; /* of a machine only */
	buf = encode_spawn(&spawn, &len);
	ck_assert(!ad_msg_spawn_decode(&got, buf, len));
	free(buf);
	spawn.machine = (struct ad_msg_machine){ 65531, 65532, AD_SPAWN_MACHINE_FDS_MAX };
	spawn.flags = right | AD_SPAWN_CGROUP_REQUIRED | AD_SPAWN_SMALL_PAGES;
	check_spawn(&spawn);
	spawn.flags = right;
	check_spawn(&spawn);
	buf = encode_spawn(&spawn, &len);
	buf[SPAWN_MACHINE + 8]++; /* too many descriptors */
	ck_assert(!ad_msg_spawn_decode(&got, buf, len));
	free(buf);
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		spawn.flags = wrong[i];
		buf = encode_spawn(&spawn, &len);
		ck_assert_msg(!ad_msg_spawn_decode(&got, buf, len), "flags %u", wrong[i]);
		free(buf);
	}
}
END_TEST

static bool accepted(const struct ad_msg_spawn *spawn)
{
	struct ad_msg_spawn got;
	size_t len;
	uint8_t *buf = encode_spawn(spawn, &len);
	bool ok = ad_msg_spawn_decode(&got, buf, len);

	ck_assert(!ok || got.session == spawn->session);
	free(buf);
	return ok;
}

/* A session has a sandbox and no command, what runs in one the reverse. */
START_TEST(spawn_of_sessions)
{
	static const char *const none[] = { NULL };
	struct ad_msg_spawn spawn = some_spawn(), in = some_spawn();

	spawn.argv = spawn.env = none;
	spawn.flags = AD_SPAWN_SESSION | AD_SPAWN_SANDBOX | AD_SPAWN_NETNS;
	ck_assert(accepted(&spawn));
	spawn.argv = some_argv;
	ck_assert(!accepted(&spawn));
	spawn.argv = none;
	spawn.flags |= AD_SPAWN_STDIN;
	ck_assert(!accepted(&spawn));
	spawn.flags = AD_SPAWN_SESSION;
	spawn.profile = NULL;
	spawn.profile_len = 0;
	ck_assert(!accepted(&spawn));

	in.session = 7;
	ck_assert(!accepted(&in));
	in.profile = NULL;
	in.profile_len = 0;
	in.flags = AD_SPAWN_STDIN | AD_SPAWN_CREDENTIALS;
	ck_assert(accepted(&in));
	in.flags = AD_SPAWN_NETNS;
	ck_assert(!accepted(&in));
	in.flags = AD_SPAWN_MACHINE | AD_SPAWN_MERGE_STDERR;
	ck_assert(!accepted(&in));
	in.flags = AD_SPAWN_CREDENTIALS;
	in.session = 0;
	ck_assert(!accepted(&in));
}
END_TEST

START_TEST(spawn_too_large)
{
	size_t size = AD_MSG_SPAWN_MAX;
	char *argument = malloc(size);
	const char *argv[] = { argument, NULL };
	struct ad_msg_spawn spawn = some_spawn();

	ck_assert_ptr_nonnull(argument);
	memset(argument, 'x', size - 1);
	argument[size - 1] = '\0';
	spawn.argv = argv;
	ck_assert_uint_eq(ad_msg_spawn_size(&spawn), SIZE_MAX);
	argument[size - 4096] = '\0';
	check_spawn(&spawn);
	free(argument);
}
END_TEST

START_TEST(random_spawns)
{
	struct ad_msg_spawn spawn = some_spawn(), got;
	size_t full, accepted = 0;
	uint8_t *pattern = encode_spawn(&spawn, &full);

	for (size_t i = 0, mutations = mutation_count(); i < mutations; i++) {
		size_t len = random_next() % 4 == 0 ? random_next() % (full + 1) : full;
		uint8_t *copy = exact(pattern, len);

		for (size_t changes = random_next() % 4; len > 0 && changes > 0; changes--)
			copy[random_next() % len] = (uint8_t)random_next();
		if (ad_msg_spawn_decode(&got, copy, len)) {
			const char **vector = calloc(got.argc + got.envc + 2, sizeof(*vector));

			accepted++;
			ck_assert_ptr_nonnull(vector);
			ad_msg_spawn_vectors(&got, vector, vector + got.argc + 1);
			for (size_t j = 0; j < got.argc; j++)
				ck_assert_uint_lt(strlen(vector[j]), len);
			free(vector);
		}
		free(copy);
	}
	ck_assert_uint_gt(accepted, mutation_count() / 10);
	free(pattern);
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("proto");

	tcase_add_test(tc, messages_round_trip);
	tcase_add_test(tc, fields_survive);
	tcase_add_test(tc, messages_of_other_lengths);
	tcase_add_test(tc, values_out_of_range);
	tcase_add_test(tc, random_messages);
	tcase_add_test(tc, spawn_round_trips);
	tcase_add_test(tc, spawn_of_other_lengths);
	tcase_add_test(tc, spawn_with_wrong_counts);
	tcase_add_test(tc, profiles_round_trip);
	tcase_add_test(tc, profiles_of_other_lengths);
	tcase_add_test(tc, bad_profiles);
	tcase_add_test(tc, random_profiles);
	tcase_add_test(tc, spawn_without_sandbox);
	tcase_add_test(tc, spawn_of_a_machine);
	tcase_add_test(tc, spawn_too_large);
	tcase_add_test(tc, spawn_of_sessions);
	tcase_add_test(tc, random_spawns);
	return unit_run("proto", tc);
}
