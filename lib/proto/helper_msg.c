/* SPDX-License-Identifier: MIT */
#include "proto/helper_msg.h"

#include <limits.h>
#include <string.h>

#include "proto/wire.h"

/* Every message: version 1, type 1, zero 2, job 4. */
enum { HEADER = 8, SPAWN_FIXED = HEADER + 3 * 4 + 7 * 8 + 3 * 4 + 5 * 4 };

static uint8_t *put_header(uint8_t *at, enum ad_msg_type type, uint32_t job)
{
	at = put(at, AD_MSG_VERSION, 1);
	at = put(at, type, 1);
	at = put(at, 0, 2);
	return put(at, job, 4);
}

/* Returns the type; 0 if there is no sound header. */
static uint8_t get_header(struct reader *in, uint32_t *ret_job)
{
	uint8_t version = (uint8_t)get(in, 1), type = (uint8_t)get(in, 1);
	uint16_t zero = (uint16_t)get(in, 2);

	*ret_job = get_u32(in);
	return in->bad || version != AD_MSG_VERSION || zero != 0 ? 0 : type;
}

uint8_t ad_msg_peek(const uint8_t *buf, size_t len)
{
	struct reader in = { .at = buf, .left = len };
	uint32_t job;

	return get_header(&in, &job);
}

/* ---- starting */

/* Adds the bytes of the strings and their number; false past the bound. */
static bool measure(const char *const *strv, size_t *total)
{
	for (; *strv; strv++) {
		*total += strlen(*strv) + 1;
		if (*total > AD_MSG_SPAWN_MAX)
			return false;
	}
	return true;
}

size_t ad_msg_spawn_size(const struct ad_msg_spawn *spawn)
{
	size_t total = SPAWN_FIXED;

	total += strlen(spawn->workdir) + 1;
	if (total > AD_MSG_SPAWN_MAX || !measure(spawn->argv, &total) ||
	    !measure(spawn->env, &total) || spawn->profile_len > AD_MSG_SPAWN_MAX - total)
		return SIZE_MAX;
	return total + spawn->profile_len;
}

static uint8_t *put_strv(uint8_t *at, const char *const *strv, uint32_t *ret_count)
{
	uint32_t count = 0;

	for (; strv[count]; count++) {
		size_t size = strlen(strv[count]) + 1;

		memcpy(at, strv[count], size);
		at += size;
	}
	*ret_count = count;
	return at;
}

size_t ad_msg_spawn_encode(const struct ad_msg_spawn *spawn, uint8_t *buf)
{
	const struct ad_msg_limits *limits = &spawn->limits;
	size_t workdir_size = strlen(spawn->workdir) + 1;
	uint8_t *at = put_header(buf, AD_MSG_SPAWN, spawn->job), *counts, *strings;
	uint32_t argc, envc;

	at = put(at, spawn->flags, 4);
	at = put(at, spawn->requested, 4);
	at = put(at, spawn->session, 4);
	at = put(at, limits->memory, 8);
	at = put(at, limits->pids, 8);
	at = put(at, limits->cpu_time_ms, 8);
	at = put(at, limits->io, 8);
	at = put(at, limits->file, 8);
	at = put(at, limits->open_files, 8);
	at = put(at, limits->cpu_ms_per_100ms, 8);
	at = put(at, spawn->machine.uid, 4);
	at = put(at, spawn->machine.gid, 4);
	at = put(at, spawn->machine.fd_count, 4);
	counts = at;
	strings = at + 20;
	memcpy(strings, spawn->workdir, workdir_size);
	at = put_strv(strings + workdir_size, spawn->argv, &argc);
	at = put_strv(at, spawn->env, &envc);
	counts = put(counts, workdir_size, 4);
	counts = put(counts, argc, 4);
	counts = put(counts, envc, 4);
	counts = put(counts, (uint64_t)(at - strings), 4);
	put(counts, spawn->profile_len, 4);
	if (spawn->profile_len > 0)
		memcpy(at, spawn->profile, spawn->profile_len);
	at += spawn->profile_len;
	return (size_t)(at - buf);
}

static bool get_machine(struct reader *in, uint32_t flags, struct ad_msg_machine *ret)
{
	ret->uid = get_u32(in);
	ret->gid = get_u32(in);
	ret->fd_count = (uint32_t)get_below(in, 4, AD_SPAWN_MACHINE_FDS_MAX + 1);
	if (!(flags & AD_SPAWN_MACHINE))
		return ret->uid == 0 && ret->gid == 0 && ret->fd_count == 0 &&
		       !(flags & AD_SPAWN_SMALL_PAGES);
	return (flags & ~(uint32_t)(AD_SPAWN_CGROUP_REQUIRED | AD_SPAWN_SMALL_PAGES)) ==
	       (AD_SPAWN_MACHINE | AD_SPAWN_MERGE_STDERR);
}

/* The sandbox is not its own, or there is none. */
static bool flags_without_profile(const struct ad_msg_spawn *spawn)
{
	uint32_t own = AD_SPAWN_NETNS | AD_SPAWN_SESSION | (spawn->session ? AD_SPAWN_MACHINE : 0);

	return !(spawn->flags & own) && (spawn->session || !(spawn->flags & AD_SPAWN_CREDENTIALS));
}

static bool session_flags(const struct ad_msg_spawn *spawn)
{
	return (spawn->flags & ~(uint32_t)(AD_SPAWN_CGROUP_REQUIRED | AD_SPAWN_NETNS)) ==
	       (AD_SPAWN_SESSION | AD_SPAWN_SANDBOX);
}

bool ad_msg_spawn_decode(struct ad_msg_spawn *ret, const uint8_t *buf, size_t len)
{
	struct reader in = { .at = buf, .left = len };
	struct ad_msg_limits *limits = &ret->limits;
	uint32_t workdir_size, argc, envc, bytes, profile_len;
	struct ad_profile profile;
	const char *at;

	*ret = (struct ad_msg_spawn){ 0 };
	if (len > AD_MSG_SPAWN_MAX || get_header(&in, &ret->job) != AD_MSG_SPAWN || ret->job == 0)
		return false;
	ret->flags = get_u32(&in);
	ret->requested = get_u32(&in);
	ret->session = get_u32(&in);
	limits->memory = get(&in, 8);
	limits->pids = get(&in, 8);
	limits->cpu_time_ms = get(&in, 8);
	limits->io = get(&in, 8);
	limits->file = get(&in, 8);
	limits->open_files = get(&in, 8);
	limits->cpu_ms_per_100ms = get(&in, 8);
	if (!get_machine(&in, ret->flags, &ret->machine))
		return false;
	workdir_size = get_u32(&in);
	argc = get_u32(&in);
	envc = get_u32(&in);
	bytes = get_u32(&in);
	profile_len = get_u32(&in);
	if (in.bad || in.left < bytes || in.left - bytes != profile_len ||
	    (ret->flags & ~(uint32_t)AD_SPAWN_FLAGS) || ret->requested >> AD_MSG_LIMIT_COUNT ||
	    workdir_size == 0 || workdir_size > bytes)
		return false;
	if ((ret->flags & AD_SPAWN_SANDBOX) ?
		    !ad_profile_decode(&profile, in.at + bytes, profile_len) :
		    profile_len > 0 || !flags_without_profile(ret))
		return false;
	if ((ret->flags & AD_SPAWN_SESSION) ? !session_flags(ret) || argc > 0 : argc == 0)
		return false;
	if (ret->session && (ret->flags & AD_SPAWN_SANDBOX))
		return false;
	ret->profile = profile_len > 0 ? in.at + bytes : NULL;
	ret->profile_len = profile_len;
	at = (const char *)in.at;
	if (!ad_wire_strings_check(at, bytes, 1 + (uint64_t)argc + envc) ||
	    strlen(at) + 1 != workdir_size)
		return false;
	ret->workdir = at;
	ret->strings = at + workdir_size;
	ret->argc = argc;
	ret->envc = envc;
	return true;
}

void ad_msg_spawn_vectors(const struct ad_msg_spawn *spawn, const char **argv, const char **env)
{
	ad_wire_strings_fill(ad_wire_strings_fill(spawn->strings, argv, spawn->argc), env,
			     spawn->envc);
}

/* ---- everything else */

static uint8_t *put_receipt(uint8_t *at, const struct ad_msg_receipt *receipt)
{
	at = put(at, receipt->memory, 1);
	at = put(at, receipt->pids, 1);
	at = put(at, receipt->cpu, 1);
	at = put(at, receipt->cpu_time, 1);
	at = put(at, receipt->io, 1);
	at = put(at, receipt->tree_kill, 1);
	at = put(at, receipt->landlock_abi, 1);
	for (size_t i = 0; i < AD_LAYER_COUNT; i++) {
		at = put(at, receipt->layers[i], 1);
		at = put(at, receipt->layer_errno[i], 2);
	}
	at = put(at, receipt->uid, 4);
	return put(at, receipt->gid, 4);
}

static void get_receipt(struct reader *in, struct ad_msg_receipt *ret)
{
	ret->memory = get_u8_below(in, AD_MSG_MEANS_COUNT);
	ret->pids = get_u8_below(in, AD_MSG_MEANS_COUNT);
	ret->cpu = get_u8_below(in, AD_MSG_MEANS_COUNT);
	ret->cpu_time = get_u8_below(in, AD_MSG_MEANS_COUNT);
	ret->io = get_u8_below(in, AD_MSG_MEANS_COUNT);
	ret->tree_kill = get_u8_below(in, AD_MSG_MEANS_COUNT);
	ret->landlock_abi = (uint8_t)get(in, 1);
	for (size_t i = 0; i < AD_LAYER_COUNT; i++) {
		ret->layers[i] = get_u8_below(in, AD_MSG_LAYER_STATES);
		ret->layer_errno[i] = (uint16_t)get_below(in, 2, 4096);
	}
	ret->uid = get_u32(in);
	ret->gid = get_u32(in);
}

static uint8_t *put_text(uint8_t *at, const char *text)
{
	size_t size = strnlen(text, AD_MSG_TEXT_MAX - 1);

	at = put(at, size, 2);
	memcpy(at, text, size);
	return at + size;
}

static void get_text(struct reader *in, char *ret)
{
	size_t size = (size_t)get_below(in, 2, AD_MSG_TEXT_MAX);

	if (in->bad || in->left < size || memchr(in->at, '\0', size)) {
		in->bad = true;
		return;
	}
	memcpy(ret, in->at, size);
	ret[size] = '\0';
	in->at += size;
	in->left -= size;
}

static uint8_t *put_usage(uint8_t *at, const struct ad_msg_usage *usage)
{
	at = put(at, usage->cpu_ns, 8);
	at = put(at, usage->memory_peak, 8);
	at = put(at, usage->survivors, 4);
	return put(at, usage->peak_is_tree, 1);
}

static void get_usage(struct reader *in, struct ad_msg_usage *ret)
{
	ret->cpu_ns = get(in, 8);
	ret->memory_peak = get(in, 8);
	ret->survivors = get_u32(in);
	ret->peak_is_tree = get_below(in, 1, 2) == 1;
}

size_t ad_msg_encode(const struct ad_msg *msg, uint8_t *buf)
{
	uint8_t *at = put_header(buf, msg->type, msg->job);

	switch (msg->type) {
	case AD_MSG_SPAWN:
		return 0; /* has functions of its own */
	case AD_MSG_SPAWN_FD:
	case AD_MSG_KILL:
		break;
	case AD_MSG_SIGNAL:
		at = put(at, (uint32_t)msg->u.signal.signo, 4);
		break;
	case AD_MSG_HELLO:
		at = put(at, (uint32_t)msg->u.hello.pid, 4);
		at = put_receipt(at, &msg->u.hello.best);
		at = put_text(at, msg->u.hello.version);
		break;
	case AD_MSG_STARTED:
		at = put(at, (uint32_t)msg->u.started.pid, 4);
		at = put(at, msg->u.started.flags, 4);
		at = put_receipt(at, &msg->u.started.receipt);
		break;
	case AD_MSG_FAILED:
		at = put(at, msg->u.failed.stage, 4);
		at = put(at, msg->u.failed.index, 4);
		at = put(at, (uint32_t)msg->u.failed.os_errno, 4);
		at = put_text(at, msg->u.failed.text);
		break;
	case AD_MSG_LIMIT:
		at = put(at, msg->u.limit.limit, 4);
		at = put(at, msg->u.limit.fatal, 1);
		break;
	case AD_MSG_DENIED:
		at = put(at, msg->u.denied.kind, 4);
		at = put_text(at, msg->u.denied.target);
		break;
	case AD_MSG_EXITED:
	case AD_MSG_CLOSED:
	case AD_MSG_ENDED:
		if (msg->type != AD_MSG_CLOSED) {
			at = put(at, (uint32_t)msg->u.ended.wait_status, 4);
			at = put(at, msg->u.ended.at_ns, 8);
		}
		if (msg->type != AD_MSG_EXITED)
			at = put_usage(at, &msg->u.ended.usage);
		break;
	}
	return (size_t)(at - buf);
}

bool ad_msg_decode(struct ad_msg *ret, const uint8_t *buf, size_t len)
{
	struct reader in = { .at = buf, .left = len };
	uint8_t type = get_header(&in, &ret->job);

	ret->type = (enum ad_msg_type)type;
	switch (type) {
	case AD_MSG_SPAWN_FD:
	case AD_MSG_KILL:
		break;
	case AD_MSG_SIGNAL:
		ret->u.signal.signo = (int32_t)get_below(&in, 4, 65);
		break;
	case AD_MSG_HELLO:
		ret->u.hello.pid = (int32_t)get_below(&in, 4, INT32_MAX);
		get_receipt(&in, &ret->u.hello.best);
		get_text(&in, ret->u.hello.version);
		break;
	case AD_MSG_STARTED:
		ret->u.started.pid = (int32_t)get_below(&in, 4, INT32_MAX);
		ret->u.started.flags = (uint32_t)get_below(&in, 4, AD_STARTED_FLAGS + 1);
		get_receipt(&in, &ret->u.started.receipt);
		break;
	case AD_MSG_FAILED:
		ret->u.failed.stage = (uint32_t)get_below(&in, 4, AD_STAGE_COUNT);
		ret->u.failed.index = (uint32_t)get_below(&in, 4, AD_PROFILE_PATHS_MAX);
		ret->u.failed.os_errno = (int32_t)get_below(&in, 4, 4096);
		get_text(&in, ret->u.failed.text);
		break;
	case AD_MSG_LIMIT:
		ret->u.limit.limit = (uint32_t)get_below(&in, 4, AD_MSG_LIMIT_COUNT);
		ret->u.limit.fatal = get_below(&in, 1, 2) == 1;
		break;
	case AD_MSG_DENIED:
		ret->u.denied.kind = (uint32_t)get_below(&in, 4, AD_MSG_DENIED_KINDS);
		get_text(&in, ret->u.denied.target);
		break;
	case AD_MSG_EXITED:
	case AD_MSG_CLOSED:
	case AD_MSG_ENDED:
		memset(&ret->u.ended, 0, sizeof(ret->u.ended));
		if (type != AD_MSG_CLOSED) {
			ret->u.ended.wait_status = get_s32(&in);
			ret->u.ended.at_ns = get(&in, 8);
		}
		if (type != AD_MSG_EXITED)
			get_usage(&in, &ret->u.ended.usage);
		break;
	default:
		return false;
	}
	return !in.bad && in.left == 0 && (ret->job == 0) == (type == AD_MSG_HELLO);
}
