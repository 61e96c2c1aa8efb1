/* SPDX-License-Identifier: MIT */
#include "policy/policy.h"

#include <inttypes.h>
#include <string.h>

#include "json/json.h"
#include "policy/private.h"
#include "util/util.h"

/* UINT64_MAX: half of the machine's memory. */
#define HALF_OF_MEMORY UINT64_MAX

/* What 0.1 had: callers built against it pass structs that large. */
enum { LIMITS_SIZE_0_1 = offsetof(struct agentd_limits, net_bytes) + sizeof(uint64_t) };

#define LIMIT(member, default_)                                                                    \
	{                                                                                          \
		.name = #member, .offset = offsetof(struct agentd_limits, member),                 \
		.is64 = sizeof(((struct agentd_limits *)0)->member) == sizeof(uint64_t),           \
		.builtin = default_                                                                \
	}

const struct ad_limit_desc ad_limit_descs[AD_LIMIT_COUNT] = {
	LIMIT(pids_max, 512),
	LIMIT(timeout_ms, 0),
	LIMIT(idle_timeout_ms, 0),
	LIMIT(cpu_time_ms, 0),
	LIMIT(mem_bytes, HALF_OF_MEMORY),
	LIMIT(io_bytes, 0),
	LIMIT(output_bytes, UINT64_C(64) << 20),
	LIMIT(file_bytes, 0),
	LIMIT(cpu_ms_per_100ms, 0),
	LIMIT(open_files_max, 0),
	LIMIT(net_bytes, 0),
};

void agentd_limits_init(struct agentd_limits *limits, uint32_t size)
{
	if (!limits || size < 2 * sizeof(uint32_t))
		return;
	memset(limits, 0, size);
	limits->size = size;
}

uint64_t ad_limit_get(const struct agentd_limits *limits, const struct ad_limit_desc *desc)
{
	const char *member = (const char *)limits + desc->offset;
	uint64_t value64;
	uint32_t value32;

	if (desc->is64) {
		memcpy(&value64, member, sizeof(value64));
		return value64;
	}
	memcpy(&value32, member, sizeof(value32));
	return value32;
}

void ad_limit_set(struct agentd_limits *limits, const struct ad_limit_desc *desc, uint64_t value)
{
	char *member = (char *)limits + desc->offset;
	uint32_t value32;

	if (desc->is64) {
		memcpy(member, &value, sizeof(value));
		return;
	}
	value32 = value > UINT32_MAX ? UINT32_MAX : (uint32_t)value;
	memcpy(member, &value32, sizeof(value32));
}

static uint64_t maximum(const struct ad_limit_desc *desc)
{
	return desc->is64 ? UINT64_MAX : UINT32_MAX;
}

bool ad_limit_unlimited(const struct ad_limit_desc *desc, uint64_t value)
{
	return value == maximum(desc);
}

int ad_limit_index(const char *name)
{
	for (int i = 0; i < AD_LIMIT_COUNT; i++) {
		if (strcmp(ad_limit_descs[i].name, name) == 0)
			return i;
	}
	return -1;
}

int ad_limits_copy(struct agentd_limits *ret, const struct agentd_limits *limits,
		   agentd_error **reterr)
{
	return ad_sized_copy(ret, sizeof(*ret), limits, LIMITS_SIZE_0_1, "struct agentd_limits",
			     reterr);
}

/* ---- JSON */

static int read_limit(const char *key, const struct json_object *value, const char *pointer,
		      void *userdata, agentd_error **reterr)
{
	const struct ad_limit_desc *desc;
	struct agentd_limits *limits = userdata;
	int index = ad_limit_index(key), r;
	const char *text;
	uint64_t number;

	if (index < 0)
		return ad_json_unknown_key(key, pointer, reterr);
	desc = &ad_limit_descs[index];
	if (ad_json_type_of(value) == AD_JSON_STRING) {
		r = ad_json_get_string(value, pointer, &text, reterr);
		if (r < 0)
			return r;
		if (strcmp(text, "unlimited") != 0) {
			char what[128];

			ad_json_describe(value, what, sizeof(what));
			return ad_fail(reterr, AGENTD_ERR_INVALID, pointer,
				       "invalid value: %s, expected a number or \"unlimited\"",
				       what);
		}
		ad_limit_set(limits, desc, maximum(desc));
		return 0;
	}
	r = ad_json_get_u64(value, pointer, &number, reterr);
	if (r < 0)
		return r;
	if (number == 0 || number >= maximum(desc))
		return ad_fail(reterr, AGENTD_ERR_INVALID, pointer,
			       "invalid value: integer `%" PRIu64 "`, expected 1 to %" PRIu64
			       " or \"unlimited\"",
			       number, maximum(desc) - 1);
	ad_limit_set(limits, desc, number);
	return 0;
}

int ad_limits_from_json(const struct json_object *value, const char *pointer,
			struct agentd_limits *ret, agentd_error **reterr)
{
	struct agentd_limits limits;
	int r;

	agentd_limits_init(&limits, sizeof(limits));
	r = ad_json_each_member(value, pointer, read_limit, &limits, reterr);
	if (r == 0)
		*ret = limits;
	return r;
}

struct json_object *ad_limits_to_json(const struct agentd_limits *limits, bool *any)
{
	struct json_object *object = ad_json_object();
	bool ok = object != NULL;

	*any = false;
	for (size_t i = 0; i < AD_LIMIT_COUNT && ok; i++) {
		const struct ad_limit_desc *desc = &ad_limit_descs[i];
		uint64_t value = ad_limit_get(limits, desc);

		if (value == 0)
			continue;
		*any = true;
		ok = ad_limit_unlimited(desc, value) ?
			     ad_json_add_string(object, desc->name, "unlimited") :
			     ad_json_add_u64(object, desc->name, value);
	}
	if (!ok) {
		ad_json_free(object);
		return NULL;
	}
	return object;
}

/* ---- merging */

static uint64_t builtin(const struct ad_limit_desc *desc, uint64_t machine_memory)
{
	return desc->builtin == HALF_OF_MEMORY ? machine_memory / 2 : desc->builtin;
}

void ad_limits_merge(const struct agentd_limits *const *layers, size_t count, size_t n_policy,
		     uint64_t machine_memory, struct agentd_limits *ret, uint32_t *requested)
{
	struct agentd_limits merged;
	uint32_t asked = 0;

	agentd_limits_init(&merged, sizeof(merged));
	for (size_t i = 0; i < AD_LIMIT_COUNT; i++) {
		const struct ad_limit_desc *desc = &ad_limit_descs[i];
		uint64_t least = maximum(desc);
		bool unlimited = false;

		for (size_t j = 0; j < count; j++) {
			uint64_t value = layers[j] ? ad_limit_get(layers[j], desc) : 0;

			if (value == 0)
				continue;
			if (ad_limit_unlimited(desc, value))
				unlimited = unlimited || j < n_policy;
			else if (value < least)
				least = value;
		}
		if (!ad_limit_unlimited(desc, least)) {
			ad_limit_set(&merged, desc, least);
			asked |= UINT32_C(1) << i;
		} else if (unlimited) {
			asked |= UINT32_C(1) << i;
		} else {
			ad_limit_set(&merged, desc, builtin(desc, machine_memory));
		}
	}
	*ret = merged;
	*requested = asked;
}
